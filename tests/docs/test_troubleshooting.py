"""docs/how-to/troubleshooting.md: what it quotes is what the code says, and what a user really reads stands there."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import numpy as np
import pytest

import shmserve
from shmserve import errors
from shmserve.client import (
    InferenceFailed,
    NoFreshAction,
    ObservationStale,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    ServiceRestarted,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
    SlotsExhausted,
    UnsupportedType,
    connection,
    send_inference_request,
)
from shmserve.client.action_chunks import ActionChunks
from shmserve.daemon.api import admin as admin_service
from shmserve.daemon.api import client as client_service
from tests.support.daemon_process import SHMSERVED, Daemon, environment
from tests.support.folders import REPOSITORY
from tests.support.gate import Gate

PAGE = (REPOSITORY / "docs/how-to/troubleshooting.md").read_text("utf-8")
#: Everything in the tables that is set as code, longest first: `...` stands for anything.
QUOTED = sorted(
    {text for row in PAGE.splitlines() if row.startswith("|") for text in re.findall(r"`([^`]+)`", row) if " " in text},
    key=len,
    reverse=True,
)


def is_on_the_page(text: str) -> bool:
    """Whether some quotation is part of the text."""
    return any(re.search(".+?".join(map(re.escape, quoted.split("..."))), text, re.DOTALL) for quoted in MESSAGES)


def constants(code: CodeType) -> Iterator[str]:
    """Every text that the compiled code holds, the parts of an f-string one by one."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from constants(constant)
        else:
            yield from (text for text in (constant if isinstance(constant, tuple) else [constant]) if type(text) is str)


def said_by_the_program() -> str:
    """Every text of every module, as Python has compiled it, and the sources of the C library with its texts in one piece."""
    found: list[str] = []
    for module in pkgutil.walk_packages(shmserve.__path__, "shmserve.", onerror=lambda name: None):
        spec = importlib.util.find_spec(module.name)
        # Not by the spec's own loader, which is pytest's for a module whose doctests run in the same process.
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            code = SourceFileLoader(module.name, spec.origin).get_code(module.name)
            found += constants(code) if code is not None else []
    found += [re.sub(r'"\s*\n\s*"', "", path.read_text()) for path in (REPOSITORY / "native/lib").glob("*.c")]
    return "\n".join(found)


def is_message(quoted: str) -> bool:
    """Whether it is what a program says, rather than a command or a setting."""
    commands = "shmserve-admin|shmserved|journalctl|usermod|docker|tar|python|loginctl|ls|with|install-service"
    return not re.match(rf"({commands}|group_clients = true|ActionChunks|client\.)\b|-", quoted)


MESSAGES = [quoted for quoted in QUOTED if is_message(quoted)]


def test_every_text_on_the_page_is_one_that_the_program_says() -> None:
    said = said_by_the_program()
    assert len(said) > 100_000
    # What was put into an f-string, where the page shows an example.
    put_in = {"max_clients = 1000", "(file", "environment SHMSERVE_MAX_CLIENTS=", "must be integer"}
    put_in |= {
        "UnsupportedType",
        "action[",
        "observation[",
        "load failed",
        "warm up failed",
        "swap failed",
        "load_s =",
        "TimeoutError",
    }
    put_in |= {"killed by SIGKILL", "model.toml", "not a key of [model]", "model.pt2", "kernel takes 107"}
    missing = []
    for quoted in MESSAGES:
        for part in re.split(r"'?\.\.\.'?", quoted):
            words = [word for word in re.split(r"[:;] ", part) if not any(known in word for known in put_in)]
            missing += [(quoted, word) for word in words if word.strip(" :,.'[]()") not in said]

    assert missing == []


def test_every_error_and_every_reason_of_a_refusal_is_on_the_page() -> None:
    # A package's errors are told by shmserve-admin and the daemon's log, without the type's name.
    described = {ShmServeError, errors.RequestRejected, errors.ModelPackageError}
    types = {found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ShmServeError)}
    described_reasons = admin_service.DESCRIPTION + client_service.DESCRIPTION
    reasons = " ".join(re.findall(r"`reason` is (?:one of )?([\w, \n#]+)\.", described_reasons))

    assert {found.__name__ for found in types - described} <= set(re.findall(r"`(\w+)`", PAGE))
    assert set(re.findall(r"\w+", reasons)) - {"or"} <= set(re.findall(r"`(\w+)`", PAGE))


@pytest.fixture(scope="module")
def strict() -> Iterator[Daemon]:
    """A daemon that refuses much."""
    daemon = Daemon("obedient", config="max_clients = 3\nmax_channel_bytes = 4194304\ntrusted_uids = []\n")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def robot(strict: Daemon) -> Iterator[ShmClient]:
    with strict.client(slots=3, max_retries=0) as client:
        yield client


_ITSELF: list[object] = []
_ITSELF.append(_ITSELF)


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (UnsupportedType, object()),
        (UnsupportedType, np.array([object()])),
        (UnsupportedType, {(3,): "x"}),
        (UnsupportedType, _ITSELF),
        (errors.ObservationTooLarge, np.zeros(4_000_000, np.uint8)),
    ],
    ids=["object", "dtype", "key", "itself", "large"],
)
def test_a_refused_observation_is_on_the_page(robot: ShmClient, error: type[Exception], value: object) -> None:
    with pytest.raises(error) as raised:
        robot.infer({"do": "echo", "value": value})

    assert isinstance(raised.value, RequestRejected)
    assert is_on_the_page(str(raised.value)), raised.value


