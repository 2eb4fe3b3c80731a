"""A GPU without a GPU: its memory is the host's, and its streams are as late as a real one's may be.

The compute stream runs what the host launches at once; everything else happens at the last moment that the rules of
CUDA allow:

- a copy `ahead` is made when the compute stream holds for an event behind it, or that event passes;
- a copy out is made when an event behind it passes; until then its target holds nonsense;
- an event passes when it is waited for, or has been asked for `lateness` times;
- memory that was freed is handed out again at once, and holds nonsense.

And what CUDA would let happen to a program's data is an error here (`Hazard`): host memory written to under a copy,
device memory copied to while a model may still read it, memory unmapped while it is registered.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shmserve.daemon.engine.device.interface import Event, PinFailed, sharing

_NONSENSE = 0xAB


class Hazard(BaseException):
    """The program under test has a race. No Exception: nobody may take it for a model's error."""


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.recorded = 0  # its place among all that was recorded; 0: never
        self.ahead = False
        self.passed = True
        self._asked = 0

    def _record(self, number: int, ahead: bool) -> None:
        self.recorded, self.ahead, self.passed, self._asked = number, ahead, False, 0

    def query(self) -> bool:
        self._device.check()
        if not self.passed:
            self._asked += 1
            if self._asked > self._device.lateness and self._device.may_pass():
                self._device.run_until(self)
        return self.passed

    def synchronize(self) -> None:
        self._device.check()
        if not self.passed:
            self._device.waits += 1
            self._device.run_until(self)


class _Copy:
    def __init__(self, target: torch.Tensor, source: torch.Tensor, *, inwards: bool) -> None:
        self.target, self.source, self.inwards = target, source, inwards
        self.content = source.clone()
        self.made = False

    def make(self) -> None:
        if not self.made:
            self.made = True
            self.target.copy_(self.content)

    def end(self) -> None:
        self.make()
        if self.inwards and not torch.equal(self.source, self.content):
            raise Hazard("host memory was written to while it was copied to the device")


class _Allocator:
    """Hands freed memory out again, the newest first; a copy under way keeps nothing from that."""

    def __init__(self) -> None:
        self._blocks: list[tuple[torch.Tensor, Any]] = []

    def take(self, size: int) -> torch.Tensor:
        for block, unused in reversed(self._blocks):
            if block.numel() == size and sharing(block) == unused:
                return block.fill_(_NONSENSE).detach()
        with torch.inference_mode(False):
            block = torch.full((size,), _NONSENSE, dtype=torch.uint8, device="cpu")
        self._blocks.append((block, sharing(block)))
        return block.detach()

    @property
    def used(self) -> int:
        return sum(block.numel() for block, unused in self._blocks if sharing(block) != unused)

    def bytes_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's bytes, without keeping the block from being freed; of other memory a view."""
        size = tensor.numel() * tensor.element_size()
        if not size or not tensor.is_contiguous() or not self._has(tensor):
            return tensor
        memory = (ctypes.c_uint8 * size).from_address(tensor.data_ptr())
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)

    def _has(self, tensor: torch.Tensor) -> bool:
        start = tensor.untyped_storage().data_ptr()
        return any(block.data_ptr() == start for block, _ in self._blocks)


