"""How a C client finds its service, whom it believes, and what it does when the daemon goes away."""

from __future__ import annotations

import ctypes
import os
import re
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmserve.client import ForeignService, ServiceUnavailable, ShmClient
from shmserve.directories import service_directory
from shmserve.layout import COUNTER_OFFSET, WORD, sequence_of
from tests.support import c_client
from tests.support.c_client import CClient, CError, mapping_of
from tests.support.c_library import compile_program, library
from tests.support.c_trees import entries_of
from tests.support.daemon_process import Daemon, wait_until
from tests.support.example_program import output_of
from tests.support.folders import SUPPORT
from tests.support.gate import Gate
from tests.support.stranger_process import UID, Stranger, needs_root

_IN_C = ("runtime_dir or SHMSERVE_RUNTIME_DIR", "runtime_dir= or SHMSERVE_RUNTIME_DIR")


@pytest.fixture(autouse=True)
def built() -> None:
    library()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files as /tmp is, and no other place for a runtime directory."""
    folder = Path(tempfile.mkdtemp(prefix="shmserve-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    for name in ("XDG_RUNTIME_DIR", "SHMSERVE_RUNTIME_DIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def refusal_of(*arguments: object, **settings: object) -> CError:
    with pytest.raises(CError) as raised:
        CClient(*arguments, timeout=1.0, max_retries=0, **settings)  # type: ignore[arg-type]
    return raised.value


def words_of_python(error: Exception) -> str:
    return str(error).replace(_IN_C[1], _IN_C[0])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, None),
        ({"XDG_RUNTIME_DIR": "{}/xdg"}, None),
        ({"XDG_RUNTIME_DIR": ""}, None),
        ({"XDG_RUNTIME_DIR": "{}/xdg", "SHMSERVE_RUNTIME_DIR": "{}/own"}, None),
        ({"SHMSERVE_RUNTIME_DIR": ""}, None),
        ({"SHMSERVE_RUNTIME_DIR": "{}/own"}, "{}/given"),
        ({"SHMSERVE_RUNTIME_DIR": "{}/own/"}, None),
        ({"SHMSERVE_RUNTIME_DIR": "/"}, None),
        ({"TMPDIR": "{}/absent"}, None),
        ({"TMPDIR": ""}, None),
    ],
)
def test_a_service_is_looked_for_where_python_looks(
    bare: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(bare))
    flag = None if named is None else Path(named.format(bare))
    expected = service_directory("nobody-serves-this", flag) / "client.sock"

    error = refusal_of("nobody-serves-this", flag)

    assert error.status == c_client.UNAVAILABLE
    assert f"no daemon serves 'nobody-serves-this' at {expected}: start one" in error.text
    with pytest.raises(ServiceUnavailable) as raised:
        ShmClient("nobody-serves-this", runtime_dir=flag, max_retries=0).connect()
    assert error.text == words_of_python(raised.value)


def test_the_text_of_a_failed_open_outlives_its_client(bare: Path) -> None:
    error = refusal_of("nobody-serves-this", bare)

    assert c_client.functions().last_error(None).decode() == error.text != ""


def test_a_path_that_no_socket_can_have_is_refused(bare: Path) -> None:
    error = refusal_of("t", bare / ("x" * 100))

    assert error.status == c_client.ARGUMENT
    assert "the kernel takes 107" in error.text


def test_an_unavailable_service_is_tried_again_until_it_is_there(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo")
    daemon.spawn()
    with CClient.of(daemon, timeout=60.0, max_retries=1000, retry_delay_ns=50_000_000) as client:
        daemon.wait_ready()

        assert client.infer({"a": 1}) == {"a": 1}


@needs_root
def test_a_stranger_s_daemon_in_the_usual_place_is_sent_nothing(bare: Path) -> None:
    with Stranger("squatter", UID, bare / "shmserve-0" / "t") as stranger:
        assert stranger.says() == "serves"
        error = refusal_of("t")
        with pytest.raises(ForeignService) as raised:
            ShmClient("t", max_retries=0).connect()

        assert error.status == c_client.FOREIGN
        assert error.text == words_of_python(raised.value)
        assert f"belongs to uid {UID}, expected uid 0 (root)" in error.text
        with CClient("t", bare / "shmserve-0") as client:
            client.check(client.calls.alive(client.handle))
        assert "Attach" in stranger.says()


@needs_root
def test_a_directory_that_others_may_change_is_refused(bare: Path) -> None:
    (bare / "shmserve-0/t").mkdir(parents=True)
    (bare / "shmserve-0").chmod(0o777)

    error = refusal_of("t")

    assert error.status == c_client.FOREIGN
    with pytest.raises(ForeignService) as raised:
        ShmClient("t", max_retries=0).connect()
    assert error.text == words_of_python(raised.value)


# The daemon goes away


def test_a_stopped_daemon_ends_a_wait_at_its_deadline_and_answers_when_it_goes_on(obedient: Daemon) -> None:
    with CClient.of(obedient) as client:
        assert client.infer({"do": "echo", "value": 1}) == 1
        engine = obedient.engine_pid
        os.kill(engine, signal.SIGSTOP)
        try:
            obedient.signal(signal.SIGSTOP)
            sequence = client.submit({"do": "echo", "value": 2})
            before_ns = time.monotonic_ns()
            with pytest.raises(CError) as raised:
                client.head(sequence, 0.3)
            waited_ns = time.monotonic_ns() - before_ns
        finally:
            os.kill(engine, signal.SIGCONT)
            obedient.signal(signal.SIGCONT)

        assert raised.value.status == c_client.TIMEOUT
        assert waited_ns >= 300_000_000
        assert client.result(sequence) == 2


def test_a_daemon_that_was_killed_is_noticed_and_recovered_from(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient")
    with CClient.of(daemon) as client:
        schema = client.declare(list(entries_of({"do": "echo", "value": 1})))
        answered = client.submit({"do": "echo", "value": 1})
        wait_until("it is answered", lambda: client.head(answered))
        running = client.submit(gate.observation)
        gate.wait_entered()
        daemon.kill9()

        with pytest.raises(CError) as raised:
            client.head(running)
        assert raised.value.status == c_client.RESTARTED
        assert "shmserve_recover" in raised.value.text
        for call in (client.calls.alive(client.handle), client.calls.expect(client.handle, 0)):
            assert call == c_client.RESTARTED
        with pytest.raises(CError):
            client.loan(schema)
        gate.open()
        daemon.start()
        client.recover()

        with pytest.raises(CError) as raised:
            client.head(running)
        assert raised.value.status == c_client.ENDED
        request = client.loan(schema, [4])
        client.fill(request, list(entries_of({"do": "echo", "value": 7})))
        client.publish(request.sequence)
        assert client.result(request.sequence) == 7
        assert request.sequence > running


def test_a_program_that_only_looks_notices_the_daemon_s_end_and_reads_the_reply_that_came_before(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient")
    with CClient.of(daemon) as client, CClient.of(daemon) as other:
        first = other.submit({"do": "echo", "value": 5})
        other.result(other.submit({"do": "echo", "value": 6}))
        client.infer({"do": "echo", "value": 6})
        sequence = client.submit(gate.observation)
        gate.wait_entered()

        def look() -> int:
            return int(client.calls.wait(client.handle, sequence, 0, None))

        assert look() == c_client.TIMEOUT
        daemon.kill9()
        wait_until("a look notices it", lambda: look() != c_client.TIMEOUT)

        assert look() == c_client.RESTARTED and "went away" in client.last_error
        wait_until("it is noticed", lambda: other.calls.alive(other.handle) == c_client.RESTARTED)
        assert other.result(first) == 5


def test_looks_ask_for_the_daemon_s_end_now_and_then(obedient: Daemon, gate: Gate) -> None:
    program = compile_program(SUPPORT / "c_programs/looker.c")

    said = output_of(program, obedient.runtime_dir, obedient.name, gate.path, 200_000)

    polls, most = (int(number) for number in re.findall(r"\d+", said))
    assert 1 <= polls <= most < 200_000


def test_descriptors_for_a_loop_of_events(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo", arguments=("--transport", "sealed"))
    reply, lease = ctypes.c_int(), ctypes.c_int()
    with CClient.of(daemon) as client:
        client.check(client.calls.pollable(client.handle, ctypes.byref(reply), ctypes.byref(lease)))
        poll = select.poll()
        poll.register(reply.value, select.POLLIN)
        poll.register(lease.value, select.POLLRDHUP)
        for number in range(5):
            sequence = client.submit({"a": number})
            status = c_client.TIMEOUT
            while status == c_client.TIMEOUT:
                assert poll.poll(30_000) == [(reply.value, select.POLLIN)]
                status = client.calls.wait(client.handle, sequence, 0, None)

            assert status == c_client.OK, client.last_error
        daemon.kill9()

        assert any(fd == lease.value for fd, _ in poll.poll(30_000))


def test_a_named_channel_has_no_descriptor_of_replies(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo", arguments=("--transport", "named"))
    reply, lease = ctypes.c_int(), ctypes.c_int()
    with CClient.of(daemon) as client:
        client.check(client.calls.pollable(client.handle, ctypes.byref(reply), ctypes.byref(lease)))

        assert reply.value == -1 and lease.value >= 0


def test_a_forked_child_is_told_to_open_its_own_client(echo: Daemon) -> None:
    with CClient.of(echo) as client:
        schema = client.declare(list(entries_of({"a": 1})))
        child = os.fork()
        if not child:
            request = ctypes.POINTER(c_client.CRequest)()
            statuses = (
                client.calls.loan(client.handle, schema, None, ctypes.byref(request)),
                client.calls.recover(client.handle, 0),
                client.calls.alive(client.handle),
            )
            client.calls.close(client.handle)
            os._exit(0 if statuses == (c_client.FORKED,) * 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        assert client.infer({"a": 2}) == {"a": 2}


def test_an_evicted_client_is_told_why(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo", arguments=("--transport", "sealed"))
    with CClient.of(daemon) as client:
        client.infer({"a": 0})  # an engine that opens the channel later would begin to count at what follows
        request = client.lend({"a": 1})
        client.publish(request.sequence)
        memory = mapping_of(request.payload)
        memory[COUNTER_OFFSET : COUNTER_OFFSET + WORD] = sequence_of(1000, 0).to_bytes(WORD, "little")

        def evicted() -> bool:
            client.calls.expect(client.handle, 0)
            return bool(client.calls.alive(client.handle) == c_client.EVICTED)

        wait_until("it is evicted", evicted)

        assert "serves this process no more: " in client.last_error
        with pytest.raises(CError) as raised:
            client.recover()
        assert raised.value.status == c_client.EVICTED


def test_clients_and_their_channels_leave_no_descriptor(echo: Daemon) -> None:
    def open_once() -> None:
        with CClient.of(echo) as client:
            client.infer({"a": b"x" * 200_000})

    open_once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_once()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_may_lock_its_memory(echo: Daemon) -> None:
    def locked_kib() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
        return int(line.split()[1])

    before = locked_kib()
    try:
        with CClient.of(echo, lock_memory=1) as client:
            assert client.infer({"a": 1}) == {"a": 1}
            assert locked_kib() > before
    except CError as error:
        assert error.status == c_client.MEMORY and "ulimit -l" in error.text
