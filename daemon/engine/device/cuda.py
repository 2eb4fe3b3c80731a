"""The device of `interface.py` on CUDA; nothing else in the engine calls CUDA."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .availability import check_there
from .errors import is_out_of_memory
from .interface import Event, PinFailed
from .memory import available_bytes

log = logging.getLogger(__name__)

#: Calls before a graph is recorded: libraries make handles and workspaces, and choose kernels.
_PREPARING_CALLS = 3


class CudaDevice:
    """See `interface.Device`. Models run on the default stream, which is what code outside of any `with` uses."""

    def __init__(self, device: torch.device) -> None:
        """Starts CUDA in this process; raises DeviceMissing where there is none, or none of this number."""
        check_there(device)
        torch.cuda.set_device(device.index or 0)
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self._index = torch.cuda.current_device()
        self._compute = torch.cuda.current_stream(self._index)
        self._copies = torch.cuda.Stream(self._index)
        self._said_rejoined = False
        self._runtime = torch.cuda.cudart()
        self._graphs: Any = None

    def pinned(self, size: int) -> torch.Tensor:
        try:
            with torch.inference_mode(False):
                return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            raise PinFailed(_first_line(error)) from error

    def memory(self, size: int) -> torch.Tensor:
        with torch.inference_mode(False):  # written to again and again, by whatever mode
            return torch.empty(size, dtype=torch.uint8, device=self.torch_device)

    def holds(self, tensor: torch.Tensor) -> bool:
        return bool(tensor.device == self.torch_device)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor | None:
        # The copy between two GPUs is behind both their streams' work, one to the host behind its own GPU's alone.
        return tensor.to(self.torch_device) if tensor.is_cuda else None

    def copy_in(self, target: torch.Tensor, source: torch.Tensor, *, ahead: bool) -> None:
        if not ahead:
            target.copy_(source, non_blocking=True)
            return
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        event: Event = torch.cuda.Event(blocking=True)  # blocking: its synchronize() sleeps instead of spinning
        return event

    def record(self, event: Event, *, ahead: bool = False) -> None:
        assert isinstance(event, torch.cuda.Event)
        event.record(self._copies if ahead else self._compute)

    def hold(self, event: Event, *, ahead: bool = False) -> None:
        (self._copies if ahead else self._compute).wait_event(event)

    def register(self, address: int, size: int) -> None:
        # The binding returns a cudaError, and raises nothing. No flag: cudaHostRegisterReadOnly is not supported by
        # most discrete GPUs, which is why the mapping must be writable.
        result = self._runtime.cudaHostRegister(address, size, 0)
        if int(result) != 0:
            text = str(self._runtime.cudaGetErrorString(result))
            self._forget_error()
            raise PinFailed(f"cudaHostRegister: {text}")

    def unregister(self, address: int) -> None:
        if int(self._runtime.cudaHostUnregister(address)) != 0:
            self._forget_error()

    def _forget_error(self) -> None:
        """The runtime remembers a failed call, and the next launch of a kernel would be blamed for it."""
        with contextlib.suppress(RuntimeError):  # this launch is
            torch.zeros(1, device=self.torch_device)

    def rejoin(self) -> None:
        if torch.cuda.current_device() != self._index:
            torch.cuda.set_device(self._index)
        now = torch.cuda.current_stream(self._index)
        if now == self._compute:
            return
        self._compute.wait_stream(now)
        torch.cuda.set_stream(self._compute)
        if not self._said_rejoined:
            self._said_rejoined = True
            log.warning(
                "the policy has called torch.cuda.set_stream() and not set it back: its actions wait for that stream; use "
                "`with torch.cuda.stream(...)`"
            )

    def prepare_capture(self, call: Callable[[], Any]) -> None:
        context = torch.cuda.Stream(self._index)
        context.wait_stream(self._compute)
        with torch.cuda.stream(context):
            for _ in range(_PREPARING_CALLS):
                call()
        self._compute.wait_stream(context)
        self.synchronize()

    def capture(self, call: Callable[[], Any]) -> CudaCaptured:
        if self._graphs is None:
            self._graphs = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # One pool for all: they run one after the other, and an action is copied out before the next one runs.
        # Thread local: threads of the policy's own may go on with what they do.
        with torch.cuda.graph(graph, pool=self._graphs, capture_error_mode="thread_local"):
            output = call()
        return CudaCaptured(graph, output)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def poisoned(self) -> str | None:
        # An error of the kind that ends a context is returned by every call from then on, whatever its text. One that
        # is only the next call's to tell, left by a library's own call that nobody looked at, is gone the second time.
        return self._trouble() and self._trouble()

    def _trouble(self) -> str | None:
        try:
            self.synchronize()
            torch.zeros(1, device=self.torch_device).cpu()
        except RuntimeError as error:
            return None if is_out_of_memory(error) else _first_line(error)
        return None

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def free_memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        if self.facts()["integrated"]:
            free = max(free, min(total, available_bytes(Path("/proc/meminfo").read_text()) or 0))
        return int(free), int(total)

    def used_memory(self) -> int:
        return int(torch.cuda.max_memory_reserved(self.torch_device))

    def facts(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(self._index)
        return {
            "name": found.name,
            "memory_bytes": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
            "integrated": bool(getattr(found, "is_integrated", False)),
            "cuda": torch.version.cuda,
        }


class CudaCaptured:
    """A recorded graph and what it fills."""

    def __init__(self, graph: Any, output: Any) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        self._graph.replay()


def _first_line(error: BaseException) -> str:
    # What follows advises to compile with TORCH_USE_CUDA_DSA.
    return (str(error).splitlines() or [type(error).__name__])[0]
