"""The driver of NVIDIA's GPUs by ctypes: memory that processes share, copies within one GPU, and events.

An engine and its clients share memory by descriptors: one side creates and exports it, each side imports and maps it, and it
lives until the last descriptor and the last mapping are gone. torch has no call for that. `driver` loads libcuda.so.1 when it
is needed first; no other module of shmserve names a function of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_size_t,
    c_ubyte,
    c_uint,
    c_ulonglong,
    c_ushort,
    c_void_p,
)
from typing import Any, Final

LIBRARY: Final = "libcuda.so.1"

# Enumerators of cuda.h; a test compares them, and the structures, with the header where that is installed.
CU_MEM_ALLOCATION_TYPE_PINNED: Final = 1
CU_MEM_LOCATION_TYPE_DEVICE: Final = 1
CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR: Final = 1
CU_MEM_ACCESS_FLAGS_PROT_READWRITE: Final = 3
CU_MEM_ALLOC_GRANULARITY_MINIMUM: Final = 0
CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: Final = 9
CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED: Final = 103
CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: Final = 91
CU_EVENT_BLOCKING_SYNC: Final = 1
CU_EVENT_DISABLE_TIMING: Final = 2
CU_STREAM_NON_BLOCKING: Final = 1
CU_STREAM_LEGACY: Final = 1
CU_STREAM_PER_THREAD: Final = 2
CUDA_ERROR_OUT_OF_MEMORY: Final = 2

_Pointer = c_ulonglong  # CUdeviceptr
_Handle = c_ulonglong  # CUmemGenericAllocationHandle


class CUmemLocation(Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class CUmemAllocationFlags(Structure):
    _fields_ = (
        ("compressionType", c_ubyte),
        ("gpuDirectRDMACapable", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    )


class CUmemAllocationProp(Structure):
    _fields_ = (
        ("type", c_int),
        ("requestedHandleTypes", c_int),
        ("location", CUmemLocation),
        ("win32HandleMetaData", c_void_p),
        ("allocFlags", CUmemAllocationFlags),
    )


class CUmemAccessDesc(Structure):
    _fields_ = (("location", CUmemLocation), ("flags", c_int))


class CUuuid(Structure):
    _fields_ = (("bytes", c_ubyte * 16),)


#: Name in cuda.h, where a macro may make another symbol of it -> the symbol, and the types of the arguments.
FUNCTIONS: Final[dict[str, tuple[str, tuple[Any, ...]]]] = {
    "cuGetErrorName": ("cuGetErrorName", (c_int, POINTER(c_char_p))),
    "cuInit": ("cuInit", (c_uint,)),
    "cuDeviceGetCount": ("cuDeviceGetCount", (POINTER(c_int),)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (POINTER(c_int), c_int, c_int)),
    "cuDeviceGetUuid": ("cuDeviceGetUuid_v2", (POINTER(CUuuid), c_int)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (POINTER(c_void_p), c_int)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (c_void_p,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (POINTER(c_void_p),)),
    "cuMemGetAllocationGranularity": (
        "cuMemGetAllocationGranularity",
        (POINTER(c_size_t), POINTER(CUmemAllocationProp), c_int),
    ),
    "cuMemCreate": ("cuMemCreate", (POINTER(_Handle), c_size_t, POINTER(CUmemAllocationProp), c_ulonglong)),
    "cuMemRelease": ("cuMemRelease", (_Handle,)),
    "cuMemExportToShareableHandle": ("cuMemExportToShareableHandle", (c_void_p, _Handle, c_int, c_ulonglong)),
    "cuMemImportFromShareableHandle": ("cuMemImportFromShareableHandle", (POINTER(_Handle), c_void_p, c_int)),
    "cuMemAddressReserve": (
        "cuMemAddressReserve",
        (POINTER(_Pointer), c_size_t, c_size_t, _Pointer, c_ulonglong),
    ),
    "cuMemAddressFree": ("cuMemAddressFree", (_Pointer, c_size_t)),
    "cuMemMap": ("cuMemMap", (_Pointer, c_size_t, c_size_t, _Handle, c_ulonglong)),
    "cuMemUnmap": ("cuMemUnmap", (_Pointer, c_size_t)),
    "cuMemSetAccess": ("cuMemSetAccess", (_Pointer, c_size_t, POINTER(CUmemAccessDesc), c_size_t)),
    "cuPointerGetAttribute": ("cuPointerGetAttribute", (c_void_p, c_int, _Pointer)),
    "cuMemHostGetDevicePointer": ("cuMemHostGetDevicePointer_v2", (POINTER(_Pointer), c_void_p, c_uint)),
    "cuMemcpyDtoDAsync": ("cuMemcpyDtoDAsync_v2", (_Pointer, _Pointer, c_size_t, c_void_p)),
    "cuStreamCreate": ("cuStreamCreate", (POINTER(c_void_p), c_uint)),
    "cuEventCreate": ("cuEventCreate", (POINTER(c_void_p), c_uint)),
    "cuEventRecord": ("cuEventRecord", (c_void_p, c_void_p)),
    "cuEventSynchronize": ("cuEventSynchronize", (c_void_p,)),
}


class CudaError(RuntimeError):
    """A call of the driver failed, or there is none; `code` is its number, 0 without a driver."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


@functools.cache
def driver() -> Driver:
    """Load and start the driver, once in a process; raises CudaError."""
    return Driver()


