"""What the late GPU has in the place of libcuda.so.1: which addresses its kernels may use for registered memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tests.gpu.late_memory import HostAccesses
from tests.gpu.late_tensor import LateTensor

if TYPE_CHECKING:
    from tests.gpu.late_cuda import LateCuda

_INVALID_VALUE, _NOT_SUPPORTED = 1, 801
#: From the host's address of registered memory to the device's, on a GPU that has its own.
APART = 1 << 44


class Driver:
    """The functions of the driver that the engine calls."""

    def __init__(self, gpus: LateCuda) -> None:
        def device(found: Any, ordinal: int) -> int:
            found._obj.value = ordinal
            return 0

        def attribute(found: Any, number: int, device: int) -> int:
            assert number == 91 and 0 <= device < gpus.devices
            found._obj.value = int(gpus.uses_host_pointers)
            return 0

        def pointer(found: Any, address: int, flags: int) -> int:
            assert flags == 0
            if not gpus.maps_registered:
                return _NOT_SUPPORTED
            if not gpus.runtime.registration(address, 1):
                return _INVALID_VALUE
            found._obj.value = address + APART
            return 0

        # Functions, because callers set their argument types.
        self.cuDeviceGet, self.cuDeviceGetAttribute, self.cuMemHostGetDevicePointer_v2 = device, attribute, pointer


def put_driver(gpus: LateCuda, put: Callable[..., None]) -> None:
    """Replace the library and the tensors over an address."""

    class Library(ctypes.CDLL):
        def __new__(cls, name: Any, *arguments: Any, **settings: Any) -> Any:
            return Driver(gpus) if name == "libcuda.so.1" else super().__new__(cls)

    put(ctypes, CDLL=Library)


def tensor_over(gpus: LateCuda, interface: dict[str, Any], where: torch.device) -> torch.Tensor:
    """Return what torch makes of an object with `__cuda_array_interface__`, which here is over registered memory."""
    address, _ = interface["data"]
    (size,) = interface["shape"]
    assert interface["typestr"] == "|u1"
    of_host = address if gpus.uses_host_pointers else address - APART
    if not gpus.runtime.registration(of_host, size):
        raise ValueError("The specified pointer resides on host memory and is not registered with any CUDA device.")
    memory = (ctypes.c_uint8 * size).from_address(of_host)
    made: LateTensor = gpus.tensor(torch.frombuffer(memory, dtype=torch.uint8), where, HostAccesses(address))
    return made
