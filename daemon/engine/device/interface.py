"""Interface of a GPU to the engine: memory, two streams, events, and its description.

Models run on the compute stream. The copy stream takes copies that go `ahead`: they are for the batch after the one
that the device works on. Work on one stream runs in order; work on the two streams is ordered only where one of them
is put on `hold` until an event of the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch


class PinFailed(Exception):
    """The system cannot allocate page-locked memory or lock the given memory; the text says why."""


class SharingFailed(Exception):
    """Memory cannot be shared with another process; the text says why. `is_short`: the device has too little."""

    def __init__(self, text: str, *, is_short: bool = False) -> None:
        super().__init__(text)
        self.is_short = is_short


class SharedMemory(Protocol):
    """Memory of the device that other processes have mapped as well."""

    #: Its bytes.
    tensor: torch.Tensor
    size: int

    def close(self) -> None:
        """Unmap it, once no work of the device uses it; its tensor must not be used afterwards."""


class Event(Protocol):
    """A marker in a stream (`torch.cuda.Event`); an event that was never recorded counts as passed."""

    def query(self) -> bool:
        """Return whether the device has passed it; raises errors of the work before it."""

    def synchronize(self) -> None:
        """Sleep until the device has passed it; raises as `query`."""


class Captured(Protocol):
    """A recorded call of the model, launched as a whole."""

    #: Return value of the call; its tensors hold the results of the latest replay.
    output: Any

    def replay(self) -> None:
        """Launch it on the compute stream."""


class Device(Protocol):
    """One GPU."""

    #: Device for the policies' weights.
    torch_device: torch.device

    def pinned(self, size: int) -> torch.Tensor:
        """Allocate this many page-locked bytes of the host; raises PinFailed."""

    def memory(self, size: int) -> torch.Tensor:
        """Allocate this many bytes of the device, to keep indefinitely; raises torch.OutOfMemoryError."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor is in this device's memory, and not in the host's or another GPU's."""

    def bring(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Copy a tensor of another GPU to this device; returns None for the host's tensors. Check `holds` before."""

    def copy_in(self, target: torch.Tensor, source: torch.Tensor, *, ahead: bool) -> None:
        """Begin to copy bytes of the host or of a client's memory on the device to memory of the device.

        Both must stay until an event after it has passed.
        """

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy a tensor of the device to the host, after the compute stream's work until now."""

    def event(self) -> Event:
        """Create an event."""

    def record(self, event: Event, *, ahead: bool = False) -> None:
        """Record the event after all work now in the stream."""

    def hold(self, event: Event, *, ahead: bool = False) -> None:
        """Make the stream's later work wait for the event; the host does not wait."""

    def register(self, address: int, size: int) -> None:
        """Page-lock memory with a writable mapping; raises PinFailed. May be called in any thread, as `unregister`."""

    def unregister(self, address: int) -> None:
        """Undo `register`; call it after every copy from the memory and before it is unmapped."""

    def over(self, address: int, size: int) -> torch.Tensor:
        """Return bytes of the device that are registered memory of the host; raises PinFailed if the device has no such.

        The memory must stay registered as long as the tensor, or one that shares its storage, exists.
        """

    def create_shared(self, size: int) -> tuple[int, int]:
        """Allocate memory for several processes; return a descriptor that is the caller's, and its size in whole pages.

        Raises SharingFailed.
        """

    def map_shared(self, descriptor: int, size: int) -> SharedMemory:
        """Map such memory; the descriptor stays the caller's. Raises SharingFailed."""

    def uuid(self) -> str:
        """Return what names this GPU in every process; raises SharingFailed."""

    def rejoin(self) -> None:
        """Make the compute stream current again after a model changed it, and order its later work after the model's."""

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Record the work that `call` launches; raises the device's error if it cannot be recorded.

        After an error no random numbers can be drawn on the device until a recording succeeds.
        """

    def prepare_capture(self, call: Callable[[], Any]) -> None:
        """Run `call` a few times as `capture` will, each after the work of the one before has ended.

        Resources of the first call then exist before the recording.
        """

    def synchronize(self) -> None:
        """Wait until all work is done; raises its errors."""

    def poisoned(self) -> str | None:
        """Wait for all work, and return why no further call of this process can succeed, None if calls can succeed."""

    def give_back(self) -> None:
        """Release the memory that torch caches for later tensors."""

    def give_back_pinned(self) -> None:
        """Release the page-locked memory that torch keeps after its last use."""

    def free_memory(self) -> tuple[int, int]:
        """Return the device's free bytes and its total bytes."""

    def used_memory(self) -> int:
        """Return the peak of the bytes reserved for this process's tensors."""

    def reserved_memory(self) -> int:
        """Return the bytes that are reserved for this process's tensors now."""

    def facts(self) -> dict[str, Any]:
        """Return its description for the operator: name, memory, integrated ..."""


def sharing(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return the number of tensors that share the memory, and of references to the memory's own Python object.

    The numbers count this function's own use as well, so compare them only with earlier results. Everything that a policy
    keeps (a tensor, a view, a DLPack capsule, the storage) raises one of them. Returns None if this torch cannot count.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return None
    storage = tensor.untyped_storage()
    return int(count(storage._cdata)), sys.getrefcount(storage)
