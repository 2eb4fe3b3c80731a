"""Signal handling of an engine, reset in the programs that its policy starts.

The supervisor alone decides when an engine stops, after the requests in flight, so an engine does nothing on SIGINT and
SIGTERM. It handles them instead of ignoring them: an ignored signal would stay ignored in every program that the policy
starts, which it then could not end. A handled signal is reset by exec, and by `_as_a_program` after a fork.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from ..ipc.control import WAKE_SIGNAL

#: The handler of each signal in a Python program that has just started.
_FOR_PROGRAMS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    WAKE_SIGNAL: signal.SIG_DFL,
}


def handle_signals() -> None:
    """Install the handlers for signals of the supervisor, a terminal or a service manager; once, in the main thread."""
    for number in _FOR_PROGRAMS:
        signal.signal(number, _nothing)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.siginterrupt(number, False)  # it interrupts no system call of the policy, like an ignored signal
    os.register_at_fork(after_in_child=_as_a_program)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: WAKE_SIGNAL needs a handler to end a wait; the module's text explains the others."""


def _as_a_program() -> None:
    """Reset the handlers in a forked child, except those that the policy has changed."""
    for number, handler in _FOR_PROGRAMS.items():
        if signal.getsignal(number) is _nothing:
            signal.signal(number, handler)
