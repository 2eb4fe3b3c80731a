"""Device guard for CUDA in a torch that is built for the CPU: tensors can say that they are on a GPU.

Such a torch has the dispatch keys and the names of CUDA, but no guard, which operators ask for the current device. This puts
one into c10's registry: the table of virtual functions of the CPU's guard, with the three that name a device replaced. The
declaration is c10/core/impl/DeviceGuardImplInterface.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_CPU, _CUDA = 0, 1
#: At least the number of virtual functions of the interface.
_FUNCTIONS = 32

#: What must live as long as the process.
_kept: list[Any] = []


def set_up(get: Callable[[], int]) -> None:
    """Give CUDA a guard that asks `get` for the current device's index; once in a process."""
    if _kept:
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (_CUDA + 1)).in_dll(library, _REGISTRY)
    assert registry[_CPU] and not registry[_CUDA], "this torch has a guard for CUDA of its own"
    of_cpu = ctypes.cast(registry[_CPU] or 0, ctypes.POINTER(ctypes.c_void_p))[0]
    table = (ctypes.c_void_p * _FUNCTIONS)(*ctypes.cast(of_cpu or 0, ctypes.POINTER(ctypes.c_void_p))[:_FUNCTIONS])

    # A c10::Device is two bytes, its type and its index, and is passed in a register. The functions that set a device stay the
    # CPU's, which do nothing: guards call them while an exception of Python is under way.
    pointer, pair = ctypes.c_void_p, ctypes.c_uint16
    functions = [
        ctypes.CFUNCTYPE(ctypes.c_int8, pointer)(lambda this: _CUDA),  # type
        ctypes.CFUNCTYPE(pair, pointer, pair)(lambda this, device: _CUDA | get() << 8),  # exchangeDevice
        ctypes.CFUNCTYPE(pair, pointer)(lambda this: _CUDA | get() << 8),  # getDevice
    ]
    for index, function in enumerate(functions):
        table[index] = ctypes.cast(function, ctypes.c_void_p).value
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    _kept.extend((library, table, functions, guard))
    registry[_CUDA] = ctypes.addressof(guard)
