"""The memory of one batch: bytes of the host, page-locked, and as many of the device that they are copied to.

A row's payload lies in both as it lies in its slot, one row behind the other:

    slot of client 2   [numbers|image......|state]                       np.copyto
    slot of client 0   [numbers|image......|state]
    host               [numbers|image......|state|numbers|image......|state| free ...]
    device             [numbers|image......|state|numbers|image......|state| free ...]    one copy

Rows of one structure have one distance, so that a tensor over all rows needs no further copy (`models/rows.py`).
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.codec import plain_leaf
from shmserve.layout import CACHE_LINE, aligned
from shmserve.schema import BFLOAT16, LeafLayout, Schema

from .errors import with_memory_given_back
from .interface import Device, sharing
from .pinned_pool import PinnedPool

#: Rows (by place and structure) whose tensors are remembered.
_REMEMBERED = 256


class Arena:
    """Used by one batch at a time: `place` each row, `send`, and `done` once it is answered."""

    def __init__(self, device: Device, host: PinnedPool) -> None:
        self._device = device
        self._source = host
        self.host = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._bytes: npt.NDArray[np.uint8] = self.host.numpy()
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        #: By place and structure: the tensors of a row, None for what is no array and stays on the host. A policy gets
        #: others over the same memory, whose shape it may change, and which tell by their existence that it keeps them.
        self._tensors: dict[tuple[int, bytes], list[torch.Tensor | None]] = {}
        #: Rows of the present batch; the first lies at the start, whatever becomes of its request.
        self.rows = 0
        self._end = 0
        #: Host bytes, from and to, that are not on their way yet.
        self._unsent: tuple[int, int] | None = None
        self._directly = 0
        #: Whether a row of the present batch comes from its client's memory.
        self._reads_clients = False
        #: Behind the copies to the device: the host's part may be written again.
        self._copied = device.event()
        #: Behind the model and what is copied back: the device's part may be written again.
        self.finished = device.event()
        #: What shares the device's part when no policy does: itself, and the remembered tensors. None: nobody can tell.
        self._own: tuple[int, int] | None = None
        #: Tensors of this arena are part of a recorded graph: its memory stays where it is.
        self.fixed = False

    @property
    def size(self) -> int:
        return int(self.host.numel())

    def reserve(self, size: int) -> None:
        """Have at least so many bytes; only between batches. Raises torch.OutOfMemoryError, and keeps what it had."""
        if size > self.size:
            self.adopt(*self.larger(size))

    def larger(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for so many bytes, of the host and of the device; raises torch.OutOfMemoryError."""
        assert not self.fixed and not self.rows
        memory = self._new_memory(aligned(size))  # first: what is locked for the other part stays locked
        return self._source.take(aligned(size)), memory

    def adopt(self, host: torch.Tensor, memory: torch.Tensor) -> None:
        """Use what `larger` gave from now on."""
        self._copied.synchronize()  # or the old memory could be given away under a copy
        self.host = host
        self._bytes = host.numpy()
        self._use(memory)

    def _new_memory(self, size: int) -> torch.Tensor:
        return with_memory_given_back(self._device, lambda: self._device.memory(size))

    def _use(self, memory: torch.Tensor) -> None:
        self._tensors.clear()
        self.memory = memory
        self._own = sharing(memory)
        # What it was before may still be in use on the compute stream.
        self._device.record(self.finished)

    def _begin(self) -> None:
        """The first row of a batch: the copies of the batch before must be over."""
        if not self._copied.query():
            self._copied.synchronize()
        self._end = 0
        self._unsent = None
        self._directly = 0
        self._reads_clients = False
        if self.memory.numel() < self.size:  # the policy has kept the last one, and there was no more
            self._use(self._new_memory(self.size))

    def has_room(self, payload_bytes: int) -> bool:
        """Whether so large a request may be placed beside those that are."""
        return self._end + payload_bytes <= self.size

    def place(
        self, schema: Schema, payload: npt.NDArray[np.uint8], *, directly: torch.Tensor | None = None, ahead: bool
    ) -> Any:
        """Take a row's payload over; returns its observation, whose arrays are tensors of the device.

        `directly` is the same payload as page-locked memory that stays until the row is answered: it then reaches the
        device without a copy on the host. The tensors hold what was placed once it was sent.
        """
        if not self.rows:
            self._begin()
        start, size = self._end, schema.payload_bytes
        end = start + size
        row = payload
        if directly is None:
            # The one copy on the host: what the client writes from now on is not seen.
            row = self._bytes[start:end]
            np.copyto(row, payload[:size])
        leaves = [
            plain_leaf(place, place.view(row)) if tensor is None else tensor.detach()
            for place, tensor in zip(schema.arrays, self._tensors_at(start, schema), strict=True)
        ]
        observation = schema.unflatten(schema.numbers.unpack_from(row.data, 0), leaves)
        # What cannot be read has raised by now, and has no row.
        if directly is not None:
            self._hold(ahead)
            self._device.copy_in(self.memory[start:end], directly[:size], ahead=ahead)
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

    def send(self, *, ahead: bool) -> None:
        """Begin to copy what was placed since the last time; `ahead`: beside the work of the batch before.

        What the device raises changes nothing: the next time copies it again.
        """
        if self._unsent is not None:
            start, end = self._unsent
            self._hold(ahead)
            self._device.copy_in(self.memory[start:end], self.host[start:end], ahead=ahead)
        elif not self._directly:
            return
        self._device.record(self._copied, ahead=ahead)
        if ahead:
            self._device.hold(self._copied)
        self._unsent = None
        self._directly = 0

    def arrived(self) -> None:
        """Until nothing is copied from clients' memory any more, which they then may write to again."""
        if self._reads_clients:
            self.send(ahead=False)
            self._copied.synchronize()

    def _hold(self, ahead: bool) -> None:
        if ahead:  # the compute stream keeps its own order
            self._device.hold(self.finished, ahead=True)

    def computed(self) -> None:
        """All of the model's work, and the copies of what it gave, are in the compute stream."""
        self._device.record(self.finished)

    def done(self) -> None:
        """The rows are answered: keep the device's part for the next batch, unless the policy still holds some of it."""
        if not self.fixed and (self._own is None or self._own != sharing(self.memory)):
            self._tensors.clear()
            self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
            with contextlib.suppress(RuntimeError):  # then the next batch asks again, and its first request fails
                self._use(self._new_memory(self.size))
        self.rows = 0
        self._end = 0

    def _tensors_at(self, start: int, schema: Schema) -> list[torch.Tensor | None]:
        key = (start, schema.metadata)
        tensors = self._tensors.get(key)
        if tensors is None:
            before = sharing(self.memory)
            if len(self._tensors) >= _REMEMBERED:
                self._tensors.clear()
            tensors = self._tensors[key] = self._made_at(start, schema)
            after = sharing(self.memory)
            if self._own is not None and before is not None and after is not None:
                # Measured and not counted: outside of inference mode a tensor may share the memory twice.
                self._own = self._own[0] + after[0] - before[0], self._own[1] + after[1] - before[1]
        return tensors

    def _made_at(self, start: int, schema: Schema) -> list[torch.Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():  # a policy may ask for gradients, or change them in a thread
            row = self.memory[start : start + schema.payload_bytes]
            return [device_tensor(place, row) if place.kind == "array" else None for place in schema.arrays]


def device_tensor(place: LeafLayout, row: torch.Tensor) -> torch.Tensor:
    """The tensor of one leaf over the bytes of its row."""
    dtype = torch_dtype(place)
    return row[place.offset : place.offset + place.size].view(dtype).view(place.shape)


def torch_dtype(place: LeafLayout) -> torch.dtype:
    """The dtype of a leaf as torch names it."""
    if place.dtype == BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, place.stored_as)).dtype
