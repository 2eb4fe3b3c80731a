"""Addresses at which a device reads registered memory of the host, asked of NVIDIA's driver, which torch does not do."""

from __future__ import annotations

import ctypes
from typing import Any

from .interface import PinFailed

_LIBRARY = "libcuda.so.1"
#: CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM of cuda.h.
_USES_HOST_POINTERS = 91


def device_address(ordinal: int, address: int) -> int:
    """Return the address at which the device of this number reads registered memory; raises PinFailed if it cannot.

    The device's context must be current in the calling thread.
    """
    driver = _driver()
    device, value, pointer = ctypes.c_int(), ctypes.c_int(), ctypes.c_uint64()
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), ordinal))
    _check("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(ctypes.byref(value), _USES_HOST_POINTERS, device.value))
    if value.value:
        return address
    # Such a device has another address for the same memory.
    found = driver.cuMemHostGetDevicePointer_v2(ctypes.byref(pointer), address, 0)
    _check("cuMemHostGetDevicePointer", found)
    return pointer.value


def _driver() -> Any:
    try:
        driver = ctypes.CDLL(_LIBRARY)
        for name, arguments in (
            ("cuDeviceGet", [ctypes.POINTER(ctypes.c_int), ctypes.c_int]),
            ("cuDeviceGetAttribute", [ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int]),
            ("cuMemHostGetDevicePointer_v2", [ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p, ctypes.c_uint]),
        ):
            function = getattr(driver, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        raise PinFailed(f"{_LIBRARY}: {error}") from error
    return driver


def _check(call: str, result: int) -> None:
    if result != 0:
        raise PinFailed(f"{call}: CUDA driver error {result}")
