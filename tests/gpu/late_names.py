"""The names of torch and `torch.cuda` that lead to the late GPU."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from tests.gpu.late_tensor import LateTensor, normal

if TYPE_CHECKING:
    from tests.gpu.late_cuda import LateCuda


def put_names(gpus: LateCuda, put: Callable[..., None], kinds: types.SimpleNamespace) -> None:
    """Replace them; `kinds` are the classes of events, streams, graphs and recordings."""
    threads = gpus.threads

    class Event(kinds.Event):  # type: ignore[misc,name-defined]
        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            super().__init__(gpus)
            self.blocking = blocking

    class Stream(kinds.Stream):  # type: ignore[misc,name-defined]
        def __init__(self, device: Any = None, priority: int = 0) -> None:
            super().__init__(gpus, gpus.where(device).index)

    class CUDAGraph(kinds.Graph):  # type: ignore[misc,name-defined]
        def __init__(self, keep_graph: bool = False) -> None:
            super().__init__(gpus)

    class Graph(kinds.Capture):  # type: ignore[misc,name-defined]
        def __init__(
            self, cuda_graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
        ) -> None:
            assert capture_error_mode in ("global", "thread_local", "relaxed")
            super().__init__(gpus, cuda_graph)

    @contextlib.contextmanager
    def stream_of(stream: Any) -> Iterator[None]:
        if stream is None:
            yield
            return
        device, before = threads.device, gpus.current_stream(stream.device)
        gpus.set_stream(stream)
        try:
            yield
        finally:
            threads.streams[stream.device] = before
            threads.device = device

    class Device:
        """As `torch.cuda.device`; torch asks whether objects are one."""

        def __init__(self, device: Any) -> None:
            self.idx = gpus.where(device).index

        def __enter__(self) -> None:
            self._before, threads.device = threads.device, self.idx

        def __exit__(self, *error: object) -> None:
            threads.device = self._before

    def set_device(device: Any) -> None:
        index = gpus.where(device).index
        assert 0 <= index < gpus.devices, "CUDA error: invalid device ordinal"
        threads.device = index

    def facts(device: Any = None) -> Any:
        return types.SimpleNamespace(
            name="late CUDA",
            total_memory=gpus.total_bytes,
            major=9,
            minor=0,
            is_integrated=int(gpus.integrated),
        )

    def free(device: Any = None) -> tuple[int, int]:
        gpus.check()
        return gpus.free_bytes - gpus.memory_blocks.held_bytes - gpus.library_bytes, gpus.total_bytes

    def give_back() -> None:
        gpus.given_back += 1

    def used(device: Any = None) -> int:
        return gpus.memory_blocks.held_bytes if gpus.model_bytes is None else gpus.model_bytes

    def seed_all(seed: int) -> None:
        for generator in gpus.generators:
            generator.manual_seed(seed)

    put(
        torch.cuda,
        late=gpus,
        _lazy_init=lambda: None,
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: gpus.devices,
        current_device=lambda: threads.device,
        set_device=set_device,
        device=Device,
        current_stream=gpus.current_stream,
        default_stream=lambda device=None: gpus.default_streams[gpus.where(device).index],
        set_stream=gpus.set_stream,
        stream=stream_of,
        Stream=Stream,
        Event=Event,
        CUDAGraph=CUDAGraph,
        graph=Graph,
        graph_pool_handle=lambda: (0, 1),
        is_current_stream_capturing=lambda: gpus.capture_of(gpus.current_stream()) is not None,
        synchronize=gpus.synchronize,
        cudart=lambda: gpus.runtime,
        empty_cache=give_back,
        mem_get_info=free,
        max_memory_reserved=used,
        memory_reserved=lambda device=None: gpus.memory_blocks.held_bytes,
        get_device_properties=facts,
        get_device_name=lambda device=None: facts(device).name,
        manual_seed=seed_all,
        manual_seed_all=seed_all,
        get_rng_state=lambda device=None: gpus.generators[gpus.where(device).index].get_state(),
        set_rng_state=lambda state, device=None: gpus.generators[gpus.where(device).index].set_state(state),
    )
    put(torch.version, cuda="late")
    put(torch._C, _host_emptyCache=gpus.runtime.pinned.empty)
    _put_factories(gpus, put)


def _put_factories(gpus: LateCuda, put: Callable[..., None]) -> None:
    """Replace what makes tensors in C++ without the dispatcher, or page-locked ones."""
    make, make_like, empty = torch.tensor, torch.as_tensor, torch.empty
    is_pinned = torch.Tensor.is_pinned

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **settings: Any) -> torch.Tensor:
        where = normal(device, gpus.threads.device)
        if isinstance(data, LateTensor):
            return data.detach().clone()
        if where is None:
            return make(data, device=device, requires_grad=requires_grad, **settings)
        return make(data, device="cpu", **settings).to(where).requires_grad_(requires_grad)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        where = normal(device, gpus.threads.device)
        if isinstance(data, LateTensor):
            return data.to(device=data.where if device is None else device, dtype=dtype or data.dtype)
        interface = getattr(data, "__cuda_array_interface__", None)
        if interface is not None:
            return gpus.over(interface, where or gpus.where(None))
        made = make_like(data, dtype=dtype, device=device if where is None else None)
        return made if where is None else made.to(where)

    def new(*size: Any, pin_memory: bool = False, **settings: Any) -> torch.Tensor:
        if not pin_memory:
            return empty(*size, **settings)
        dtype = settings.get("dtype") or torch.get_default_dtype()
        return gpus.pinned(size[0] if len(size) == 1 else size, dtype)  # type: ignore[arg-type]

    def pin(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        return gpus.pinned(self.shape, self.dtype).copy_(self)

    put(torch, tensor=tensor, as_tensor=as_tensor, empty=new)
    put(
        torch.Tensor,
        cuda=lambda self, device=None, non_blocking=False: self.to(gpus.where(device), non_blocking=non_blocking),
        pin_memory=pin,
        is_pinned=lambda self, device=None: (
            is_pinned(self) if isinstance(self, LateTensor) else gpus.runtime.locked(self)
        ),
    )
    put(torch.__future__, _overwrite_module_params_on_conversion=True)  # a parameter keeps its class
