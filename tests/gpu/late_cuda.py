"""A `torch.cuda` for a torch without CUDA, as late as CUDA allows: `device/cuda.py` itself runs on it.

`install()` replaces the part of `torch.cuda` that the engine and policies use. Tensors say that they are on `cuda:0`, operators
on them work, and the host cannot read them (late_tensor.py). Copies and events are late, and a race is an error
(late_streams.py). Freed memory is handed out again at once (late_memory.py). Tests choose what fails, and when.

It does not have: the time that kernels take, real limits of drivers, speed, gradients, and torch.load to a GPU.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.gpu import late_guard
from tests.gpu.late_memory import Blocks, Runtime
from tests.gpu.late_streams import Accesses, Clock, Mark, Stream, Threads
from tests.gpu.late_tensor import LateTensor, Operators, accelerator_error, normal

_NOT_COMPILED = "Torch not compiled with CUDA enabled"
_BROKEN = "CUDA error: operation failed due to a previous error during capture"


class LateStream(Stream):
    """As `torch.cuda.Stream`."""

    def __init__(self, gpus: LateCuda, device: int) -> None:
        super().__init__(device, gpus.host)
        self._gpus = gpus
        #: The handle that other libraries take.
        self.cuda_stream = 0
        gpus.runtime.streams.append(self)

    def wait_event(self, event: LateEvent) -> None:
        event.wait(self)

    def wait_stream(self, other: LateStream) -> None:
        event = LateEvent(self._gpus)
        event.record(other)
        event.wait(self)

    def record_event(self, event: LateEvent | None = None) -> LateEvent:
        event = event or LateEvent(self._gpus)
        event.record(self)
        return event

    def query(self) -> bool:
        self._gpus.check()
        return not self.items

    def synchronize(self) -> None:
        with self._gpus.lock:
            self._gpus.check()
            self._gpus.refuse_in_capture()
            self.see()


class LateEvent:
    """As `torch.cuda.Event`: passes when it is waited for, or has been asked for a few times."""

    def __init__(self, gpus: LateCuda) -> None:
        self._gpus = gpus
        self._mark: Mark | None = None
        self._asked = 0
        #: The recording that the event is part of.
        self._capture: Capture | None = None

    def record(self, stream: LateStream | None = None) -> None:
        gpus = self._gpus
        with gpus.lock:
            gpus.called("record")
            gpus.check()
            stream = stream or gpus.current_stream()
            self._asked = 0
            self._capture = gpus.capture_of(stream)
            if self._capture is not None:
                self._capture.forked[id(self)] = stream
                self._mark = None
            else:
                self._mark = stream.record()

    def wait(self, stream: LateStream | None = None) -> None:
        gpus = self._gpus
        with gpus.lock:
            gpus.check()
            stream = stream or gpus.current_stream()
            capture = self._capture or gpus.capture_of(stream)
            if capture is not None:
                capture.wait(stream, id(self) if self._capture is not None else None)
            elif self._mark is not None:
                stream.wait(self._mark)

    def query(self) -> bool:
        gpus = self._gpus
        with gpus.lock:
            gpus.called("query")
            gpus.check()
            gpus.refuse_in_capture()
            if self._mark is None or self._mark.passed:
                return True
            self._asked += 1
            if self._asked > gpus.lateness and gpus.may_pass():
                self._mark.stream.see(self._mark)
            return self._mark.passed

    def synchronize(self) -> None:
        gpus = self._gpus
        with gpus.lock:
            gpus.called("synchronize")
            gpus.check()
            gpus.refuse_in_capture()
            if self._mark is not None and not self._mark.passed:
                gpus.waits += 1
                self._mark.stream.see(self._mark)


class Graph:
    """As `torch.cuda.CUDAGraph`."""

    def __init__(self, gpus: LateCuda) -> None:
        self._gpus = gpus
        self.steps: list[Any] = []

    def replay(self) -> None:
        with self._gpus.lock:
            self._gpus.called("replay")
            self._gpus.launch()
            self._gpus.replay(self.steps, self._gpus.current_stream())


class Capture:
    """As `torch.cuda.graph`: what is launched within it is recorded and does not run.

    A recording that CUDA refuses leaves what it leaves in torch: the current stream, a pool that still records, and random
    generators that wait for the end of a recording.
    """

    def __init__(self, gpus: LateCuda, graph: Graph, pool: Any = None) -> None:
        self._gpus = gpus
        self._pool = pool
        self.steps = graph.steps
        self.origin = LateStream(gpus, gpus.threads.device)
        #: Streams whose work is recorded.
        self.streams: set[LateStream] = {self.origin}
        #: By event: the stream that it was recorded in.
        self.forked: dict[int, LateStream] = {}
        self.broken = False

    def __enter__(self) -> None:
        gpus = self._gpus
        gpus.synchronize()
        if self._pool is not None:
            if self._pool in gpus.recording_pools:
                raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
            gpus.recording_pools.add(self._pool)
        self._before = gpus.current_stream()
        gpus.threads.streams[self.origin.device] = self.origin
        gpus.threads.capture = self

    def __exit__(self, *error: object) -> None:
        gpus = self._gpus
        gpus.threads.capture = None
        gpus.generators_wait = self.broken
        if self.broken:  # as in torch: in the place of the policy's error, and without the stream from before
            raise accelerator_error(_BROKEN, 901)
        if gpus.current_stream() is not self.origin:
            raise RuntimeError("Capture must end on the same stream it began on.")
        if self.streams != {self.origin}:
            raise accelerator_error("CUDA error: capturing stream has unjoined work", 904)
        gpus.threads.streams[self.origin.device] = self._before
        gpus.recording_pools.discard(self._pool)

    def wait(self, stream: LateStream, event: int | None) -> None:
        """A stream waits for an event of this recording, or one of its streams for another event."""
        if event is None:
            self.broken = True
            raise accelerator_error("CUDA error: dependency created on uncaptured work in another stream", 905)
        self.streams.add(stream)
        if self.forked[event] is not stream and self.forked[event] is not self.origin:
            self.streams.discard(self.forked[event])  # it is joined again


class LateCuda(Operators):
    """The GPUs: settings, what tests look at, and what they let fail."""

    def __init__(
        self,
        *,
        devices: int = 1,
        lateness: int = 3,
        pin_limit: int | None = None,
        memory_limit: int = 1 << 40,
        memory_total: int = 1 << 40,
        registers: bool = True,
        total_bytes: int = 16 << 30,
        free_bytes: int = 8 << 30,
        model_bytes: int | None = None,
        integrated: bool = False,
        uses_host_pointers: bool = True,
        maps_registered: bool = True,
    ) -> None:
        """`lateness`: queries before an event passes; `pin_limit`: bytes that may be page-locked together.

        `memory_limit`: the largest piece of a GPU's memory; `memory_total`: what all pieces in use may have together.
        `uses_host_pointers`: kernels use the host's addresses of registered memory; else the driver has others, if
        `maps_registered`.
        """
        self.devices = devices
        self.lateness = lateness
        self.may_pass: Callable[[], bool] = lambda: True
        self.memory_limit, self.memory_total = memory_limit, memory_total
        self.total_bytes, self.free_bytes, self.model_bytes = total_bytes, free_bytes, model_bytes
        #: Memory of a GPU that libraries took without torch's allocator.
        self.library_bytes = 0
        self.integrated = integrated
        self.uses_host_pointers, self.maps_registered = uses_host_pointers, maps_registered
        self.out_of_memory: Callable[[str], Exception] = torch.OutOfMemoryError
        #: What every call raises: the context is lost.
        self.poison: str | None = None
        #: Counts of calls by name, and by name and number the error that this call raises.
        self.calls: dict[str, int] = {}
        self._failing: dict[tuple[str, int], Callable[[], Exception]] = {}
        self.copies_in: list[tuple[int, bool]] = []  # (bytes, whether on another stream than the default one)
        self.copies_out = 0
        self.copies_shared: list[int] = []  # bytes
        self.waits = 0  # times the host slept on an event
        self.blocked = 0  # copies that the host waited for
        self.given_back = 0
        self.recording_pools: set[Any] = set()
        self.generators_wait = False

        self.lock = threading.RLock()
        self.host: Clock = {}
        self.memory_blocks = Blocks()
        self.runtime = Runtime(registers=registers, limit=1 << 60 if pin_limit is None else pin_limit)
        self.default_streams = [LateStream(self, device) for device in range(devices)]
        self.generators = [torch.Generator().manual_seed(torch.initial_seed()) for device in range(devices)]
        self.threads = _Threads()

    # What tests use

    def fail(self, call: str, error: Callable[[], Exception], *, after: int = 0) -> None:
        """Let a later call raise: the next one, or the one after so many.

        The calls: memory, pinned, copy_in, copy_out, record, query, synchronize, replay.
        """
        self._failing[call, self.calls.get(call, 0) + after + 1] = error

    @property
    def registered(self) -> dict[int, int]:
        return self.runtime.registered

    @property
    def pinned_bytes(self) -> int:
        return self.runtime.pinned_bytes

    # What calls begin with

    def called(self, name: str) -> None:
        self.calls[name] = number = self.calls.get(name, 0) + 1
        error = self._failing.pop((name, number), None)
        if error is not None:
            raise error()

    def check(self) -> None:
        if self.poison is not None:
            raise accelerator_error(f"CUDA error: {self.poison}", 719)

    def launch(self) -> None:
        """A kernel is launched: an error of an earlier call that nobody asked for is reported now."""
        self.check()
        code, self.runtime.last_error = self.runtime.last_error, 0
        if code:
            raise accelerator_error(f"CUDA error: {self.runtime.cudaGetErrorString(code)}", code)

    def refuse_in_capture(self) -> None:
        if self.threads.capture is not None:
            self.threads.capture.broken = True
            raise accelerator_error("CUDA error: operation not permitted when stream is capturing", 900)

    def end_pool(self, device: int, pool: Any) -> None:
        """As `torch._C._cuda_endAllocateToPool`."""
        if pool not in self.recording_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording_pools.remove(pool)

    def capture_of(self, stream: Stream) -> Capture | None:
        found = self.threads.capture
        return found if found is not None and stream in found.streams else None

    # Memory

    def take(self, size: list[int], dtype: Any, device: Any) -> torch.Tensor:
        """Allocate a tensor of this size; of the host's type, over the memory of a block."""
        where = self.where(device)
        dtype = dtype or torch.get_default_dtype()
        length = torch.Size(size).numel() * torch.empty(0, dtype=dtype, device="cpu").element_size()
        with self.lock:
            self.called("memory")
            self.check()
            if length > self.memory_limit or self.memory_blocks.used_bytes + length > self.memory_total:
                raise self.out_of_memory(f"CUDA out of memory. Tried to allocate {length} bytes.")
            if not length:
                return self.tensor(torch.empty(size, dtype=dtype, device="cpu"), where, Accesses())
            block = self.memory_blocks.take(length, self.current_stream(where))
            return self.tensor(block.memory.view(dtype).view(size), where, block.accesses)

    def pinned(self, size: int, dtype: Any) -> torch.Tensor:
        with self.lock:
            self.called("pinned")
            self.check()
            length = (
                torch.Size([size] if isinstance(size, int) else size).numel()
                * torch.empty(0, dtype=dtype).element_size()
            )
            block = 1 << max(0, length - 1).bit_length()  # as torch's allocator, which keeps its blocks
            if self.runtime.pinned_bytes + block > self.runtime.limit or block > self.memory_limit << 4:
                raise accelerator_error("CUDA error: out of memory", 2)
            return self.runtime.pinned.take(block).memory[:length].view(dtype).view(size)

    def where(self, device: Any) -> torch.device:
        return normal(device, self.threads.device) or torch.device("cuda", self.threads.device)

    # Streams

    def current_stream(self, device: Any = None) -> Any:
        index = self.threads.device if device is None else self.where(device).index
        return self.threads.streams.get(index) or self.default_streams[index]

    def set_stream(self, stream: LateStream) -> None:
        self.threads.streams[stream.device] = stream
        self.threads.device = stream.device

    def synchronize(self, device: Any = None) -> None:
        with self.lock:
            self.called("synchronize")
            self.check()
            self.refuse_in_capture()
            index = self.where(device).index
            for stream in self.runtime.streams:
                if stream.device == index:
                    stream.see()


