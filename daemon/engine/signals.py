"""Signals of an engine, and that no program of its policy inherits what they do here.

Signals to a process of the service are for its supervisor, which alone decides when an engine stops, after what is under
way. An engine does nothing on SIGINT and SIGTERM. It handles them instead of ignoring them: an ignored signal stays ignored in
every program that the policy starts, which could not be ended then; a handled one is back at its default after exec, and
after a fork by the function below.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from ..ipc.control import WAKE_SIGNAL

#: Handlers by signal, as in a program that Python has just started.
_FOR_PROGRAMS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    WAKE_SIGNAL: signal.SIG_DFL,
}


def handle_signals() -> None:
    """Handle the signals that the supervisor, a terminal or a service manager may send; once, in the main thread."""
    for number in _FOR_PROGRAMS:
        signal.signal(number, _nothing)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.siginterrupt(number, False)  # no system call of the policy ends early for it, as if it were ignored
    os.register_at_fork(after_in_child=_as_a_program)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler, because an ignored WAKE_SIGNAL ends no wait; for the others see above."""


def _as_a_program() -> None:
    """In a forked child: signals do what they do in a program; those stay that the policy has changed."""
    for number, handler in _FOR_PROGRAMS.items():
        if signal.getsignal(number) is _nothing:
            signal.signal(number, handler)
