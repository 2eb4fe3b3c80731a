"""Log lines: one entry with fields in the journal, priorities on its stream, plain on a terminal, never a flood."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.daemon.host.logging import SERVING, JournalHandler, RateLimit
from shmserve.errors import InferenceFailed
from tests.support.daemon_process import SHMSERVED, Daemon, environment, wait_until
from tests.support.own_mounts import needs_mounts, seeing


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """What journald listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(30.0)
        yield listener


@pytest.fixture
def log(tmp_path: Path, journal: socket.socket) -> Iterator[logging.Logger]:
    handler = JournalHandler("engine", tmp_path / "journal")
    logger = logging.Logger("test")  # noqa: LOG001  not among the program's own
    logger.addHandler(handler)
    yield logger
    handler.close()


def entry(message: bytes) -> dict[str, bytes]:
    """The fields of one datagram, read as systemd documents the protocol."""
    fields = {}
    while message:
        line, _, message = message.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            (size,) = struct.unpack_from("<Q", message)
            value, message = message[8 : 8 + size], message[8 + size + 1 :]
        fields[name.decode()] = value
    return fields


def test_an_entry_has_its_priority_its_message_id_and_where_it_comes_from(
    log: logging.Logger, journal: socket.socket
) -> None:
    log.warning("three = %d", 3, extra={"message_id": SERVING})

    fields = entry(journal.recv(65536))
    assert (fields["MESSAGE"], fields["PRIORITY"]) == (b"engine: three = 3", b"4")
    assert fields["MESSAGE_ID"] == SERVING.encode()
    assert fields["SHMSERVE_PROCESS"] == b"engine"
    assert fields["CODE_FILE"].endswith(b"test_logs.py")


def test_a_traceback_is_one_entry(log: logging.Logger, journal: socket.socket) -> None:
    try:
        raise LookupError("in the model")
    except LookupError:
        log.exception("it failed")

    fields = entry(journal.recv(65536))
    assert fields["MESSAGE"].startswith(b"engine: it failed\nTraceback")
    assert fields["MESSAGE"].endswith(b"LookupError: in the model")
    assert fields["PRIORITY"] == b"3"


