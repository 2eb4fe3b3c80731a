"""The rate of the steps of C++ action chunks, against a real daemon: it is the model's, or no action is given."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ActionChunks, ContractMismatch, NoFreshAction
from tests.support import c_client, watchdog
from tests.support.admin_command import update
from tests.support.c_client import CClient, CError
from tests.support.c_library import library
from tests.support.cpp_library import compile_cpp
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import SUPPORT
from tests.support.joint_packages import joint_package

pytestmark = [pytest.mark.sealed_too]

Play = Callable[[Daemon, int], subprocess.Popen[str]]
PERIOD_NS, ANSWER_NS = 20_000_000, 10_000_000_000


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    contracts = {
        "of 50": "[contract]\nrate_hz = 50\n",
        "of 50 as well": "[contract]\nrate_hz = 50\n\n[metadata]\nfiner = 1\n",
        "of 29.97": "[contract]\nrate_hz = 29.97\n",
        "silent": "",
    }
    return {name: joint_package(folder, name, contract) for name, contract in contracts.items()}


@pytest.fixture(scope="module")
def daemon(packages: dict[str, Path]) -> Iterator[Daemon]:
    with Daemon(packages["of 50"]) as daemon:
        yield daemon


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts the program with a period in nanoseconds."""
    started: list[subprocess.Popen[str]] = []

    def play_(daemon: Daemon, period_ns: int) -> subprocess.Popen[str]:
        program = compile_cpp(SUPPORT / "cpp_programs/chunk_rate.cpp")
        process = subprocess.Popen(
            [program, daemon.runtime_dir, daemon.name, str(period_ns)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        watchdog.watch(process)
        started.append(process)
        return process

    yield play_
    for process in started:
        process.communicate()
        watchdog.reap(process)


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def version_of(daemon: Daemon) -> str:
    version = daemon.status()["model"]["version"]
    assert isinstance(version, str)
    return version[:16]


def text_in_python(daemon: Daemon, period: float) -> str:
    observation = {
        "state": np.zeros(3, np.float32),
        "points": np.zeros((5, 3), np.float32),
        "camera": np.zeros((4, 6, 3), np.uint8),
    }
    with (
        daemon.client() as client,
        ActionChunks(client, steps=8, period=period, max_wait=30.0, fallback="raise") as chunks,
        pytest.raises((NoFreshAction, ContractMismatch)) as caught,
    ):
        chunks.step(observation)
    return str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize("period_ns", [40_000_000, 20_500_000, 19_500_000])
def test_steps_at_another_rate_are_no_actions_and_the_text_is_the_one_of_python(
    daemon: Daemon, play: Play, period_ns: int
) -> None:
    assert next_line(play(daemon, period_ns)).replace("|", "\n") == text_in_python(daemon, period_ns / 1e9)


@pytest.mark.parametrize("period_ns", [PERIOD_NS, 20_300_000, 0], ids=["the same", "about the same", "counted"])
def test_steps_at_the_model_s_rate_or_without_one_are_played(daemon: Daemon, play: Play, period_ns: int) -> None:
    assert next_line(play(daemon, period_ns)) == f"plays {version_of(daemon)}"


def test_no_action_is_played_of_an_update_to_another_rate(
    make_daemon: Callable[..., Daemon], packages: dict[str, Path], play: Play
) -> None:
    daemon = make_daemon(packages["silent"]).start()
    player = play(daemon, PERIOD_NS)
    assert next_line(player) == f"plays {version_of(daemon)}"

    update(daemon, packages["of 50"])
    assert next_line(player) == f"plays {version_of(daemon)}"
    update(daemon, packages["of 50 as well"])
    assert next_line(player) == f"plays {version_of(daemon)}"
    update(daemon, packages["of 29.97"], allow_contract_change=True)
    assert "rate_hz: 29.97 -> 50 (ActionChunks, period = 0.02)" in next_line(player)


def test_a_c_client_that_states_its_period_is_refused_and_takes_it_back(daemon: Daemon) -> None:
    library()
    with CClient.of(daemon) as asked:
        tree = {"state": np.zeros(3, np.float32), "points": np.zeros((5, 3), np.float32)}
        tree["camera"] = np.zeros((4, 6, 3), np.uint8)
        sent = asked.submit(tree)
        for _ in range(2):
            assert asked.calls.state_period(asked.handle, 2 * PERIOD_NS, ANSWER_NS) == c_client.MISMATCH
            assert "rate_hz: 50 -> 25 (ActionChunks, period = 0.04)" in asked.last_error
        for ask in (lambda: asked.result(sent), lambda: asked.submit(tree)):
            with pytest.raises(CError, match="rate_hz: 50 -> 25") as refused:
                ask()
            assert refused.value.status == c_client.MISMATCH

        assert asked.calls.state_period(asked.handle, 0, ANSWER_NS) == c_client.OK
        assert asked.infer(tree)["points"] == 5