class Driver:
    """The calls. A device is a number as CUDA counts in this process, which CUDA_VISIBLE_DEVICES changes."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY)
            self._calls = {name: getattr(library, symbol) for name, (symbol, _) in FUNCTIONS.items()}
        except OSError as error:
            raise CudaError(f"{LIBRARY} cannot be loaded ({error}): install NVIDIA's driver") from error
        except AttributeError as error:
            raise CudaError(f"{LIBRARY} is too old: CUDA 11.4 or later is needed ({error})") from error
        for name, call in self._calls.items():
            call.restype, call.argtypes = c_int, FUNCTIONS[name][1]
        self._contexts: dict[int, c_void_p] = {}
        self._call("cuInit", 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._calls[name](*arguments)
        if code:
            text = c_char_p()
            self._calls["cuGetErrorName"](code, byref(text))
            raise CudaError(f"{name}: {(text.value or b'an unknown error').decode()}", code)

    # Devices

    def device_count(self) -> int:
        """Return how many GPUs this process sees."""
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        return count.value

    def uuid(self, device: int) -> str:
        """Return what names a GPU, or its part, in every process: 32 hexadecimal digits."""
        found = CUuuid()
        self._call("cuDeviceGetUuid", byref(found), device)
        return bytes(found.bytes).hex()

    def device_of(self, address: int) -> int:
        """Return the device that has the memory at this address; raises CudaError if it is none of CUDA's."""
        device = c_int()
        self._call("cuPointerGetAttribute", byref(device), CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
        return device.value

    @contextlib.contextmanager
    def current(self, device: int) -> Iterator[None]:
        """Make the device's primary context, which torch and others use, this thread's for the length of a block."""
        context = self._contexts.get(device)
        if context is None:
            context = c_void_p()
            self._call("cuDevicePrimaryCtxRetain", byref(context), device)
            self._contexts[device] = context
        self._call("cuCtxPushCurrent", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent", byref(c_void_p()))

    # Memory that is shared

    def create(self, size: int, device: int) -> tuple[int, int]:
        """Allocate memory of a device; return a descriptor that stands for it and is the caller's, and its size.

        The size is that of whole pages of the device. Without a mapping and without the descriptor it is freed.
        """
        supported = c_int()
        attribute = CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
        self._call("cuDeviceGetAttribute", byref(supported), attribute, device)
        if not supported.value:
            raise CudaError("this GPU or driver cannot share memory by file descriptors")
        location = CUmemLocation(CU_MEM_LOCATION_TYPE_DEVICE, device)
        kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        wanted = CUmemAllocationProp(CU_MEM_ALLOCATION_TYPE_PINNED, kind, location)
        page, handle, descriptor = c_size_t(), _Handle(), c_int(-1)
        with self.current(device):
            self._call("cuMemGetAllocationGranularity", byref(page), byref(wanted), CU_MEM_ALLOC_GRANULARITY_MINIMUM)
            size = (size + page.value - 1) // page.value * page.value
            self._call("cuMemCreate", byref(handle), size, byref(wanted), 0)
            try:
                self._call("cuMemExportToShareableHandle", byref(descriptor), handle, kind, 0)
            finally:
                self._call("cuMemRelease", handle)
        return descriptor.value, size

    def map(self, descriptor: int, size: int, device: int) -> MappedMemory:
        """Map shared memory of that many bytes; the descriptor stays the caller's."""
        handle, address = _Handle(), _Pointer()
        number, kind = c_void_p(descriptor), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        with self.current(device), contextlib.ExitStack() as undo:
            self._call("cuMemImportFromShareableHandle", byref(handle), number, kind)
            undo.callback(self._call, "cuMemRelease", handle)  # a mapping keeps the memory
            with contextlib.ExitStack() as failed:
                self._call("cuMemAddressReserve", byref(address), size, 0, 0, 0)
                failed.callback(self._call, "cuMemAddressFree", address, size)
                self._call("cuMemMap", address, size, 0, handle, 0)
                failed.callback(self._call, "cuMemUnmap", address, size)
                location = CUmemLocation(CU_MEM_LOCATION_TYPE_DEVICE, device)
                access = CUmemAccessDesc(location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
                self._call("cuMemSetAccess", address, size, byref(access), 1)
                failed.pop_all()
        return MappedMemory(self, address.value, size, device)

    def unmap(self, address: int, size: int, device: int) -> None:
        """Undo a mapping, which no work of the device uses now."""
        with self.current(device):
            self._call("cuMemUnmap", address, size)
            self._call("cuMemAddressFree", address, size)

    # In the current context

    def address_of_registered(self, address: int, device: int) -> int:
        """Return where the current device reads memory of the host that is registered; raises CudaError if it cannot."""
        is_same, found = c_int(), _Pointer()
        attribute = CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
        self._call("cuDeviceGetAttribute", byref(is_same), attribute, device)
        if is_same.value:
            return address
        self._call("cuMemHostGetDevicePointer", byref(found), address, 0)
        return found.value

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin to copy bytes within the device, after the stream's work until now."""
        self._call("cuMemcpyDtoDAsync", target, source, size, stream)

    def stream(self) -> int:
        """Create a stream that waits for no other."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), CU_STREAM_NON_BLOCKING)
        return stream.value or 0

    def event(self) -> int:
        """Create an event whose wait sleeps."""
        event = c_void_p()
        self._call("cuEventCreate", byref(event), CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        """Record an event behind the stream's work until now."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait until the device has passed the event; raises errors of the work before it."""
        self._call("cuEventSynchronize", event)


class MappedMemory:
    """Shared memory of a device in this process."""

    def __init__(self, driver: Driver, address: int, size: int, device: int) -> None:
        self.address = address
        self.size = size
        self._device = device
        self._driver = driver
        self._mapped = True

    def close(self) -> None:
        """Unmap it; all work of the device that uses it has ended. May be called twice.

        It stays mapped until the process ends if an error has ended its context.
        """
        mapped, self._mapped = self._mapped, False
        if mapped:
            with contextlib.suppress(CudaError):
                self._driver.unmap(self.address, self.size, self._device)
