"""Named semaphore in Python, with posix_ipc; native/python/semaphore.c does the same."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Protocol

import posix_ipc

_CLOCK_MONOTONIC = 1


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


class Listener(Protocol):
    """The part of a doorbell that a waiting client needs."""

    def try_take(self) -> bool:
        """Take a token if there is one."""

    def wait(self, timeout_ns: int, /) -> bool:
        """Sleep until a token came (and take it), a signal arrived, or the time is over. True: took one."""


class Semaphore:
    """A named semaphore that exists; its methods are those of `Ringer` and `Listener`."""

    def __init__(self, name: str, /) -> None:
        """Raises FileNotFoundError if there is none of this name."""
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.ExistentialError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        self._acquire = self._semaphore.acquire
        self._release = self._semaphore.release
        self._closed = False
        try:
            self._monotonic: _MonotonicWait | None = _MonotonicWait(name)
        except (AttributeError, OSError):
            self._monotonic = None  # no sem_clockwait (glibc before 2.30, musl): waits follow the wall clock

    def is_monotonic(self) -> bool:
        """Whether no step of the clock changes a wait."""
        return self._monotonic is not None

    def ring(self) -> None:
        """Leave a token and wake the waiting process."""
        # Without a waiter this is 0.05 us, as much as a `suppress` would cost. EOVERFLOW means that two billion tokens
        # wait already.
        try:  # noqa: SIM105
            self._release()
        except OSError:
            pass

    def count(self) -> int:
        """Return the tokens that wait."""
        value: int = self._semaphore.value
        return value

    def try_take(self) -> bool:
        """Take a token if there is one."""
        # The value is looked at first: acquire(0) that finds nothing costs an exception (1 us).
        if self._semaphore.value <= 0:
            return False
        try:
            self._acquire(0)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def wait(self, timeout_ns: int, /) -> bool:
        """Sleep until a token came (and take it), a signal arrived, or the time is over. True: took one."""
        if self._monotonic is not None:
            return self._monotonic(timeout_ns)
        try:
            self._acquire(timeout_ns / 1e9)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def close(self) -> None:
        """May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._monotonic is not None:
            self._monotonic.close()
        self._semaphore.close()
