"""Memory of one batch: page-locked bytes of the host, and the same number of bytes of the device, to which they are copied.

Both hold the leaves of the rows' payloads with the layout of the slots, one row after the other. The sizes and numbers at the
front of a payload stay on the host:

    slot of client 2   [sizes, numbers|image......|state]                np.copyto
    slot of client 0   [sizes, numbers|image......|state]
    host               [image......|state|image......|state| free ...]
    device             [image......|state|image......|state| free ...]    one copy

Rows of one array are equally spaced and without gaps where its bytes fill whole lines, so that a tensor over all rows needs no
further copy (models/rows.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.carried_values import BFLOAT16
from shmserve.codec import plain_leaf
from shmserve.layout import CACHE_LINE, aligned
from shmserve.metadata import MetadataError
from shmserve.metadata_leaf import DEVICE
from shmserve.schema import LeafPlace, Schema

from .errors import with_memory_given_back
from .interface import Device, Event, sharing
from .pinned_pool import PinnedPool

#: Rows (by offset and places) whose tensors are cached.
_REMEMBERED = 256


class Arena:
    """Memory for one batch at a time: `place` each row, `send`, and `done` once the batch is answered."""

    def __init__(self, device: Device, host: PinnedPool) -> None:
        self._device = device
        self._source = host
        self.host = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._bytes: npt.NDArray[np.uint8] = self.host.numpy()
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        #: By offset and places of the leaves: the tensors of a row, None for a leaf that is not an array and stays on the
        #: host. A policy gets separate tensors over the same memory; it may change their shape, and their number shows
        #: whether it keeps any.
        self._tensors: dict[tuple[int, tuple[LeafPlace, ...]], list[torch.Tensor | None]] = {}
        #: Places of the latest payload, and of its row.
        self._latest: tuple[list[LeafPlace], list[LeafPlace]] = ([], [])
        #: Rows of the current batch, including those whose requests do not run.
        self.rows = 0
        self._end = 0
        #: Start and end of the host bytes whose copy has not begun.
        self._unsent: tuple[int, int] | None = None
        self._directly = 0
        #: Whether a row of the current batch is copied directly from its client's memory.
        self._reads_clients = False
        #: Recorded after the copies to the device.
        self._copied = device.event()
        #: Recorded after the model and the readback; once it has passed, the device's part may be overwritten.
        self.finished = device.event()
        #: The one of the two after which the host's part may be overwritten.
        self._read: Event = self._copied
        #: Expected result of `sharing` for the device's part while no policy keeps a tensor of it. None: unknown.
        self._own: tuple[int, int] | None = None
        #: Whether a recorded graph uses this arena's tensors, so that its memory must not move.
        self.fixed = False

    @property
    def size(self) -> int:
        return int(self.host.numel())

    def reserve(self, size: int) -> None:
        """Grow to at least this many bytes; only between batches. Keeps its memory if it raises torch.OutOfMemoryError."""
        if size > self.size:
            self.adopt(self.larger(size))

    def larger(self, size: int) -> torch.Tensor:
        """Allocate this many bytes of the device for `adopt`; raises torch.OutOfMemoryError."""
        assert not self.fixed and not self.rows
        return self._new_memory(aligned(size))

    def adopt(self, memory: torch.Tensor) -> None:
        """Switch to the memory that `larger` returned, and to as much of the host."""
        host = self._source.take(memory.numel())[: memory.numel()]
        self._read.synchronize()  # or the old memory could be released during a copy
        self._source.forget(self.host)
        self.host = host
        self._bytes = host.numpy()
        self._use(memory)

    def _new_memory(self, size: int) -> torch.Tensor:
        return with_memory_given_back(self._device, lambda: self._device.memory(size))

    def _use(self, memory: torch.Tensor) -> None:
        self._tensors.clear()
        self.memory = memory
        self._own = sharing(memory)
        # The compute stream may still use the memory for its previous purpose.
        self._device.record(self.finished)

    def _begin(self) -> None:
        """Start a batch, once the copies of the previous batch have finished."""
        if not self._read.query():
            self._read.synchronize()
        self._end = 0
        self._unsent = None
        self._directly = 0
        self._reads_clients = False
        if self.memory.numel() < self.size:  # the policy kept the previous memory, and a new allocation failed
            self._use(self._new_memory(self.size))

    def has_room(self, payload_bytes: int) -> bool:
        """Return whether a request of this size fits in addition to the placed rows."""
        return self._end + payload_bytes <= self.size

    def place(
        self,
        schema: Schema,
        payload: npt.NDArray[np.uint8],
        payload_bytes: int,
        *,
        directly: torch.Tensor | None = None,
        ahead: bool,
    ) -> Any:
        """Copy a row's payload in, and return its observation, whose arrays are tensors of the device.

        `directly` is the same payload in page-locked memory, which stays valid until the row is answered: the device then
        copies it without a copy on the host. The tensors hold the payload after `send`.
        """
        if not self.rows:
            self._begin()
        in_payload = schema.layout(payload, payload_bytes)  # of a copy of the sizes
        front = in_payload[0].offset if in_payload else payload_bytes
        places = self._behind(in_payload, front)
        numbers = schema.reader.numbers(payload)
        start, size = self._end, payload_bytes - front
        end = start + size
        row = payload[front:payload_bytes]
        if directly is None:
            # The one copy on the host: later writes of the client are not seen.
            row = self._bytes[start:end]
            np.copyto(row, payload[front:payload_bytes])
        leaves = [
            plain_leaf(place, row) if tensor is None else tensor.detach()
            for place, tensor in zip(places, self._tensors_at(start, places), strict=True)
        ]
        observation = schema.reader.unflatten(numbers, leaves)
        # An unreadable payload has raised by now, and does not become a row.
        if directly is not None:
            self._hold(ahead)
            self._device.copy_in(self.memory[start:end], directly[front:payload_bytes], ahead=ahead)
            self._directly += 1
            self._reads_clients = True
        elif self._unsent is None or self._unsent[1] == start:
            self._unsent = (start if self._unsent is None else self._unsent[0], aligned(end, CACHE_LINE))
        else:
            self.send(ahead=ahead)
            self._unsent = (start, aligned(end, CACHE_LINE))
        self._end = aligned(end, CACHE_LINE)
        self.rows += 1
        return observation

    def place_from_area(
        self,
        schema: Schema,
        payload: npt.NDArray[np.uint8],
        payload_bytes: int,
        of_area: Callable[[LeafPlace], torch.Tensor | None],
        *,
        ahead: bool,
    ) -> Any:
        """As `place`, for a tree with arrays in GPU memory, whose bytes `of_area` gives; None: they are not all there.

        The row is as if all arrays had come from the host, and its copies begin at once.
        """
        if not self.rows:
            self._begin()
        given, places = schema.both_layouts(payload, payload_bytes)
        places, start = self._behind(places, places[0].offset), self._end
        end = start + places[-1].offset + places[-1].size
        if end > self.size:
            raise MetadataError(f"{end - start} bytes of arrays where {self.size - start} have room")
        numbers, row = schema.reader.numbers(payload), self._bytes[start:end]
        copies: list[tuple[int, int, torch.Tensor]] = []
        for source, place in zip(given, places, strict=True):
            first, last = place.offset, place.offset + place.size
            if source.kind == DEVICE:
                memory = of_area(source)
                if memory is None:
                    raise MetadataError("arrays in GPU memory reach beyond their slot's area")
                copies.append((first, last, memory))
                continue
            np.copyto(row[first:last], payload[source.offset : source.offset + source.size])
            if source.kind == "array":
                copies.append((first, last, self.host[start + first : start + last]))
        leaves = [
            plain_leaf(place, row) if tensor is None else tensor.detach()
            for place, tensor in zip(places, self._tensors_at(start, places), strict=True)
        ]
        observation = schema.reader.unflatten(numbers, leaves)
        self._hold(ahead)
        self._directly += 1
        self._reads_clients = True
        for first, last, memory in copies:
            if first < last:
                self._device.copy_in(self.memory[start + first : start + last], memory, ahead=ahead)
        self._end = aligned(end, CACHE_LINE)
        self.rows += 1
        return observation

    def _behind(self, places: list[LeafPlace], front: int) -> list[LeafPlace]:
        """Return the places of a row that lies without the front of its payload."""
        known, behind = self._latest
        if known is not places:
            behind = [replace(place, offset=place.offset - front) for place in places]
            self._latest = places, behind
        return behind

    def send(self, *, ahead: bool) -> None:
        """Begin to copy the rows placed since the last call; `ahead`: concurrently with the previous batch's work.

        If the device raises, the next call copies the same rows again.
        """
        if self._unsent is not None:
            start, end = self._unsent
            self._hold(ahead)
            self._device.copy_in(self.memory[start:end], self.host[start:end], ahead=ahead)
        elif not self._directly:
            return
        self._device.record(self._copied, ahead=ahead)
        self._read = self._copied
        if ahead:
            self._device.hold(self._copied)
        self._unsent = None
        self._directly = 0

    @property
    def is_unsent(self) -> bool:
        """Whether the host's part holds every row of the batch and no copy of one has begun."""
        return self._unsent == (0, self._end)

    def copy_all(self) -> None:
        """Begin to copy every row, in the current stream: a part of a graph, which is recorded once for all batches."""
        self._device.copy_in(self.memory[: self._end], self.host[: self._end], ahead=False)

    def sent_by_graph(self) -> None:
        """Note that a graph was launched which copies the rows (`copy_all`): they are read until the graph is done."""
        self._unsent = None
        self._read = self.finished

    def arrived(self) -> None:
        """Wait until no copy reads the clients' memory, so that clients may overwrite it."""
        if self._reads_clients:
            self.send(ahead=False)
            self._copied.synchronize()

    def _hold(self, ahead: bool) -> None:
        if ahead:  # the compute stream keeps its own order
            self._device.hold(self.finished, ahead=True)

    def computed(self) -> None:
        """Record that all of the model's work and the readback are in the compute stream."""
        self._device.record(self.finished)

    def done(self) -> None:
        """End the batch, and keep the device's part for the next one unless the policy still holds tensors of it."""
        if not self.fixed and (self._own is None or self._own != sharing(self.memory)):
            self._tensors.clear()
            self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
            with contextlib.suppress(RuntimeError):  # the next batch tries again; its first request may fail
                self._use(self._new_memory(self.size))
        self.rows = 0
        self._end = 0

    def _tensors_at(self, start: int, places: list[LeafPlace]) -> list[torch.Tensor | None]:
        key = (start, tuple(places))
        tensors = self._tensors.get(key)
        if tensors is None:
            before = sharing(self.memory)
            if len(self._tensors) >= _REMEMBERED:
                self._tensors.clear()
            tensors = self._tensors[key] = self._made_at(start, places)
            after = sharing(self.memory)
            if self._own is not None and before is not None and after is not None:
                # Measured instead of computed: outside of inference mode a tensor may share the memory twice.
                self._own = self._own[0] + after[0] - before[0], self._own[1] + after[1] - before[1]
        return tensors

    def _made_at(self, start: int, places: list[LeafPlace]) -> list[torch.Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():  # a policy may use gradients, or write in a thread
            row = self.memory[start:]
            return [device_tensor(place, row) if place.kind == "array" else None for place in places]


def device_tensor(place: LeafPlace, row: torch.Tensor) -> torch.Tensor:
    """Return the tensor of one leaf over the bytes of its row."""
    dtype = torch_dtype(place)
    return row[place.offset : place.offset + place.size].view(dtype).view(place.shape)


def torch_dtype(place: LeafPlace) -> torch.dtype:
    """Return torch's dtype of a leaf."""
    if place.dtype == BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, place.stored_as)).dtype
