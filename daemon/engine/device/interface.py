"""Interface of a GPU to the engine: memory, two streams, events, and its description.

There is a compute stream, on which models run, and a copy stream, whose copies go `ahead`: they are for the batch
after the one that the device works on. Work on one stream is done in its order; work on the two only where one
`holds` for an event of the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch


class PinFailed(Exception):
    """The system gives no page-locked memory, or does not lock this; the text says why."""


class Event(Protocol):
    """A mark in a stream (`torch.cuda.Event`); one that was never recorded has passed."""

    def query(self) -> bool:
        """Whether the device has come past it; raises what went wrong on the device before it."""

    def synchronize(self) -> None:
        """Sleep until it has; raises as `query`."""


class Captured(Protocol):
    """A call of the model as one launch."""

    #: What the call returned; its tensors hold the results of the latest replay.
    output: Any

    def replay(self) -> None:
        """Launch it on the compute stream."""


class Device(Protocol):
    """One GPU."""

    #: Where policies put their weights.
    torch_device: torch.device

    def pinned(self, size: int) -> torch.Tensor:
        """Allocate this many page-locked bytes of the host; raises PinFailed."""

    def memory(self, size: int) -> torch.Tensor:
        """Allocate this many bytes of the device; raises torch.OutOfMemoryError. Their holder may keep them for ever."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is in this device's memory; another GPU's is not."""

    def bring(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor in this device's memory, if it is in another GPU's; None for the host's. What holds it is asked."""

    def copy_in(self, target: torch.Tensor, source: torch.Tensor, *, ahead: bool) -> None:
        """Begin to copy bytes of the host to the device; both must stay until an event after it has passed."""

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy a tensor of the device to the host, after the compute stream's work until now."""

    def event(self) -> Event:
        """A new one."""

    def record(self, event: Event, *, ahead: bool = False) -> None:
        """Put it behind all work that the stream has now."""

    def hold(self, event: Event, *, ahead: bool = False) -> None:
        """The stream's further work waits until the event has passed; the host does not."""

    def register(self, address: int, size: int) -> None:
        """Page-lock memory that is mapped to be read and written; raises PinFailed."""

    def unregister(self, address: int) -> None:
        """Before it is unmapped, after every copy from it."""

    def rejoin(self) -> None:
        """Have calls use the compute stream, as they did before a model changed that; its work comes before theirs."""

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Record what `call` launches; raises what the device says of a call that cannot be recorded."""

    def prepare_capture(self, call: Callable[[], Any]) -> None:
        """Run `call` a few times as `capture` will, so that what is made at the first call exists by then."""

    def synchronize(self) -> None:
        """Until all work is done; raises what went wrong."""

    def poisoned(self) -> str | None:
        """Why no further call of this process can succeed; None if they can."""

    def give_back(self) -> None:
        """Return to the device what is kept for later tensors."""

    def free_memory(self) -> tuple[int, int]:
        """Bytes of the device that are free, and all of them."""

    def used_memory(self) -> int:
        """The most bytes that this process's tensors have had reserved."""

    def facts(self) -> dict[str, Any]:
        """Its description for the operator: name, memory, integrated ..."""


def sharing(tensor: torch.Tensor) -> tuple[int, int] | None:
    """How many tensors share its memory, and how many references there are to the memory's own Python object.

    Only to be compared with what this has said before: it counts itself. Whatever a policy keeps (a tensor, a view, a
    capsule of DLPack, the storage) is more of the one or of the other. None where this torch cannot tell.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return None
    storage = tensor.untyped_storage()
    return int(count(storage._cdata)), sys.getrefcount(storage)
