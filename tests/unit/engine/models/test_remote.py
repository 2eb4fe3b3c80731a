"""A link as it is loaded: what is compared before the first request, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models import load_model
from shmserve.daemon.engine.models.remote import RemoteModel, RemoteUnavailable, Terms
from shmserve.daemon.engine.models.uplink import GrpcUplink, UplinkDown
from shmserve.daemon.engine.warmup.link import warm_up_link
from shmserve.daemon.engine.warmup.warmup import WarmupResult
from shmserve.daemon.ipc.stats import Counter
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import wait_until
from tests.support.stand_in_uplink import LOCAL, StandInUplink, link_package

VERSION = "3f9c2d17a0b14e55"
OBSERVATION = {"state": np.ones(3, np.float32)}
CPU = torch.device("cpu")


@pytest.fixture
def uplink(tmp_path: Path) -> Iterator[StandInUplink]:
    with StandInUplink(tmp_path / "uplink.sock", VERSION) as running:
        yield running


def loaded(folder: Path, uplink: StandInUplink, **keys: Any) -> tuple[RemoteModel, WarmupResult]:
    keys = {"budget_s": 5.0, "probe_s": 0.02, **keys}
    package = ModelPackage.read(link_package(folder / "link", uplink.target, VERSION, **keys))
    model = load_model(package, CPU)
    assert isinstance(model, RemoteModel)
    with torch.no_grad():
        return model, warm_up_link(model, CPU, package)


def refusal(folder: Path, uplink: StandInUplink, **keys: Any) -> str:
    with pytest.raises(ModelPackageError) as caught:
        loaded(folder, uplink, **keys)
    return str(caught.value)


def test_example_contract_and_metadata_are_the_remotes(tmp_path: Path, uplink: StandInUplink) -> None:
    model, result = loaded(tmp_path, uplink)

    array = {"dtype": "float32", "shape": [3]}
    assert result.contract == {"observation": {"state": array}, "action": {"action": array}}
    assert model.metadata() == {"hz": 50}
    assert model.ask(OBSERVATION, Terms()).counter == Counter.REMOTE_OK


def test_a_link_needs_no_fallback(tmp_path: Path, uplink: StandInUplink) -> None:
    model, result = loaded(tmp_path, uplink, local=None)

    assert result.observation is not None
    uplink.stop()
    assert model.ask(OBSERVATION, Terms()).counter == Counter.REMOTE_DOWN
    with pytest.raises(RemoteUnavailable, match="the package has no fallback"):
        model.answer_locally([OBSERVATION])


def test_a_remote_of_another_version_is_refused(tmp_path: Path, uplink: StandInUplink) -> None:
    uplink.version = 0xBAD

    assert f"is version 0000000000000bad, and this package links to {VERSION}" in refusal(tmp_path, uplink)


def test_a_stateful_remote_is_refused(tmp_path: Path, uplink: StandInUplink) -> None:
    uplink.description["stateful"] = True

    assert "'double' is stateful" in refusal(tmp_path, uplink)


def test_a_fallback_that_answers_something_else_is_refused(tmp_path: Path, uplink: StandInUplink) -> None:
    local = LOCAL.replace('observation["state"] * -1', 'observation["state"].repeat(2)')

    text = refusal(tmp_path, uplink, local=local)
    assert "the fallback is no substitute" in text and "action.action: float32[3] -> float32[6]" in text


def test_a_fallback_that_takes_something_else_is_refused(tmp_path: Path, uplink: StandInUplink) -> None:
    local = LOCAL.replace('"state": np.zeros(3', '"joints": np.zeros(3').replace('["state"]', '["joints"]')

    assert "observation.joints" in refusal(tmp_path, uplink, local=local)


def test_a_fallback_without_an_example_runs_the_remotes(tmp_path: Path, uplink: StandInUplink) -> None:
    local = LOCAL.partition("    def example_observation")[0]

    model, result = loaded(tmp_path, uplink, local=local)
    assert result.action is not None
    (action,) = model.answer_locally([OBSERVATION])
    np.testing.assert_array_equal(np.asarray(action["action"]), np.full(3, -1, np.float32))


def test_a_remote_that_fails_on_its_example_is_refused(tmp_path: Path, uplink: StandInUplink) -> None:
    uplink.spoils = lambda reply: reply[:8]

    with pytest.raises(RemoteUnavailable, match="cannot be read"):
        loaded(tmp_path, uplink)


def test_a_link_without_a_fallback_is_refused_while_the_remote_is_away(tmp_path: Path, uplink: StandInUplink) -> None:
    uplink.stop()

    assert "does not answer, and the package has no fallback" in refusal(tmp_path, uplink, local=None)


def test_a_machine_starts_on_the_fallback_and_compares_the_remote_before_it_asks(
    tmp_path: Path, uplink: StandInUplink
) -> None:
    uplink.stop()
    model, result = loaded(tmp_path, uplink)
    assert result.observation is not None and model.breaker.is_open
    assert model.ask(OBSERVATION, Terms()).counter == Counter.REMOTE_OPEN

    uplink.start()

    wait_until("the link closes", lambda: not model.breaker.is_open)
    assert model.is_verified and model.ask(OBSERVATION, Terms()).counter == Counter.REMOTE_OK


def test_a_remote_of_another_contract_is_not_asked_when_it_is_back(tmp_path: Path, uplink: StandInUplink) -> None:
    uplink.stop()
    model, _ = loaded(tmp_path, uplink)
    uplink.model = lambda observation: {"action": np.zeros(7, np.float32)}

    uplink.start()

    reason = wait_until("it is compared", lambda: "contract" in (model.breaker.reason or "") and model.breaker.reason)
    assert "action.action: float32[3] -> float32[7]" in reason
    assert model.state()["source"] == "fallback"


def test_a_request_without_time_left_is_not_sent(tmp_path: Path, uplink: StandInUplink) -> None:
    model, _ = loaded(tmp_path, uplink)
    sent = len(uplink.requests)

    for terms in (
        Terms(elapsed_ns=5_000_000_000),
        Terms(deadline_ns=time.monotonic_ns() + model.margin_ns),
    ):
        assert model.ask(OBSERVATION, terms).counter == Counter.REMOTE_LATE
    assert len(uplink.requests) == sent and not model.breaker.is_open


def test_a_call_that_does_not_end_in_time_is_given_up(tmp_path: Path, uplink: StandInUplink) -> None:
    given_up = threading.Event()

    class Stuck(GrpcUplink):
        """gRPC whose threads get no processor."""

        def ask(self, method: str, data: bytes, timeout_s: float, tag: str) -> bytes:
            assert given_up.wait(60)
            raise UplinkDown("at last")

    package = ModelPackage.read(link_package(tmp_path / "link", uplink.target, VERSION, local=None, budget_s=0.05))
    model = RemoteModel(package, Stuck(uplink.target, "double"), None, None, CPU)

    answers = [model.ask(OBSERVATION, Terms()) for _ in range(2)]
    given_up.set()

    assert [answer.counter for answer in answers] == [Counter.REMOTE_LATE] * 2


def test_the_remote_gets_no_longer_than_the_request_allows(tmp_path: Path, uplink: StandInUplink) -> None:
    model, _ = loaded(tmp_path, uplink, budget_s=9.0)

    model.ask(OBSERVATION, Terms(elapsed_ns=2_000_000_000))
    assert uplink.requests[-1].budget_ns == 7_000_000_000
    model.ask(OBSERVATION, Terms(deadline_ns=time.monotonic_ns() + 6_000_000_000))
    assert uplink.requests[-1].budget_ns <= 6_000_000_000 - model.margin_ns


def test_the_state_is_reported_once_for_each_change(tmp_path: Path, uplink: StandInUplink) -> None:
    model, _ = loaded(tmp_path, uplink)

    assert (model.change() or {})["source"] == "remote" and model.change() is None
    model.breaker.open("gone")
    assert (model.change() or {})["reason"] == "gone" and model.change() is None
