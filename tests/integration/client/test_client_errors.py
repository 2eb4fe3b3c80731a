"""Whatever keeps a client from its service, or an observation from its slot, is a ShmServeError that says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest
import torch

from shmserve.client import (
    InvalidArgument,
    OutOfMemory,
    ProtocolMismatch,
    RequestRejected,
    RequestTimeout,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
)
from shmserve.client.action_chunks import ActionChunks
from tests.support.client_parts import connection_of, in_loop
from tests.support.daemon_process import Daemon, wait_until
from tests.support.event_loop import run
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


@pytest.fixture
def folder() -> Iterator[Path]:
    """A runtime directory with a short name, and the directory of service `arm` in it."""
    with tempfile.TemporaryDirectory(prefix="shmserve-") as name:
        (Path(name) / "arm").mkdir()
        yield Path(name)


@pytest.fixture
def lone(echo: Daemon) -> Iterator[ShmClient]:
    """A client that has not attached yet, and tries once."""
    with contextlib.closing(echo.client(max_retries=0)) as client:
        yield client


def client_of(folder: Path, **settings: Any) -> ShmClient:
    return ShmClient("arm", runtime_dir=folder, **{"max_retries": 0, "timeout": 20.0, **settings})


@contextmanager
def answering(folder: Path, *answers: bytes | dict[str, Any], descriptors: int = 0) -> Iterator[None]:
    """A service that answers each call of a client with the next of these, and then hangs up."""

    def serve() -> None:
        with suppress(OSError), listener:
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    for answer in answers:
                        if not connection.recv(65536):
                            break
                        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\0"
                        socket.send_fds(connection, [data], [2] * descriptors)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "arm" / "client.sock"))
    listener.listen()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def channel_info(**changes: Any) -> dict[str, Any]:
    names = dict.fromkeys(("requests", "replies", "request_bell", "reply_bell"), "/shmserve-test-none")
    fields = {"identity": {"epoch": 1, "channel": 1, "generation": 1}, "names": names, **changes}
    return {"parameters": {"channel_info": fields, "trusted": True, "state": "ready"}}


_NONSENSE: dict[str, bytes | dict[str, Any]] = {
    "no JSON": b"hello\0",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n\0",
    "a list": b"[]\0",
    "too long": b"x" * 70_000,
    "nothing in it": {},
    "no channel": {"parameters": {"channel_info": None}},
    "a channel of text": {"parameters": {"channel_info": "channel_info"}},
    "half a channel": {"parameters": {"channel_info": {"names": None}}},
    "an identity of text": channel_info(identity={"epoch": "x", "channel": 1, "generation": 1}),
    "an identity too many": channel_info(identity={"epoch": 1, "channel": 1, "generation": 1, "more": 1}),
    "names that are numbers": channel_info(
        names=dict.fromkeys(("requests", "replies", "request_bell", "reply_bell"), 3)
    ),
    "a name with a NUL": channel_info(
        names=dict.fromkeys(("requests", "replies", "request_bell", "reply_bell"), "/a\0b")
    ),
    "a name too long": channel_info(
        names=dict.fromkeys(("requests", "replies", "request_bell", "reply_bell"), "/" + "a" * 999)
    ),
    "no descriptors": channel_info(names=None),
}


@pytest.mark.parametrize("answer", _NONSENSE)
def test_a_daemon_that_answers_nonsense_is_a_typed_error(folder: Path, answer: str) -> None:
    with answering(folder, _NONSENSE[answer]), pytest.raises((ProtocolMismatch, ServiceUnavailable)) as raised:
        client_of(folder).infer({"x": 1})

    assert "'arm'" in str(raised.value)


@pytest.mark.usefixtures("no_descriptor_is_left")
@pytest.mark.parametrize("descriptors", [1, 2, 4, 5])
def test_descriptors_that_are_no_channel_are_a_typed_error_and_closed(folder: Path, descriptors: int) -> None:
    with answering(folder, channel_info(names=None), descriptors=descriptors), pytest.raises(ShmServeError):
        client_of(folder).infer({"x": 1})


@pytest.mark.parametrize(
    "error",
    [
        {"error": "io.shmserve.Client.Refused"},
        {"error": "io.shmserve.Client.Refused", "parameters": {"reason": "too_large"}},
        {"error": "io.shmserve.Client.Refused", "parameters": {"reason": "evicted"}},
        {"error": "io.shmserve.Client.ProtocolMismatch"},
        {"error": "org.varlink.service.PermissionDenied"},
        {"error": "org.example.Else", "parameters": {"x": [1]}},
    ],
    ids=str,
)
def test_a_refusal_that_says_less_than_it_should_is_a_typed_error(folder: Path, error: dict[str, Any]) -> None:
    with answering(folder, error), pytest.raises(ShmServeError, match="'arm'"):
        client_of(folder).infer({"x": 1})


@pytest.mark.parametrize(
    "model",
    ["model", {}, {"version": "abc", "stateful": "no"}, {"version": "no hex", "stateful": False},
     {"version": "a", "stateful": False, "contract": "x"}], ids=str,
)  # fmt: skip
def test_a_daemon_that_describes_no_model_is_a_typed_error(lone: ShmClient, model: Any) -> None:
    attachment = connection_of(lone.connect())

    def describe(*arguments: object, **settings: object) -> Any:
        from shmserve.varlink import Reply as VarlinkReply

        return VarlinkReply({"service": "t", "state": "ready", "model": model})

    attachment._control.call = describe  # type: ignore[method-assign]
    with pytest.raises(ProtocolMismatch, match="an answer that cannot be read"):
        _ = lone.describe()


# The path


def test_a_path_too_long_for_a_socket_is_an_invalid_argument(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot be the socket of 'arm'.*107"):
        client_of(folder / ("d" * 120), max_retries=3).infer({"x": 1})


def test_a_path_other_than_a_socket_is_not_a_service(folder: Path) -> None:
    path = folder / "arm" / "client.sock"
    with ExitStack() as stack:
        makers: list[Callable[[], object]] = [
            path.touch,
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path),
        ]
        for make in makers:
            make()
            with pytest.raises(ServiceUnavailable, match="'arm'"):
                client_of(folder).infer({"x": 1})
            path.rmdir() if path.is_dir() else path.unlink()
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(path))
        with pytest.raises(ServiceUnavailable, match="'arm'"):
            client_of(folder).infer({"x": 1})
    (folder / "file").touch()
    with pytest.raises(ServiceUnavailable, match="say where it is"):
        client_of(folder / "file").infer({"x": 1})


# What the process may have


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """At most so many descriptors more, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in kept:
            os.close(descriptor)


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_a_client_without_descriptors_says_so_and_leaves_none_behind(echo: Daemon) -> None:
    ended: list[str] = []
    for count in range(10):
        client = echo.client(max_retries=0)
        with descriptors_left(count):
            try:
                client.infer({"x": np.zeros(4)})
                ended.append("answered")
            except ServiceUnavailable as error:
                ended.append("said" if "may open no more files" in str(error) else str(error))
            closing = threading.Thread(target=client.close)
            closing.start()
            closing.join()

    assert set(ended) == {"said", "answered"}, ended
    assert ended == sorted(ended, reverse=True)
    echo.forget_clients()