@pytest.mark.parametrize(
    "wish",
    [{"do": "raise", "text": "no cup"}, {"do": "unsupported"}, {"do": "grow", "items": 1_000_000, "value": 3}],
    ids=["raised", "unsupported", "large result"],
)
def test_a_failing_model_is_on_the_page(robot: ShmClient, wish: dict[str, object]) -> None:
    with pytest.raises(InferenceFailed) as raised:
        robot.infer(wish)

    assert is_on_the_page(str(raised.value)), raised.value


def test_requests_that_did_not_run_are_on_the_page(robot: ShmClient, gate: Gate) -> None:
    inside = robot.submit(gate.observation)
    gate.wait_entered()
    stale = robot.submit({"do": "count"}, max_age=0.0)
    cancelled = robot.submit({"do": "count"})
    cancelled.cancel()
    with pytest.raises(SlotsExhausted) as full:
        robot.submit({"do": "count"}, timeout=0.05)
    gate.open()
    inside.result()
    for pending, error in ((stale, ObservationStale), (cancelled, RequestCancelled)):
        with pytest.raises(error) as raised:
            pending.result()
        assert is_on_the_page(str(raised.value)), raised.value
    assert is_on_the_page(str(full.value)), full.value


def test_requests_that_came_too_late_are_on_the_page(strict: Daemon, gate: Gate) -> None:
    robot = strict.client(slots=4)
    inside = robot.submit(gate.observation)
    gate.wait_entered()
    with pytest.raises(RequestTimeout) as timeout:
        robot.infer({"do": "count"}, timeout=0.05)
    older = robot.submit({"do": "count"})
    newer = robot.submit({"do": "count"}, supersede=True)
    gate.open()
    inside.result()
    with pytest.raises(RequestSuperseded) as superseded:
        older.result()
    newer.result()
    robot.close()
    for found in (timeout, superseded):
        assert is_on_the_page(str(found.value)), found.value


def test_a_client_that_gets_no_channel_reads_what_is_on_the_page(
    strict: Daemon, robot: ShmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with strict.client(max_retries=0) as second, strict.client(max_retries=0) as third:
        assert second is not third
        with pytest.raises(ServiceUnavailable) as crowded:
            strict.client(max_retries=0).connect()
    monkeypatch.setattr(connection, "WIRE_VERSION", 99)
    with pytest.raises(ProtocolMismatch) as mismatch:
        strict.client(max_retries=0).connect()
    with pytest.raises(ServiceUnavailable) as nobody:
        ShmClient("nobody", runtime_dir=strict.runtime_dir, max_retries=0).connect()
    with pytest.raises(RuntimeError) as called:
        send_inference_request({"x": 1}, name="no-such-service", timeout=0.1, max_retries=0)
    with (
        ActionChunks(
            ShmClient("nobody", runtime_dir=strict.runtime_dir, max_retries=0),
            steps=2,
            period=None,
            max_wait=0.05,
            fallback="hold",
        ) as chunks,
        pytest.raises(NoFreshAction) as chunkless,
    ):
        chunks.step({"x": 1})
    for found in (crowded, mismatch, nobody, called, chunkless):
        assert is_on_the_page(str(found.value)), found.value


@pytest.mark.parametrize(
    "make",
    [
        lambda: ShmClient("a/b"),
        lambda: ShmClient(slots=0),
        lambda: ShmClient(timeout=-1),
        lambda: ShmClient(max_retries=-1),
        lambda: ShmClient(spin_us="often"),  # type: ignore[arg-type]
        lambda: ShmClient().submit({}, capture_time=time.time() + 1e9),
    ],
    ids=["name", "slots", "timeout", "retries", "spin", "capture time"],
)
def test_an_argument_that_cannot_be_is_on_the_page(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError) as raised:
        make()

    assert is_on_the_page(str(raised.value)), raised.value


_BAD_STARTS = {
    "no such model": (["--model-path", "nowhere"], {}, 78),
    "an empty folder": (["--model-path", "."], {}, 78),
    "an unknown key": (["--config", "bad.toml"], {}, 78),
    "no such file": (["--config", "none.toml"], {}, 78),
    "a limit": ([], {"SHMSERVE_MAX_CLIENTS": "1000"}, 78),
    "a number": ([], {"SHMSERVE_MAX_CLIENTS": "many"}, 78),
    "nothing was served": ([], {}, 78),
    "a long path": (["--runtime-dir", "x" * 120], {}, 1),
}


@pytest.mark.parametrize("start", _BAD_STARTS)
def test_a_daemon_that_does_not_start_says_what_is_on_the_page(start: str, tmp_path: Path) -> None:
    arguments, variables, status = _BAD_STARTS[start]
    (tmp_path / "bad.toml").write_text("devise = 'cpu'\n")

    ended = subprocess.run(
        [SHMSERVED, "--state-dir", "s", *([] if "--runtime-dir" in arguments else ["--runtime-dir", "r"]), *arguments],
        cwd=tmp_path,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == status
    assert is_on_the_page(ended.stderr.splitlines()[-1]), ended.stderr


def test_a_killed_daemon_and_a_closed_client_are_on_the_page(strict: Daemon, robot: ShmClient, gate: Gate) -> None:
    waiting = robot.submit(gate.observation)
    gate.wait_entered()
    strict.kill9()  # the last test of this file that needs it
    with pytest.raises(ServiceRestarted) as restarted:
        waiting.result()
    robot.close()
    with pytest.raises(errors.ClientClosed) as closed:
        robot.infer({"do": "count"})

    for found in (restarted, closed):
        assert is_on_the_page(str(found.value)), found.value
