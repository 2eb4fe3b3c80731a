"""Arguments that have no meaning: each is refused where it is given, with one type and with what is allowed."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import InvalidArgument, ShmClient, ShmServeError, send_inference_request
from shmserve.client.action_chunks import ActionChunks
from shmserve.client.arguments import seconds
from shmserve.client.compat.gr00t import PolicyClient
from shmserve.client.compat.openpi import WebsocketClientPolicy
from shmserve.client.pending import Pending
from tests.support.client_parts import in_loop

NO_TIMES: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    -1.0,
    -1e-9,
    1e9,
    "3",
    b"3",
    [],
    None,
    1j,
    True,
    np.nan,
    np.arange(3),
]


@pytest.fixture
def client(tmp_path: Path) -> ShmClient:
    """Of a service that is not there: what is refused is refused before that is found out."""
    return ShmClient("arm", runtime_dir=tmp_path, max_retries=0)


@pytest.fixture
def pending(client: ShmClient) -> Pending:
    return Pending(client._pipeline.control, 0, 0)


def chunks(client: ShmClient, **settings: Any) -> ActionChunks:
    defaults: dict[str, Any] = {"steps": 2, "period": 0.02, "max_wait": 0.0, "fallback": "hold"}
    return ActionChunks(client, **{**defaults, **settings})


#: Each takes a client and a time. None means "the client's own" where a call takes a timeout.
OPTIONAL: dict[str, Callable[[ShmClient, Any], Any]] = {
    "infer": lambda client, time: client.infer({}, timeout=time),
    "infer, its age": lambda client, time: client.infer({}, max_age=time),
    "infer in a loop": lambda client, time: asyncio.run(in_loop(client).infer({}, timeout=time)),
    "infer in a loop, its age": lambda client, time: asyncio.run(in_loop(client).infer({}, max_age=time)),
    "submit": lambda client, time: client.submit({}, timeout=time),
    "submit, its age": lambda client, time: client.submit({}, max_age=time),
    "loan": lambda client, time: client.loan({}, timeout=time),
    "loan, its age": lambda client, time: client.loan({}, max_age=time),
    "reset": lambda client, time: client.reset(timeout=time),
    "connect": lambda client, time: client.connect(timeout=time),
    "the one function": lambda client, time: send_inference_request({}, "arm", timeout=time),
    "a step's wait": lambda client, time: chunks(client).step({}, max_wait=time),
    "connect_timeout": lambda client, time: WebsocketClientPolicy("shm://arm", connect_timeout=time),
}
REQUIRED: dict[str, Callable[[ShmClient, Any], Any]] = {
    "ShmClient": lambda client, time: ShmClient("arm", timeout=time),
    "retry_delay": lambda client, time: ShmClient("arm", retry_delay=time),
    "the one function's delay": lambda client, time: send_inference_request({}, "arm", retry_delay=time),
    "max_wait": lambda client, time: chunks(client, max_wait=time),
    "repeat_last": lambda client, time: chunks(client, fallback="repeat_last", max_age=time),
    "openpi": lambda client, time: WebsocketClientPolicy("shm://arm", timeout=time),
    "GR00T": lambda client, time: PolicyClient("shm://arm", timeout_ms=time),
}


@pytest.mark.parametrize(
    ("call", "time"),
    [(call, time) for call in (*OPTIONAL, *REQUIRED) for time in NO_TIMES if time is not None or call in REQUIRED],
    ids=repr,
)
def test_an_invalid_time_is_refused_in_every_argument(client: ShmClient, call: str, time: Any) -> None:
    with pytest.raises(InvalidArgument) as raised:
        {**OPTIONAL, **REQUIRED}[call](client, time)

    assert isinstance(raised.value, (ShmServeError, ValueError, TypeError))


@pytest.mark.parametrize("time", [value for value in NO_TIMES if value is not None], ids=repr)
def test_an_invalid_timeout_of_a_result_is_refused(pending: Pending, time: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout = "):
        pending.result(time)


@pytest.mark.parametrize("time", [math.nan, math.inf, -1.0, 1e12, "3", [], True], ids=repr)
@pytest.mark.parametrize("way", ["infer", "submit", "loan", "infer in a loop", "step"])
def test_an_invalid_capture_time_is_refused(client: ShmClient, way: str, time: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "infer": lambda: client.infer({}, capture_time=time),
        "submit": lambda: client.submit({}, capture_time=time),
        "loan": lambda: client.loan({}, capture_time=time),
        "infer in a loop": lambda: asyncio.run(in_loop(client).infer({}, capture_time=time)),
        "step": lambda: chunks(client).step({}, capture_time=time),
    }
    with pytest.raises(InvalidArgument, match="capture_time"):
        calls[way]()


@pytest.mark.parametrize("time", [3, 3.0, np.float32(3), np.int64(3), np.array(3.0), Fraction(3)], ids=repr)
def test_a_time_may_be_a_number_of_any_type(time: Any) -> None:
    assert seconds("timeout", time) == 3.0


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 0},
        {"slots": "4"},
        {"slots": 2.5},
        {"slots": None},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": "3"},
        {"spin_us": "often"},
        {"spin_us": None},
        {"spin_us": math.nan},
        {"rate": "50"},
        {"rate": True},
        {"rate": math.nan},
        {"rate": math.inf},
        {"rate": 0},
        {"rate": -50.0},
        {"rate": 100_001},
        {"runtime_dir": 3},
        {"name": 3},
        {"name": None},
        {"name": ""},
        {"name": "../arm"},
    ],
    ids=str,
)
def test_a_setting_without_a_meaning_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        ShmClient(**settings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("http://localhost:5000/inference", "a URL"),
        ("ws://0.0.0.0:8000", "a URL"),
        ("shm://arm", "a URL"),
        ("localhost:5000", "a host and port"),
        ("192.168.1.20:8000", "a host and port"),
        ("/run/shmserve/arm", "a path"),
        ("./arm", "a path"),
    ],
)
def test_a_name_that_is_an_address_is_told_what_a_name_is(name: str, kind: str) -> None:
    for make in (lambda: ShmClient(name), lambda: send_inference_request({}, name)):
        with pytest.raises(InvalidArgument, match=f"is {kind}: give the name of a service of this host, .*'default'"):
            make()


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"steps": "8"}, {"prefetch": 2}, {"overrun_steps": -1}, {"period": 0}, {"period": "1"},
                 {"period": math.nan}, {"fallback": "stop"}, {"max_age": 1.0}], ids=str,
)  # fmt: skip
def test_settings_of_chunks_without_a_meaning_are_refused(client: ShmClient, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        chunks(client, **settings)


def test_other_arguments_without_a_meaning_are_refused(client: ShmClient, pending: Pending) -> None:
    for call in (
        lambda: client.on_model_change(None),  # type: ignore[arg-type]
        lambda: pickle.dumps(client),
        lambda: pickle.dumps(pending),
        lambda: PolicyClient(None),  # type: ignore[arg-type]
        lambda: PolicyClient("shm://"),
        lambda: WebsocketClientPolicy("unix:relative"),
    ):
        with pytest.raises(InvalidArgument):
            call()