class _Threads(Threads):
    capture: Capture | None = None


_library: list[Any] = []


def _kernels() -> None:
    """Register the kernels that make tensors, for the life of the process."""
    if _library:
        return
    late_guard.set_up(lambda: LateTensor.gpus[-1].threads.device)
    library = torch.library.Library("aten", "IMPL", "CUDA")
    _library.append(library)

    def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, *_: Any, **__: Any) -> Any:
        return _working().take(list(size), dtype, device)

    def empty_strided(
        size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, *_: Any, **__: Any
    ) -> Any:
        if not all(size):
            return empty(size, dtype, device=device)
        length = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        return empty([length], dtype, device=device).as_strided(size, stride)

    library.impl("empty.memory_format", empty)
    library.impl("empty_strided", empty_strided)


_installed: list[LateCuda] = []


def _working() -> LateCuda:
    if not _installed:
        raise AssertionError(_NOT_COMPILED)
    return _installed[-1]


def _uninstall(gpus: LateCuda) -> None:
    _installed.remove(gpus)
    LateTensor.gpus[:] = _installed[-1:] or [gpus]


@contextlib.contextmanager
def installed(**settings: Any) -> Iterator[LateCuda]:
    """Have GPUs for the length of a block."""
    with contextlib.ExitStack() as undo:
        yield install(undo, **settings)


def install(undo: contextlib.ExitStack | None = None, **settings: Any) -> LateCuda:
    """Give this process late GPUs (see LateCuda), until `undo` is closed, or for ever."""
    gpus = LateCuda(**settings)
    LateTensor.gpus[:] = [gpus]
    _kernels()

    def put(owner: Any, **members: Any) -> None:
        for name, member in members.items():
            if undo is not None:
                before = vars(owner).get(name, undo)
                undo.callback(delattr, owner, name) if before is undo else undo.callback(setattr, owner, name, before)
            setattr(owner, name, member)

    from tests.gpu import late_names

    _installed.append(gpus)
    if undo is not None:
        undo.callback(_uninstall, gpus)
    late_names.put_names(
        gpus, put, types.SimpleNamespace(Event=LateEvent, Stream=LateStream, Graph=Graph, Capture=Capture)
    )
    return gpus
