"""Notification of objects that a fork has copied: a forked child must not touch resources shared with its parent."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Owned(Protocol):
    """An object that only the process that made it may use."""

    def after_fork_in_child(self) -> None:
        """Disable this copy."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def note_owned(owned: Owned) -> None:
    """Call `owned.after_fork_in_child` in each child that is forked while `owned` lives."""
    _owned.add(owned)


def _after_fork_in_child() -> None:
    for owned in list(_owned):
        with contextlib.suppress(OSError):
            owned.after_fork_in_child()
    _owned.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
