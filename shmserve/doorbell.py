"""Doorbell: a wake-up of the other side, without data.

A token is a hint, the counters in the segments are the truth: a lost or a spare token costs a look,
never a request. `NamedDoorbell` is a POSIX named semaphore; the pipes of transport `sealed` are in
pipe_doorbell.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from typing import Protocol

import posix_ipc

from .backend import Semaphore
from .errors import ForeignService, ServiceUnavailable


class Ringer(Protocol):
    """The end that wakes, of either transport."""

    def ring(self) -> None:
        """Leave a token and wake the waiting process; never blocks, never fails."""

    def close(self) -> None:
        """May be called twice."""


class Listener(Protocol):
    """The end that is woken, of either transport."""

    def count(self) -> int:
        """Return the approximate number of permits that wait; costs 0.1 us."""

    def try_take(self) -> bool:
        """Take a token if there is one."""

    def wait(self, timeout_ns: int) -> bool:
        """Sleep until a token came (and take it), a signal arrived, or the time is over. True: took one."""

    def close(self) -> None:
        """May be called twice; never while another thread waits."""


def create_doorbell(name: str, mode: int = 0o600) -> None:
    """Create the named semaphore without tokens.

    Raises FileExistsError if the name is taken, OSError (ENOSPC) if /dev/shm is full.
    """
    try:
        semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=mode, initial_value=0)
    except posix_ipc.ExistentialError as error:
        raise FileExistsError(f"semaphore {name} exists already") from error
    semaphore.close()
    # posix_ipc gives no descriptor to fchmod; a process needs both permissions to post.
    os.chmod(_file(name), mode)


def exists_doorbell(name: str) -> bool:
    """Whether the name is still there."""
    return os.path.exists(_file(name))


def _file(name: str) -> str:
    return f"/dev/shm/sem.{name.removeprefix('/')}"


def unlink_doorbell(name: str) -> None:
    """Remove the name; open ends stay valid. A missing name is not an error."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)


def _check_owner(name: str, owners: Container[int] | None) -> None:
    # Of the name, for posix_ipc gives no descriptor; after it was opened and before anything is read. Names are random,
    # and only the owner can remove one, so that another user cannot replace it.
    if owners is None:
        return
    try:
        uid = os.stat(_file(name), follow_symlinks=False).st_uid
    except FileNotFoundError as error:
        raise ServiceUnavailable(f"semaphore {name} is gone: the daemon stopped") from error
    if uid not in owners:
        raise ForeignService(
            f"semaphore {name} belongs to uid {uid}, whose daemon this is not: not used", path=name, owner_uid=uid
        )


class NamedDoorbell:
    """A POSIX named semaphore, opened by either end."""

    def __init__(self, name: str, owners: Container[int] | None = None) -> None:
        """Raises ServiceUnavailable if the name is gone, and ForeignService if it does not belong to one of these `owners`,
        each of whom can shrink it; None: any user.
        """
        try:
            self.semaphore = Semaphore(name)
        except FileNotFoundError as error:
            raise ServiceUnavailable(f"semaphore {name} is gone: the daemon stopped") from error
        try:
            _check_owner(name, owners)
        except BaseException:
            self.semaphore.close()
            raise

    def ring(self) -> None:
        self.semaphore.ring()

    def count(self) -> int:
        return self.semaphore.count()

    def try_take(self) -> bool:
        return self.semaphore.try_take()

    def wait(self, timeout_ns: int) -> bool:
        return self.semaphore.wait(timeout_ns)

    def close(self) -> None:
        self.semaphore.close()