def test_a_client_without_descriptors_for_a_larger_channel_says_so_and_works_again(lone: ShmClient) -> None:
    lone.infer({"x": 1})
    with descriptors_left(0), pytest.raises(ServiceUnavailable):
        lone.infer({"x": np.zeros(1_000_000)})

    assert lone.infer({"x": np.zeros(1_000_000)})["x"].size == 1_000_000


@pytest.mark.parametrize(
    ("error", "typed"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (PermissionError(errno.EACCES, "Permission denied"), ServiceUnavailable),
        (OSError(errno.EIO, "Input/output error"), ServiceUnavailable),
        (ValueError("mmap length is greater than file size"), ProtocolMismatch),
    ],
    ids=repr,
)
def test_memory_that_cannot_be_mapped_is_a_typed_error(
    lone: ShmClient, monkeypatch: pytest.MonkeyPatch, error: Exception, typed: type[ShmServeError]
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", fail)
        with pytest.raises(typed, match="'t'"):
            lone.infer({"x": 1})
    assert lone.infer({"x": 1}) == {"x": 1}
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", fail)
        with pytest.raises(ShmServeError, match="'t'"):
            lone.infer({"x": np.zeros(1_000_000)})
    assert lone.infer({"x": 1}) == {"x": 1}


def test_shared_memory_that_may_not_be_opened_is_a_typed_error(
    lone: ShmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise posix_ipc.PermissionsError("Permission denied")

    monkeypatch.setattr(posix_ipc, "SharedMemory", fail)
    monkeypatch.setattr(posix_ipc, "Semaphore", fail)
    if os.environ.get("SHMSERVE_TEST_TRANSPORT") == "sealed":
        pytest.skip("transport sealed has no names")
    with pytest.raises(ServiceUnavailable, match="join the daemon's group"):
        lone.infer({"x": 1})


def test_a_process_without_threads_says_so(client: ShmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client.connect()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(ServiceUnavailable, match="awaiting a reply needs a thread"):
            run(in_loop(client).infer({"do": "echo", "value": 1}))
        chunks = ActionChunks(client, steps=1, period=None, max_wait=0.1, fallback="raise")
        with pytest.raises(ShmServeError, match="ActionChunks connects to the service in a thread"):
            chunks.step({"do": "echo", "value": 1})

    assert run(in_loop(client).infer({"do": "echo", "value": 1})) == 1


# The observation


class Failing:
    """An object whose pickling, or whose reading as an array, raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error

    def __array__(self, *arguments: Any, **settings: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("x"), MemoryError(), AttributeError("x"), KeyError("x")], ids=repr)
@pytest.mark.parametrize("way", ["infer", "submit", "loan", "check"])
def test_an_object_that_cannot_be_read_is_a_typed_error(client: ShmClient, way: str, error: Exception) -> None:
    observation = {"do": "echo", "value": Failing(error)}
    calls: dict[str, Callable[[], object]] = {
        "infer": lambda: client.infer(observation),
        "submit": lambda: client.submit(observation),
        "loan": lambda: client.loan(observation),
        "check": lambda: client.check(observation),
    }
    with suppress(ShmServeError):
        calls[way]()
    assert client.infer({"do": "echo", "value": 1}) == 1


def test_a_tensor_without_data_is_a_typed_error_by_every_way(client: ShmClient) -> None:
    full, meta = torch.ones(2), torch.ones(2, device="meta")
    for way in (client.infer, client.submit, client.loan):
        with pytest.raises(RequestRejected, match=r"tensor"):
            way({"do": "echo", "value": meta})
    for _ in range(6):  # until the structure is known
        client.infer({"do": "echo", "value": full})
    with pytest.raises(RequestRejected, match=r"tensor"):
        client.infer({"do": "echo", "value": meta})
    with client.loan({"do": "echo", "value": full}) as observation, pytest.raises(RequestRejected, match=r"tensor"):
        observation["value"] = meta
        observation.send()

    assert client.infer({"do": "echo", "value": 1}) == 1


def test_an_exception_of_a_signal_handler_while_an_observation_is_read_is_the_callers(client: ShmClient) -> None:
    class Stop(Exception):
        pass

    class Interrupting:
        def __reduce__(self) -> Any:
            raise Stop

    with pytest.raises((Stop, ShmServeError)):
        client.infer({"do": "echo", "value": Interrupting()})
    assert client.infer({"do": "echo", "value": 1}) == 1


def test_a_result_without_memory_is_a_typed_error_of_that_request(
    client: ShmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (client.submit({"do": "echo", "value": number}) for number in range(2))
    decoder = connection_of(client).decoder
    decode = decoder.decode
    failed: list[bool] = []

    def fail_once(*arguments: Any) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError("no room")
        return decode(*arguments)

    monkeypatch.setattr(decoder, "decode", fail_once)
    with pytest.raises(OutOfMemory, match="no memory for the result of request"):
        first.result()
    assert second.result() == 1


# A service that is loading


@pytest.mark.long
def test_a_timeout_while_the_service_is_loading_says_so(
    make_daemon: Callable[..., Daemon], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE", gate.observation["gate"])
    daemon = make_daemon("slow_start")
    daemon.spawn()
    gate.wait_entered()
    client = daemon.client()

    loading = r"the service is loading its model \(state '\w+'\), shmserve-admin wait-ready waits for it"
    with pytest.raises(RequestTimeout, match=loading):
        client.infer({"value": 1}, timeout=2.0)
    with pytest.raises(RequestTimeout, match=loading):
        run(in_loop(client).infer({"value": 1}, timeout=2.0))
    with pytest.raises(RequestTimeout, match="goes on until its deadline"):
        client.submit({"value": 1}).result(0.05)
    gate.open()
    daemon.wait_ready()
    assert client.infer({"value": 1}) == 1

    # Its engine dies, and the next one loads; the client has known a model since.
    gate.path.unlink()
    os.kill(daemon.engine_pid, 9)
    wait_until("the next engine is started", lambda: daemon.status()["state"] == "loading")
    with pytest.raises(RequestTimeout, match=loading):
        client.infer({"value": 1}, timeout=2.0)
    gate.open()
    daemon.wait_ready()
    assert client.infer({"value": 1}) == 1


def test_a_timeout_of_a_service_that_is_ready_says_nothing_of_loading(client: ShmClient, gate: Gate) -> None:
    with pytest.raises(RequestTimeout) as raised:
        client.infer(gate.observation, timeout=1.0)
    gate.open()

    assert "loading" not in str(raised.value)
