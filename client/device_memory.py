"""Arrays in GPU memory as leaves of an observation: recognised, copied within the GPU, and given to the service there.

An array is a torch tensor on a GPU, or any object with `__cuda_array_interface__`, as cupy and numba have; neither is
imported. Its bytes are copied to the slot's area of the memory that the service shares with this client, on the array's own
stream, and the client waits for that before it publishes the request. So no engine waits for a stream of this process, which
may hang or be killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shmserve.base_values import is_tensor
from shmserve.carried_values import ON_DEVICE, carried, tensor_dtype
from shmserve.codec import DoesNotFit
from shmserve.cuda_driver import CU_STREAM_LEGACY, CudaError, MappedMemory, driver
from shmserve.errors import DeviceArrayRefused
from shmserve.layout import MAX_PAYLOAD_BYTES, aligned
from shmserve.metadata_leaf import DEVICE_ALIGNMENT, DTYPES

_ADVICE = "send it from the host: .cpu().numpy() of a torch tensor, .get() of a cupy array"
#: A stream of this client, for arrays that need to wait for none.
_OWN = -1
#: Reasons that hold for every array, as long as the service does not change.
_LASTING = ("off", "no_gpu", "numpy")
#: Reasons that may not hold for a smaller area.
_OF_SIZE = ("too_large", "too_many_bytes", "no_memory")


@dataclass(frozen=True)
class DeviceArray:
    """One array in GPU memory, in C order."""

    #: The wire's name.
    dtype: str
    shape: tuple[int, ...]
    address: int
    #: On which it was made; _OWN: on any.
    stream: int
    #: Keeps the memory.
    owner: Any

    @property
    def size(self) -> int:
        """Of its bytes."""
        size = DTYPES[self.dtype]
        for length in self.shape:
            size *= length
        return size


class SharedArea:
    """The memory that a service shares with this client: an area of `area_bytes` for each slot."""

    def __init__(self, descriptor: int, area_bytes: int, slots: int, size: int, gpu: str) -> None:
        """Map it; the descriptor stays the caller's. Raises DeviceArrayRefused."""
        self.area_bytes = area_bytes
        self.slots = slots
        self._pid = os.getpid()
        self._gpu = gpu
        self._own_stream = 0
        self._events: list[int] = []
        #: Events that an interrupted wait has left.
        self._unwaited: list[int] = []
        try:
            self._driver = driver()
            self._device = self._device_named(gpu)
            self._memory: MappedMemory = self._driver.map(descriptor, size, self._device)
        except CudaError as error:
            raise DeviceArrayRefused(
                f"the GPU memory of the service cannot be mapped ({error}); {_ADVICE}", reason="failed"
            ) from error

    def _device_named(self, gpu: str) -> int:
        for device in range(self._driver.device_count()):
            if self._driver.uuid(device) == gpu:
                return device
        raise DeviceArrayRefused(
            f"the service runs on GPU {_spelled(gpu)}, which this process does not see (CUDA_VISIBLE_DEVICES); {_ADVICE}",
            reason="other_gpu",
        )

    def write(self, slot: int, arrays: Sequence[DeviceArray], offsets: Sequence[int]) -> None:
        """Copy the arrays to these places in the area of a slot, and wait for the copies.

        Raises DeviceArrayRefused for an array on another GPU, and for what CUDA reports, of the work before the copy as well.
        """
        start = self._memory.address + slot * self.area_bytes
        try:
            with self._driver.current(self._device):
                self._wait()  # for copies to the same place
                for array in arrays:
                    self._check_device(array)
                try:
                    for array, offset in zip(arrays, offsets, strict=True):
                        if array.size:
                            self._driver.copy(start + offset, array.address, array.size, self._stream(array))
                finally:
                    self._record({self._stream(array) for array in arrays})
                    self._wait()
        except CudaError as error:
            raise DeviceArrayRefused(f"an array in GPU memory cannot be copied: {error}", reason="failed") from error

    def _check_device(self, array: DeviceArray) -> None:
        if array.size and (device := self._driver.device_of(array.address)) != self._device:
            raise DeviceArrayRefused(
                f"an array lies on GPU {_spelled(self._driver.uuid(device))} and the service runs on "
                f"{_spelled(self._gpu)}: move it there, or {_ADVICE}",
                reason="other_gpu",
            )

    def _stream(self, array: DeviceArray) -> int:
        if array.stream != _OWN:
            return array.stream
        if not self._own_stream:
            self._own_stream = self._driver.stream()
        return self._own_stream

    def _record(self, streams: set[int]) -> None:
        while len(self._events) < len(streams):
            self._events.append(self._driver.event())
        for event, stream in zip(self._events, streams, strict=False):
            self._driver.record(event, stream)
            self._unwaited.append(event)

    def _wait(self) -> None:
        while self._unwaited:
            self._driver.wait(self._unwaited[-1])
            self._unwaited.pop()  # last: an interrupt must not lose it

    def close(self) -> None:
        """Unmap it. May be called twice; in a forked child it does nothing, because CUDA does not survive a fork."""
        if self._pid == os.getpid():
            self._memory.close()