def test_an_entry_that_the_journal_refuses_goes_to_the_stream(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journal").unlink()

    log.error("one\ntwo")

    assert capsys.readouterr().err == "<3>engine: one\n<3>two\n"


#: What a daemon says that is given no model and has served none, and ends.
_NO_MODEL = "no model was served before in {}: give --model-path DIR, or model_path in the configuration file"


def idle_daemon(folder: Path) -> list[str | Path]:
    """The command of a daemon that ends at once, with a line in its log."""
    return [SHMSERVED, "--name", "t", "--runtime-dir", folder / "r", "--state-dir", folder / "s"]


def on_the_journal_s_stream(command: list[str], stream: int) -> subprocess.CompletedProcess[bytes]:
    """Run it with standard error where systemd says that the journal reads."""
    found = os.fstat(stream)
    variables = {**environment(), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    return subprocess.run(command, env=variables, stderr=stream, timeout=60, check=False)


def test_a_journal_stream_that_was_inherited_but_is_not_stderr_gets_no_priorities(tmp_path: Path) -> None:
    variables = {**environment(), "JOURNAL_STREAM": "9:1"}

    result = subprocess.run(
        idle_daemon(tmp_path), env=variables, capture_output=True, text=True, timeout=60, check=False
    )

    assert result.stderr.endswith(f" ERROR   shmserved: {_NO_MODEL.format(tmp_path / 's/t/models')}\n")


@needs_mounts
def test_stderr_that_is_the_journal_s_stream_gets_priorities_where_no_journal_listens(tmp_path: Path) -> None:
    # Over the socket of a machine that has one, a file that is none.
    (tmp_path / "run" / "systemd" / "journal").mkdir(parents=True)
    (tmp_path / "run" / "systemd" / "journal" / "socket").touch()
    read, write = os.pipe()

    ended = on_the_journal_s_stream(seeing({"/run": tmp_path / "run"}, idle_daemon(tmp_path)), write)

    os.close(write)
    with os.fdopen(read) as stream:
        assert stream.read().endswith(f"<3>shmserved: {_NO_MODEL.format(tmp_path / 's/t/models')}\n")
    assert ended.returncode == 78


@needs_mounts
def test_the_daemon_s_lines_in_the_journal_are_their_text_alone() -> None:
    # Not pytest's folder: the path of a Unix socket has room for 107 bytes.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        run = Path(folder) / "run"
        (run / "systemd" / "journal").mkdir(parents=True)
        journal.bind(str(run / "systemd" / "journal" / "socket"))
        journal.settimeout(30.0)
        with open(os.devnull, "wb") as stream:
            ended = on_the_journal_s_stream(seeing({"/run": run}, idle_daemon(Path(folder))), stream.fileno())

        told = [entry(journal.recv(65536))]
        while b"no model" not in told[-1]["MESSAGE"]:
            told.append(entry(journal.recv(65536)))

    assert ended.returncode == 78
    assert all(fields["SYSLOG_IDENTIFIER"] == b"shmserved" for fields in told)
    said = f"shmserved: {_NO_MODEL.format(Path(folder) / 's/t/models')}"
    assert (told[-1]["MESSAGE"].decode(), told[-1]["PRIORITY"]) == (said, b"3")
    assert told[-1]["CODE_FILE"].endswith(b"main.py")


def test_a_flood_of_one_line_is_cut_and_counted_and_other_lines_are_not() -> None:
    now_ns = 100_000_000_000
    limit, through = RateLimit(clock=lambda: now_ns), []

    def log(text: str, *arguments: object) -> None:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, text, arguments, None)
        if limit.filter(record):
            through.append(record.getMessage())

    for number in range(1000):
        log("client %d failed", number)
    log("another")
    now_ns += 1_500_000_000
    log("client %d failed", 7)

    assert len(through) == 22
    assert through[-2:] == ["another", "client 7 failed (980 such lines left out)"]


@pytest.mark.long
@pytest.mark.fault("T46")
def test_a_model_that_fails_all_the_time_does_not_flood_the_log(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("obedient")

    with daemon.client() as client:
        for _ in range(300):
            with pytest.raises(InferenceFailed):
                client.infer({"do": "raise", "text": "again"})
        daemon.wait_counted(failed=300)  # counted once the client has its answer

    told = daemon.log.count("the model failed on a request of client 0")
    assert 20 <= told < 200, "the first of them, then one a second"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Not that of all tests: its log is compared."""
    with Daemon("echo") as daemon:
        yield daemon


def test_a_client_that_grows_with_its_first_request_and_leaves_is_nothing_to_warn_of(daemon: Daemon) -> None:
    for _ in range(3):
        with daemon.client() as client:
            # The engine may come to the first generation of its channel when there is a second one.
            client.infer({"image": np.zeros((480, 640, 3), np.uint8)})
        wait_until("it is gone", lambda: not daemon.status()["clients"])

    assert "cannot be opened" not in daemon.log


def test_serving_writes_nothing(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.infer({"a": 0})
        before = daemon.log

        for number in range(500):
            client.infer({"a": number})

        assert daemon.log == before


#: As tests/support/policies/silencing has them; what ends the policy's own standard error comes last.
_WAYS = (
    "dictConfig",
    "fileConfig",
    "disable",
    "basicConfig",
    "no handlers",
    "shutdown",
    "logger class",
    "record factory",
    "level names",
    "quiet",
    "warnings",
    "much output",
    "standard error closed",
    "descriptor closed",
)


def test_however_a_policy_sets_logging_up_the_traceback_is_in_the_daemons_log(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("silencing")
    with daemon.client() as client:
        for _ in range(3):
            client.reset()
        for way in _WAYS:
            with pytest.raises(InferenceFailed, match=f"after {way}.*in the daemon's log"):
                client.infer({"way": way})

            lines = daemon.log.splitlines()
            place = lines.index(f"ValueError: after {way}")
            assert 'policy.py", line' in "".join(lines[place - 2 : place])
            assert lines[place + 1] == "    | 12:00:00 ERROR   shmserved: not a line of the log"
            begins = max(number for number, line in enumerate(lines) if "the model failed on a request" in line)
            assert 0 < place - begins < 12 and " ERROR   engine: " in lines[begins], "\n".join(
                lines[begins : place + 1]
            )
    assert "the policy's own line" in daemon.log
    assert daemon.log.count("asked for a reset, which changes nothing: the model has no reset") == 1
    assert daemon.status()["engine"]["restarts"] == 0


def test_a_journal_that_logging_has_closed_is_opened_again(log: logging.Logger, journal: socket.socket) -> None:
    log.handlers[0].close()  # as logging.config.dictConfig does to every handler that it can find

    log.warning("still here")

    assert entry(journal.recv(65536))["MESSAGE"] == b"engine: still here"
