"""Doorbell: a wake-up of the other side, without data.

A token is a hint, the counters in the segments are the truth: a lost or a spare token costs a look,
never a request. `NamedDoorbell` is a POSIX named semaphore; the pipes of transport `sealed` are in
pipe_doorbell.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Container
from typing import Protocol

import posix_ipc

from .errors import ForeignService, ServiceUnavailable

_CLOCK_MONOTONIC = 1


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


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _MonotonicWait:
    """`sem_clockwait` on a named semaphore, which posix_ipc does not offer.

    posix_ipc waits on the wall clock: after a step of an hour backwards it waits an hour longer.
    """

    def __init__(self, name: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.sem_open.restype = ctypes.c_void_p
        self._clockwait = libc.sem_clockwait  # AttributeError on a glibc before 2.30
        self._clockwait.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_TimeSpec))
        self._close = libc.sem_close
        self._close.argtypes = (ctypes.c_void_p,)
        # glibc maps a name once in a process, so this is the very semaphore that posix_ipc has open.
        self._semaphore: int | None = libc.sem_open(name.encode(), 0)
        if not self._semaphore:
            raise OSError(ctypes.get_errno(), f"sem_open {name}")

    def __call__(self, timeout_ns: int) -> bool:
        until = time.monotonic_ns() + timeout_ns
        deadline = _TimeSpec(until // 1_000_000_000, until % 1_000_000_000)
        if self._clockwait(self._semaphore, _CLOCK_MONOTONIC, ctypes.byref(deadline)) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.ETIMEDOUT, errno.EINTR):
            return False
        raise OSError(number, f"sem_clockwait: {os.strerror(number)}")

    def close(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore:
            self._close(semaphore)


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
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.ExistentialError as error:
            raise ServiceUnavailable(f"semaphore {name} is gone: the daemon stopped") from error
        try:
            _check_owner(name, owners)
        except BaseException:
            self._semaphore.close()
            raise
        self._closed = False
        self._acquire = self._semaphore.acquire
        self._release = self._semaphore.release
        try:
            self._monotonic: _MonotonicWait | None = _MonotonicWait(name)
        except (AttributeError, OSError):
            self._monotonic = None  # no sem_clockwait (glibc before 2.30, musl): waits follow the wall clock

    def ring(self) -> None:
        # Without a waiter this is 0.05 us, as much as a `suppress` would cost. EOVERFLOW means that two billion tokens
        # wait already.
        try:  # noqa: SIM105
            self._release()
        except OSError:
            pass

    def count(self) -> int:
        value: int = self._semaphore.value
        return value

    def try_take(self) -> bool:
        # The value is looked at first: acquire(0) that finds nothing costs an exception (1 us).
        if self._semaphore.value <= 0:
            return False
        try:
            self._acquire(0)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def wait(self, timeout_ns: int) -> bool:
        if self._monotonic is not None:
            return self._monotonic(timeout_ns)
        try:
            self._acquire(timeout_ns / 1e9)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._monotonic is not None:
            self._monotonic.close()
        self._semaphore.close()