class DeviceLeaves:
    """The arrays in GPU memory that the encoder of one client meets; called under the client's lock."""

    def __init__(self) -> None:
        #: Of the tree that was walked last, in its order.
        self.met: list[DeviceArray] = []
        #: Why the service takes none; None: it does, or was not asked.
        self._refusal: DeviceArrayRefused | None = None
        #: Bytes that a slot's area is to have, and those that it must have.
        self.wanted = self._needed = 0

    def attached(self) -> None:
        """Ask again, because the service may be another one."""
        self._refusal = None

    def want(self, device_bytes: int, area: SharedArea | None) -> None:
        """Require room for a request of this size; more than that once an area is outgrown, as it will be again."""
        before = area.area_bytes if area is not None else 0
        self._needed = max(before, device_bytes)
        self.wanted = max(self._needed, min(before + before // 2, MAX_PAYLOAD_BYTES))

    def lacks(self, area: SharedArea | None, slots: int) -> bool:
        """Return whether the service is to be asked for an area."""
        if self._refusal is not None:
            return False
        return area is None or area.area_bytes < self.wanted or area.slots < slots

    def refuse(self, refusal: DeviceArrayRefused, area: SharedArea | None) -> bool:
        """Note that the service gives no area of this size; return whether to ask for a smaller one that would do.

        Raises the refusal, unless it holds for arrays of every size: `convert` does then.
        """
        if refusal.reason in _OF_SIZE and self.wanted > self._needed:
            self.wanted = self._needed
            return True
        self.wanted = self._needed = area.area_bytes if area is not None else 0
        if refusal.reason not in _LASTING:
            raise refusal
        self._refusal = refusal
        return False

    def begin(self) -> None:
        """See `codec.OnDevice`."""
        if self.met:
            self.met = []

    def convert(self, value: Any, /) -> tuple[int, Any]:
        """As `carried`; an array in GPU memory is (ON_DEVICE, (dtype, shape)) if the service takes it from there.

        If it does not, a tensor of torch is carried through the host. Raises DeviceArrayRefused for any other array.
        """
        if is_tensor(value):
            if not value.is_cuda or self._refusal is not None:
                return carried(value)
            array = _of_tensor(value)
        else:
            interface = getattr(value, "__cuda_array_interface__", None)
            if type(interface) is not dict:
                return carried(value)
            if self._refusal is not None:
                raise _refused(self._refusal.reason or "", str(self._refusal))
            array = _of_interface(value, interface)
        self.met.append(array)
        return ON_DEVICE, (array.dtype, array.shape)

    def give(self, area: SharedArea | None, slot: int, *, on_loan: bool = False) -> None:
        """Copy the arrays of the latest tree to the area of a slot, and forget them.

        Raises DoesNotFit if the area has no room for them, or is none; DeviceArrayRefused for a slot on loan.
        """
        if on_loan:
            raise _refused("layout", "a slot on loan takes no arrays in GPU memory: send them with infer() or submit()")
        arrays, offsets, end = self.met, [], 0
        for array in arrays:
            offsets.append(aligned(end, DEVICE_ALIGNMENT))
            end = offsets[-1] + array.size
        if area is None or end > area.area_bytes or slot >= area.slots:
            raise DoesNotFit(0, 0, max(end, 1))
        area.write(slot, arrays, offsets)
        self.met = []


def _of_tensor(tensor: Any) -> DeviceArray:
    """Describe a torch tensor, whose interface names no stream and refuses bfloat16 and tensors with a gradient."""
    dtype, torch = tensor_dtype(tensor), sys.modules["torch"]
    if dtype not in DTYPES:
        raise _refused("dtype", f"a tensor of {tensor.dtype} has no dtype that is carried: convert it")
    if tensor.layout is not torch.strided:
        raise _refused("layout", f"a tensor of layout {tensor.layout}: use to_dense()")
    if tensor.is_conj() or tensor.is_neg():
        raise _refused(
            "layout", "its values are conjugated or negated when they are read: use resolve_conj().resolve_neg()"
        )
    if not tensor.is_contiguous():
        raise _refused("layout", "an array in GPU memory is taken in C order alone: use .contiguous()")
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return DeviceArray(dtype, tuple(tensor.shape), tensor.data_ptr(), stream or CU_STREAM_LEGACY, tensor)


def _of_interface(value: Any, interface: dict[str, Any]) -> DeviceArray:
    try:
        shape = tuple(int(length) for length in interface["shape"])
        dtype, address, strides = str(interface["typestr"]), interface["data"][0], interface.get("strides")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        text = f"its __cuda_array_interface__ cannot be read ({type(error).__name__}: {error})"
        raise _refused("layout", text) from error
    if dtype not in DTYPES:
        raise _refused("dtype", f"an array of typestr {dtype!r}: convert it, or send bfloat16 as a torch tensor")
    if interface.get("mask") is not None:
        raise _refused("layout", "its mask would be lost: send the data and the mask as two arrays")
    if strides is not None and 0 not in shape and not _is_c_order(shape, strides, DTYPES[dtype]):
        raise _refused(
            "layout",
            "an array in GPU memory is taken in C order alone: use .contiguous() or cupy.ascontiguousarray()",
        )
    # https://numba.readthedocs.io: without `stream` (before version 3) work may wait in the default stream; None: none waits.
    stream = interface.get("stream", CU_STREAM_LEGACY)
    if stream is not None and (type(stream) is not int or stream < 1):
        raise _refused("layout", f"its stream cannot be {stream!r}: 1, 2 or a stream's address")
    return DeviceArray(dtype, shape, address or 0, _OWN if stream is None else stream, value)


def _is_c_order(shape: tuple[int, ...], strides: Sequence[int], size: int) -> bool:
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


def _refused(reason: str, text: str) -> DeviceArrayRefused:
    return DeviceArrayRefused(text, reason=reason)


def _spelled(gpu: str) -> str:
    """Return a UUID as nvidia-smi has it.

    >>> _spelled("00112233445566778899aabbccddeeff")
    'GPU-00112233-4455-6677-8899-aabbccddeeff'
    """
    return "GPU-" + "-".join((gpu[:8], gpu[8:12], gpu[12:16], gpu[16:20], gpu[20:]))
