"""Tells what belongs to this process that it was copied: a forked child must not touch what it shares with its parent."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Owned(Protocol):
    """What only the process that made it may use."""

    def after_fork_in_child(self) -> None:
        """This is the copy."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def note_owned(owned: Owned) -> None:
    """`owned` is told in each child that is forked while it lives."""
    _owned.add(owned)


def _after_fork_in_child() -> None:
    for owned in list(_owned):
        with contextlib.suppress(OSError):
            owned.after_fork_in_child()
    _owned.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
