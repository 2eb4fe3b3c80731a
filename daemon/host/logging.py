"""Format of the daemon's log lines: plain on a terminal, structured in systemd's journal, limited by rate."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..token_bucket import TokenBucket

#: MESSAGE_IDs of the daemon's turning points, for `journalctl MESSAGE_ID=...`; docs/how-to/operating.md lists them.
SERVING = "6f1c0a7be0f74b6f9b1f4c3a0d5e9a11"
ENGINE_DIED = "b2d1f5b7c3a94f0e8f5e27f0a4c6d812"
ENGINE_STUCK = "0c9b8a35e1d2476d9d1f7f6b52e3c413"
ROLLED_BACK = "e47a5c0d9f6b4b2c8a3d1e0f7b9c6514"

_JOURNAL = Path("/run/systemd/journal/socket")
# syslog(3)'s priorities.
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_LEVELS = {logging.getLevelName(name): name for name in _PRIORITY}
#: Lines of one kind at once, and how many a second after that.
_BURST = 20
_LINES_PER_S = 1.0
#: Kinds that are counted; a program has no more log lines than this.
_KINDS = 256
#: All but the tab and the end of a line, which tracebacks have; and what turns the direction of text around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class RateLimit(logging.Filter):
    """Lets some lines of each kind through and counts the others; a kind is a logger and its text before formatting."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock` gives nanoseconds."""
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, object], TokenBucket] = {}
        self._left_out: dict[tuple[str, object], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if len(self._kinds) > _KINDS:
            self._kinds.clear()
            self._left_out.clear()
        now_ns, kind = self._clock(), (record.name, record.msg)
        bucket = self._kinds.get(kind)
        if bucket is None:
            bucket = self._kinds[kind] = TokenBucket(_LINES_PER_S, _BURST, now_ns)
        if not bucket.take(now_ns):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        if (left_out := self._left_out.pop(kind, 0)) > 0:
            # getMessage, because the text may hold a % that is not a place.
            record.msg, record.args = f"{record.getMessage()} ({left_out} such lines left out)", None
        return True


class PlainFormatter(logging.Formatter):
    """Lines without control characters, wherever parts of them come from."""

    def format(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().format(record))


class JournalHandler(logging.Handler):
    """One entry for each record, a traceback included, with fields to search by (systemd's native protocol)."""

    def __init__(self, process: str, address: Path = _JOURNAL, stream: TextIO | None = None) -> None:
        """`stream`: for what the journal does not take; None: standard error."""
        super().__init__()
        self._process = process
        self._address = str(address)
        self._stream = stream
        self._socket = _journal_socket()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{self._process}: {self.format(record)}"
            fields = {
                "MESSAGE": text,
                "PRIORITY": str(_PRIORITY.get(record.levelname, 6)),
                "SYSLOG_IDENTIFIER": "shmserved",
                "SHMSERVE_PROCESS": self._process,
                "CODE_FILE": record.pathname,
                "CODE_LINE": str(record.lineno),
                "CODE_FUNC": record.funcName,
            }
            message_id = getattr(record, "message_id", None)
            if message_id is not None:
                fields["MESSAGE_ID"] = message_id
            if self._socket.fileno() < 0:  # a policy has had logging close all handlers, as dictConfig does
                self._socket = _journal_socket()
            try:
                self._socket.sendto(b"".join(map(_field, fields.items())), self._address)
            except OSError:  # too long for a datagram, or no reader: as a line on the stream that journald reads too
                print(_with_priority(record, text), file=self._stream or sys.stderr)
        except Exception:  # noqa: BLE001  logging's own way with what cannot be logged
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if self._stream is None:
            super().handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _journal_socket() -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    found.setblocking(False)  # a journal that does not read must not hold the service up
    return found


class _StreamFormatter(PlainFormatter):
    """For journald's stream, or one that is like it: sd-daemon(3)'s priorities, which journald takes off again."""

    def format(self, record: logging.LogRecord) -> str:
        return _with_priority(record, super().format(record))


def configure_logging(process: str) -> None:
    """Log to where standard error goes; `process` names the supervisor or the engine in every line."""
    logging.basicConfig(level=_level(), handlers=[_handler(process)], force=True)


def configure_engine_logging() -> TextIO:
    """As `configure_logging`, for a process that runs a policy; returns the stream that is the service's own.

    What the policy and its libraries log goes to standard error, and they may set logging up as they like (dictConfig, disable,
    handlers of the root logger, another standard error). None of it reaches the service's loggers: they leave the hierarchy
    that `logging` knows, and write to a separate descriptor. Call `separate_loggers` again after further modules of the
    service were imported.
    """
    configure_logging("engine")
    try:
        descriptor = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:  # standard error is closed
        descriptor = os.open(os.devnull, os.O_WRONLY)
    stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  for ever
    root = logging.RootLogger(logging.getLogger().level)
    root.addHandler(_handler("engine", stream))
    _own.append(logging.Manager(root))
    separate_loggers()
    os.environ.pop("SHMSERVE_LOG_LEVEL", None)  # the supervisor's word to this process, not to the policy's
    return stream


#: The hierarchy of the service's loggers in an engine's process.
_own: list[logging.Manager] = []


def separate_loggers() -> None:
    """Move the service's loggers that exist by now out of the reach of the policy."""
    [manager] = _own
    root, theirs = manager.root, logging.root.manager.loggerDict
    for name in [name for name in theirs if name.partition(".")[0] in ("shmserve", "__main__")]:
        logger = theirs.pop(name)
        if isinstance(logger, logging.Logger):
            logger.__class__ = _OwnLogger
            logger.manager, logger.parent = manager, root
            manager.loggerDict[name] = logger
            logger.setLevel(logging.NOTSET)  # which also forgets what it knew of levels


class _OwnLogger(logging.Logger):
    """Makes its records by itself: a policy may have set another factory, and other names for the levels."""

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        record.levelname = _LEVELS.get(level, record.levelname)
        vars(record).update(extra or {})
        return record


class _OwnStreamHandler(logging.StreamHandler):  # type: ignore[type-arg]  # it has none before Python 3.11
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the place to say it is standard error, which is the policy's."""


def _level() -> str:
    return os.environ.get("SHMSERVE_LOG_LEVEL", "INFO").upper()


def _handler(process: str, stream: TextIO | None = None) -> logging.Handler:
    """For lines of `process`; `stream`: a separate descriptor in place of standard error."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if stream is None else _OwnStreamHandler(stream)
    if _to_journal() and _JOURNAL.is_socket():
        handler = JournalHandler(process, _JOURNAL, stream)
        handler.setFormatter(PlainFormatter())
    elif _to_journal():
        handler.setFormatter(_StreamFormatter(f"{process}: %(message)s"))
    else:
        handler.setFormatter(PlainFormatter(f"%(asctime)s %(levelname)-7s {process}: %(message)s", "%H:%M:%S"))
    handler.addFilter(RateLimit())
    return handler


def how_to_read() -> str:
    """How an operator reads what this process logs: a command, or where it goes."""
    if _to_journal():
        try:
            group = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
        except (OSError, IndexError):
            group = ""
        unit = next((part for part in reversed(group.split("/")) if part.endswith(".service")), None)
        user = " --user" if "/user@" in group else ""
        return f"journalctl{user} -u {unit.removesuffix('.service')} -e" if unit else "journalctl -e"
    try:
        target = os.readlink("/proc/self/fd/2")
    except OSError:
        return "nowhere: standard error is closed"
    if target == os.devnull:
        return f"nowhere: standard error is {target}"
    if target.startswith("/dev/"):
        return f"on the terminal {target}"
    return f"tail {target}" if os.path.isfile(target) else "read by the program that started the daemon (a pipe)"


def _to_journal() -> bool:
    """Whether standard error is the stream that systemd made: the variable is inherited, the stream may be changed."""
    try:
        device, inode = map(int, os.environ["JOURNAL_STREAM"].split(":"))
        found = os.fstat(sys.stderr.fileno())
    except (KeyError, ValueError, OSError):
        return False
    return (found.st_dev, found.st_ino) == (device, inode)


def _with_priority(record: logging.LogRecord, text: str) -> str:
    priority = _PRIORITY.get(record.levelname, 6)
    # Every line of a traceback carries it: journald splits at newlines.
    return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def _field(field: tuple[str, str]) -> bytes:
    """A field of the native protocol; with its length where the value has lines.

    >>> _field(("PRIORITY", "6")), _field(("MESSAGE", "a\\nb"))
    (b'PRIORITY=6\\n', b'MESSAGE\\n\\x03\\x00\\x00\\x00\\x00\\x00\\x00\\x00a\\nb\\n')
    """
    name, value = field[0].encode(), field[1].encode("utf-8", "replace")
    if b"\n" not in value:
        return name + b"=" + value + b"\n"
    return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
