"""What shmserve uses of posix_ipc, in ctypes: for a bare machine with a GPU and no network, and for nothing else.

`tests/gpu/on_gpu.py` puts this folder on the path where the real package is missing. Slower by a microsecond a call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

O_CREX = os.O_CREAT | os.O_EXCL
SEMAPHORE_VALUE_MAX = 2147483647

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sem_open.restype = ctypes.c_void_p
for _name in ("sem_post", "sem_wait", "sem_trywait", "sem_close"):
    getattr(_libc, _name).argtypes = (ctypes.c_void_p,)
_libc.sem_getvalue.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc.sem_clockwait.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))


class Error(Exception):
    """Any failure."""


class ExistentialError(Error):
    """The name exists and must not, or does not and must."""


class BusyError(Error):
    """The time is over."""


class SignalError(Error):
    """A signal ended the wait."""


def _fail(number: int, name: str) -> None:
    if number in (errno.ENOENT, errno.EEXIST):
        raise ExistentialError(f"{name}: {os.strerror(number)}")
    raise OSError(number, os.strerror(number), name)


class SharedMemory:
    """An open POSIX shared-memory object; `fd` is the caller's to close with `close_fd`."""

    def __init__(self, name: str, flags: int = 0, mode: int = 0o600, size: int = 0, read_only: bool = False) -> None:
        access = os.O_RDONLY if read_only else os.O_RDWR
        self.name = name
        self.fd = _libc.shm_open(name.encode(), ctypes.c_int(flags | access | os.O_CLOEXEC), ctypes.c_uint(mode))
        if self.fd < 0:
            _fail(ctypes.get_errno(), name)
        if size:
            os.ftruncate(self.fd, size)

    def close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def unlink_shared_memory(name: str) -> None:
    if _libc.shm_unlink(name.encode()) != 0:
        _fail(ctypes.get_errno(), name)


class Semaphore:
    """A POSIX named semaphore."""

    def __init__(self, name: str, flags: int = 0, mode: int = 0o600, initial_value: int = 0) -> None:
        self.name = name
        self._semaphore: int | None = _libc.sem_open(
            name.encode(), ctypes.c_int(flags), ctypes.c_uint(mode), ctypes.c_uint(initial_value)
        )
        if not self._semaphore:
            _fail(ctypes.get_errno(), name)

    @property
    def value(self) -> int:
        found = ctypes.c_int()
        _libc.sem_getvalue(self._semaphore, ctypes.byref(found))
        return found.value

    def acquire(self, timeout: float | None = None) -> None:
        if timeout is None:
            result = _libc.sem_wait(self._semaphore)
        elif timeout <= 0:
            result = _libc.sem_trywait(self._semaphore)
        else:
            seconds, nanoseconds = divmod(time.monotonic_ns() + int(timeout * 1e9), 1_000_000_000)
            until = _Timespec(seconds, nanoseconds)
            result = _libc.sem_clockwait(self._semaphore, _CLOCK_MONOTONIC, ctypes.byref(until))
        if result == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.ETIMEDOUT):
            raise BusyError(f"{self.name}: nothing within {timeout} s")
        if number == errno.EINTR:
            raise SignalError(f"{self.name}: a signal ended the wait")
        _fail(number, self.name)

    def release(self) -> None:
        if _libc.sem_post(self._semaphore) != 0:
            _fail(ctypes.get_errno(), self.name)

    def close(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore:
            _libc.sem_close(semaphore)


def unlink_semaphore(name: str) -> None:
    if _libc.sem_unlink(name.encode()) != 0:
        _fail(ctypes.get_errno(), name)
