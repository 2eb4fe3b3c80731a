"""What the late GPU has in the place of libcuda.so.1: which addresses its kernels may use for registered memory.

Other functions are those of the late driver (tests/support/c_programs/late_driver.c), in a process that has it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from shmserve import cuda_driver
from tests.gpu.late_memory import HostAccesses
from tests.gpu.late_streams import Accesses
from tests.gpu.late_tensor import LateTensor

if TYPE_CHECKING:
    from tests.gpu.late_cuda import LateCuda

_INVALID_VALUE, _NO_DEVICE, _NOT_SUPPORTED = 1, 100, 801
#: From the host's address of registered memory to the device's, on a GPU that has its own.
APART = 1 << 44


class Driver:
    """The library, as ctypes has it."""

    def __init__(self, gpus: LateCuda, library: ctypes.CDLL | None) -> None:
        def attribute(found: Any, number: int, device: int) -> int:
            if number == cuda_driver.CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
                assert 0 <= device < gpus.devices
                found._obj.value = int(gpus.uses_host_pointers)
                return 0
            return library.cuDeviceGetAttribute(found, number, device) if library is not None else _NO_DEVICE

        def pointer(found: Any, address: int, flags: int) -> int:
            assert flags == 0
            if not gpus.maps_registered:
                return _NOT_SUPPORTED
            if not gpus.runtime.registration(address, 1):
                return _INVALID_VALUE
            found._obj.value = address + APART
            return 0

        # Functions, because callers set their argument types.
        self.cuDeviceGetAttribute, self.cuMemHostGetDevicePointer_v2 = attribute, pointer
        self._library = library

    def __getattr__(self, name: str) -> Any:
        if self._library is not None:
            return getattr(self._library, name)
        return lambda *arguments: 0 if name in ("cuInit", "cuGetErrorName") else _NO_DEVICE


def put_driver(gpus: LateCuda, put: Callable[..., None]) -> None:
    """Replace the library and the tensors over an address."""
    load = ctypes.CDLL

    class Library(ctypes.CDLL):
        def __new__(cls, name: Any, *arguments: Any, **settings: Any) -> Any:
            if name != cuda_driver.LIBRARY:
                return super().__new__(cls)
            try:
                return Driver(gpus, load(name))
            except OSError:
                return Driver(gpus, None)

    put(ctypes, CDLL=Library)
    put(cuda_driver, driver=functools.cache(cuda_driver.Driver))  # not the one that another late GPU has


def tensor_over(gpus: LateCuda, interface: dict[str, Any], where: torch.device) -> torch.Tensor:
    """Return what torch makes of an object with `__cuda_array_interface__`: over registered memory, or the driver's."""
    address, _ = interface["data"]
    (size,) = interface["shape"]
    assert interface["typestr"] == "|u1"
    of_host = address if gpus.uses_host_pointers else address - APART
    if gpus.runtime.registration(of_host, size):
        accesses: Accesses = HostAccesses(address)
    else:
        of_host, accesses = address, Accesses(is_shared=True)
        try:
            cuda_driver.driver().device_of(address)
        except cuda_driver.CudaError as error:
            raise ValueError(
                "The specified pointer resides on host memory and is not registered with any CUDA device."
            ) from error
    memory = (ctypes.c_uint8 * size).from_address(of_host)
    made: LateTensor = gpus.tensor(torch.frombuffer(memory, dtype=torch.uint8), where, accesses)
    return made
