"""Failpoints: named places at which a test makes the daemon die, stop or fail; inert unless the environment arms them.

SHMSERVE_FAILPOINTS="store.before_rename=kill,store.received=sleep:0.5@2" arms two:

    kill            SIGKILL to this process
    stop            SIGSTOP to this process, until the test sends SIGCONT
    exit[:STATUS]   os._exit, 1 without STATUS
    sleep:SECONDS   blocks this thread
    raise:ERRNO     OSError with the errno of that name, as in raise:ENOSPC

`@3` acts at the third time only; without, every time. Children that inherit the environment are armed too, and count
for themselves. The tables of names below are complete: a name that is missing there can be neither armed nor, in a
process with an armed failpoint, reached.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

VARIABLE = "SHMSERVE_FAILPOINTS"
#: The steps of writing a small file, and the prefixes of those steps: one for each reason to write one.
FILE_STEPS = ("before_write", "before_sync", "before_rename", "after_rename", "after_sync")
SMALL_FILES = ("store.record", "store.again", "current", "activated", "metadata")
#: The failpoints of the store of versions.
STORE = (
    *("ingest.before_file", "ingest.compared", "ingest.shared", "ingest.in_file"),
    *("ingest.before_sync", "ingest.after_sync"),
    *("store.received", "store.examined", "store.before_rename", "store.after_rename", "store.after_sync"),
    *("store.before_signature", "store.after_signature"),
    *("prune.before_rename", "prune.after_rename", "prune.after_sync", "prune.after_remove"),
    *(f"{file}.{step}" for file in SMALL_FILES for step in FILE_STEPS),
)
#: The failpoints of the file that keeps the operator's choice.
STARTUP = tuple(f"given.{step}" for step in FILE_STEPS)
#: The failpoints of an update, in the supervisor.
UPDATE = (
    *("update.received", "update.before_start", "update.warm", "update.stopped_old", "update.before_swap"),
    *("swap.paused", "update.swapped", "update.committed"),
)
#: The failpoint of a daemon that has nothing left to do but to exit.
END = ("daemon.ended",)
#: The failpoints of the spare engine, in the supervisor.
SPARE = ("spare.started", "spare.ready", "spare.taken")
#: The failpoint of a request off the fast path, in the engine: after its checks, and before it is marked as taken.
REQUEST = ("request.checked",)
#: The failpoints of an engine, each after "engine.N." for the Nth engine of a daemon.
ENGINE_STEPS = ("loading", "loaded", "warm", "serve", "serving", "pause", "paused")
_NAMES = frozenset((*STORE, *STARTUP, *UPDATE, *SPARE, *END, *REQUEST))
_OF_AN_ENGINE = re.compile(rf"engine\.[1-9][0-9]*\.({'|'.join(ENGINE_STEPS)})")
_SPEC = re.compile(r"(?P<name>[a-z0-9_.]+)=(?P<action>[a-z]+)(?::(?P<value>[A-Za-z0-9_.]+))?(?:@(?P<nth>[1-9][0-9]*))?")


@dataclass
class _Armed:
    act: Callable[[], None]
    nth: int | None
    reached: int = 0


def failpoint(name: str) -> None:
    """Act on the failpoint `name` if it is armed; otherwise do nothing."""
    if _armed:
        _reach(name)


def arm(text: str) -> None:
    """Arm these failpoints, written as in the environment, and no others; raises ValueError if one does not exist."""
    armed = _parse(text)
    _armed.clear()
    _armed.update(armed)


def _is_known(name: str) -> bool:
    return name in _NAMES or _OF_AN_ENGINE.fullmatch(name) is not None


def _reach(name: str) -> None:
    if not _is_known(name):
        raise LookupError(f"the failpoint {name!r} is missing in the tables of {__name__}")
    armed = _armed.get(name)
    if armed is None:
        return
    armed.reached += 1
    if armed.nth in (None, armed.reached):
        log.warning(f"failpoint {name} reached")  # not as an argument: lines of one text are limited
        armed.act()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may go to another thread: no step is taken until it has worked


def _stop() -> None:
    # To this thread: one to the process may go to another, and this one would take further steps until that has it.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _parse(text: str) -> dict[str, _Armed]:
    """Parse the failpoints to arm; raise ValueError for an unknown one, because its test would pass without effect."""
    armed: dict[str, _Armed] = {}
    for spec in filter(None, text.split(",")):
        match = _SPEC.fullmatch(spec.strip())
        action = _action(match["action"], match["value"]) if match else None
        if match is None or action is None:
            raise ValueError(
                f"{VARIABLE}: {spec!r} must be NAME=kill|stop|exit[:STATUS]|sleep:SECONDS|raise:ERRNO[@NTH]"
            )
        if not _is_known(match["name"]):
            raise ValueError(f"{VARIABLE}: unknown failpoint {match['name']!r}")
        armed[match["name"]] = _Armed(action, int(match["nth"]) if match["nth"] else None)
    if armed:
        log.warning("failpoints are armed: %s", text)
    return armed


def _action(action: str, value: str | None) -> Callable[[], None] | None:
    try:
        match action, value:
            case "kill", None:
                return _kill
            case "stop", None:
                return _stop
            case "exit", _:
                status = int(value or 1)
                return lambda: os._exit(status)
            case "sleep", str():
                seconds = float(value)
                return lambda: time.sleep(seconds)
            case "raise", str():
                number = getattr(errno, value, None)
                return None if not isinstance(number, int) else lambda: _raise(number)
    except ValueError:
        pass
    return None


_armed = _parse(os.environ.get(VARIABLE, ""))
