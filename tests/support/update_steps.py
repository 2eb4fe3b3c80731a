"""The steps of an update at which the supervisor or an engine can be killed (shmserve.daemon.failpoints)."""

from __future__ import annotations

#: The steps of an update in their order, up to the one that makes it what a restart serves ...
BEFORE = [
    "store.received",
    "store.examined",
    "store.record.before_rename",
    "store.before_rename",
    "store.after_rename",
    "update.received",
    "update.before_start",
    "update.warm",
    "update.before_swap",
    "swap.paused@2",  # the first is the daemon's first model
    "update.swapped",
    "current.before_write",
    "current.before_rename",
]
#: ... and from then on.
AFTER = [
    "current.after_rename",
    "current.after_sync",
    "activated.before_rename",
    "activated.after_rename",
    "update.committed",
]