class FakeDevice:
    def __init__(
        self,
        *,
        lateness: int = 3,
        pin_limit: int | None = None,
        memory_limit: int = 1 << 40,
        memory_total: int = 1 << 40,
        registers: bool = True,
        total_bytes: int = 16 << 30,
        free_bytes: int = 8 << 30,
        model_bytes: int = 0,
    ) -> None:
        """`pin_limit`: bytes that may be page-locked in all; `memory_limit`: the largest piece of device memory.

        `memory_total`: what all pieces that are in use may have together.
        """
        self.torch_device = torch.device("cpu")
        self.lateness = lateness
        self.may_pass: Callable[[], bool] = lambda: True
        self._pin_limit = pin_limit
        self._memory_limit = memory_limit
        self.memory_total = memory_total
        self._host_memory, self._memory = _Allocator(), _Allocator()
        #: What is raised where there is no memory; torch has several ways to say so.
        self.out_of_memory: Callable[[str], Exception] = torch.OutOfMemoryError
        #: What tensors at these addresses hold: the memory of another GPU.
        self.elsewhere: dict[int, torch.Tensor] = {}
        #: A model has changed the stream that calls use: what they copy is not in the order of its work.
        self.strayed = False
        self._registers = registers
        self._total_bytes, self._free_bytes, self._model_bytes = total_bytes, free_bytes, model_bytes
        self._streams: dict[bool, deque[_Copy | FakeEvent | int]] = {False: deque(), True: deque()}
        self._holds: dict[bool, int] = {False: 0, True: 0}
        #: By storage: the last event on the compute stream between a copy there and the next copy elsewhere.
        self._readers: dict[int, tuple[FakeEvent, int]] = {}
        #: By storage: what was recorded before a model began to read it.
        self._read: dict[int, int] = {}
        self._passed = 0
        self._copied_to = 0
        self._count = 0
        self.pinned_bytes = 0
        self.waits = 0  # times the host slept on an event
        self.copies_in: list[tuple[int, bool]] = []  # (bytes, ahead)
        self.copies_out = 0
        self.registered: dict[int, int] = {}
        self.given_back = 0
        self.poison: str | None = None

    def check(self) -> None:
        """What every call of a device begins with."""
        if self.poison is not None:
            raise RuntimeError(f"CUDA error: {self.poison}\nCompile with `TORCH_USE_CUDA_DSA` to enable ...")

    # Memory

    def pinned(self, size: int) -> torch.Tensor:
        self._lock(size)
        return self._host_memory.take(size)

    def _lock(self, size: int) -> None:
        if self._pin_limit is not None and self.pinned_bytes + size > self._pin_limit:
            raise PinFailed("CUDA error: out of memory")
        self.pinned_bytes += size

    def memory(self, size: int) -> torch.Tensor:
        self.check()
        if size > self._memory_limit or self._memory.used + size > self.memory_total:
            raise self.out_of_memory(f"CUDA out of memory. Tried to allocate {size} bytes.")
        return self._memory.take(size)

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.data_ptr() not in self.elsewhere

    def bring(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return self.elsewhere[tensor.data_ptr()].clone()

    def reads(self, tensor: torch.Tensor) -> None:
        """A model has begun to read this memory, and is at it until an event that is recorded later has passed."""
        self._read[tensor.untyped_storage().data_ptr()] = self._count

    def register(self, address: int, size: int) -> None:
        if not self._registers:
            raise PinFailed("cudaHostRegister: operation not supported")
        if "w" not in _mapping(address):
            raise PinFailed("cudaHostRegister: invalid argument")  # as CUDA says of memory mapped for reading
        self._lock(size)
        self.registered[address] = size

    def unregister(self, address: int) -> None:
        size = self.registered.pop(address)
        self.pinned_bytes -= size
        if not _mapping(address):
            raise Hazard("unregistered after it was unmapped")
        for copies in self._streams.values():
            for copy in copies:
                if isinstance(copy, _Copy) and address <= copy.source.data_ptr() < address + size:
                    raise Hazard("unregistered while a copy of it is under way")

    # Streams

    def copy_in(self, target: torch.Tensor, source: torch.Tensor, *, ahead: bool) -> None:
        self.check()
        assert target.dtype == source.dtype == torch.uint8 and target.shape == source.shape
        storage = target.untyped_storage().data_ptr()
        reader, recorded = self._readers.get(storage, (None, 0))
        if ahead and reader is not None and not reader.passed and self._holds[True] < recorded:
            raise Hazard("device memory is copied to while a model may still read it")
        if ahead and max(self._holds[True], self._passed) <= self._read.get(storage, -1):
            raise Hazard("device memory is copied to while a model that began to read it is not waited for")
        self._copied_to = storage
        self.copies_in.append((target.numel(), ahead))
        copy = _Copy(self._memory.bytes_of(target), self._host_memory.bytes_of(source), inwards=True)
        self._streams[ahead].append(copy)
        if not ahead:
            self._run_held()
            copy.make()

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.check()
        self.copies_out += 1
        assert self.holds(source), "copied from another GPU, on whose stream nobody waits"
        copy = _Copy(self._host_memory.bytes_of(target), source, inwards=False)
        if self.strayed:
            copy.content.view(-1).view(torch.uint8).fill_(_NONSENSE)
        target.view(-1).view(torch.uint8).fill_(_NONSENSE) if target.numel() else None
        self._streams[False].append(copy)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def record(self, event: Event, *, ahead: bool = False) -> None:
        self.check()
        assert isinstance(event, FakeEvent)
        self._count += 1
        event._record(self._count, ahead)
        self._streams[ahead].append(event)
        self._streams[ahead].append(self._count)  # an event that is recorded again does not pass for the first time
        if not ahead:
            self._readers[self._copied_to] = event, self._count

    def hold(self, event: Event, *, ahead: bool = False) -> None:
        self.check()
        assert isinstance(event, FakeEvent)
        if event.passed:
            return
        self._holds[ahead] = max(self._holds[ahead], event.recorded)
        if not ahead:
            self._run_held()

    def _run_held(self) -> None:
        """Make the copies on the other stream that the compute stream has to wait for."""
        for item in self._streams[True]:
            if isinstance(item, int) and item > self._holds[False]:
                break
            if isinstance(item, _Copy) and self._reaches(item):
                item.make()

    def _reaches(self, copy: _Copy) -> bool:
        """Whether an event that is held for lies behind this copy."""
        items = list(self._streams[True])
        return any(isinstance(item, int) and item <= self._holds[False] for item in items[items.index(copy) :])

    def run_until(self, event: FakeEvent) -> None:
        """The device has come past this event."""
        self._run_held()
        if not event.ahead:
            # The compute stream had waited for these before it came to the event.
            held = [item for item in self._streams[True] if isinstance(item, int) and item <= self._holds[False]]
            self._run_past(True, max((item for item in held if item <= event.recorded), default=0))
            self._passed = max(self._passed, event.recorded)
        self._run_past(event.ahead, event.recorded)
        event.passed = True

    def _run_past(self, ahead: bool, number: int) -> None:
        stream = self._streams[ahead]
        while number in stream:
            item = stream.popleft()
            if isinstance(item, _Copy):
                item.end()
            elif isinstance(item, FakeEvent) and stream and stream[0] == item.recorded:
                item.passed = True

    def synchronize(self) -> None:
        self.check()
        self._passed = self._count
        self._run_held()
        for stream in self._streams.values():
            while stream:
                item = stream.popleft()
                if isinstance(item, _Copy):
                    item.end()
                elif isinstance(item, FakeEvent):
                    item.passed = True

    def rejoin(self) -> None:
        self.strayed = False

    # Graphs

    def prepare_capture(self, call: Callable[[], Any]) -> None:
        call()

    def capture(self, call: Callable[[], Any]) -> FakeCaptured:
        recording = _Recording()
        broken = []

        def refuse(*arguments: Any) -> Any:
            broken.append(True)
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

        def end(*error: Any) -> None:
            if broken:  # as torch does, in the place of the error that was the reason
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        with contextlib.ExitStack() as undo, recording:
            undo.push(end)
            for name in ("item", "tolist", "numpy", "cpu", "__bool__"):
                undo.callback(setattr, torch.Tensor, name, getattr(torch.Tensor, name))
                setattr(torch.Tensor, name, refuse)
            output = call()
        return FakeCaptured(recording.steps, output)

    # What it says of itself

    def poisoned(self) -> str | None:
        return None if self.poison is None else f"CUDA error: {self.poison}"

    def give_back(self) -> None:
        self.given_back += 1

    def free_memory(self) -> tuple[int, int]:
        self.check()
        return self._free_bytes, self._total_bytes

    def used_memory(self) -> int:
        return self._model_bytes

    def facts(self) -> dict[str, Any]:
        return {"name": "a fake", "memory_bytes": self._total_bytes, "integrated": False}


class FakeCaptured:
    """Does again what was recorded, with the same tensors, and none of the Python around it."""

    def __init__(self, steps: list[tuple[Any, Any, Any, Any]], output: Any) -> None:
        self._steps = steps
        self.output = output

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def replay(self) -> None:
        for operation, args, kwargs, before in self._steps:
            now = operation(*args, **kwargs)
            for old, new in zip(_tensors(before), _tensors(now), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recording(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, result))
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _mapping(address: int) -> str:
    """The permissions of the mapping that holds `address`; empty if nothing is there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, permissions, *_ = line.split()
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            if first <= address < last:
                return permissions
    return ""
