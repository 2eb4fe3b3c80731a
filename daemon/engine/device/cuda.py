"""CUDA implementation of the `Device` of `interface.py`; no other module of the engine calls CUDA."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from shmserve import cuda_driver
from shmserve.cuda_driver import CUDA_ERROR_OUT_OF_MEMORY, CudaError, Driver, MappedMemory

from ...host.memory import available_bytes
from .availability import check_there
from .errors import is_out_of_memory
from .interface import Event, PinFailed, SharingFailed

log = logging.getLogger(__name__)

#: Calls before a graph is recorded, in which libraries create handles and workspaces and choose kernels.
_PREPARING_CALLS = 3


class CudaDevice:
    """See `interface.Device`. Models run on the default stream, which code outside of any `with` uses."""

    def __init__(self, device: torch.device) -> None:
        """Start CUDA in this process; raises DeviceMissing if this device is not available."""
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
        with torch.inference_mode(False):  # it is written to in every mode
            return torch.empty(size, dtype=torch.uint8, device=self.torch_device)

    def holds(self, tensor: torch.Tensor) -> bool:
        return bool(tensor.device == self.torch_device)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor | None:
        # A copy between two GPUs waits for the streams of both, a copy to the host only for its own GPU's stream.
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
        # The binding returns a cudaError instead of raising. cudaHostRegisterReadOnly is not used because most discrete GPUs
        # do not support it; the mapping must therefore be writable.
        with self._current():
            result = self._runtime.cudaHostRegister(address, size, 0)
            if int(result) != 0:
                text = str(self._runtime.cudaGetErrorString(result))
                self._forget_error()
                raise PinFailed(f"cudaHostRegister: {text}")

    def unregister(self, address: int) -> None:
        with self._current():
            if int(self._runtime.cudaHostUnregister(address)) != 0:
                self._forget_error()

    def over(self, address: int, size: int) -> torch.Tensor:
        with self._current(), torch.inference_mode(False):
            try:
                where = cuda_driver.driver().address_of_registered(address, self._index)
                memory = torch.as_tensor(_Bytes(where, size), device=self.torch_device)
            except (RuntimeError, ValueError) as error:
                raise PinFailed(_first_line(error)) from error
        if memory.data_ptr() != where:
            raise PinFailed("torch takes registered memory of the host for another device's, and copied it")
        return memory

    def create_shared(self, size: int) -> tuple[int, int]:
        with _shared() as cuda:
            return cuda.create(size, self._index)

    def map_shared(self, descriptor: int, size: int) -> CudaSharedMemory:
        with _shared() as cuda, contextlib.ExitStack() as failed:
            mapped = cuda.map(descriptor, size, self._index)
            failed.callback(mapped.close)
            memory = CudaSharedMemory(mapped, self.torch_device)
            failed.pop_all()
            return memory

    def uuid(self) -> str:
        with _shared() as cuda:
            return cuda.uuid(self._index)

    def _current(self) -> contextlib.AbstractContextManager[None]:
        """Make this device current in the calling thread, which would otherwise start a context on the first GPU."""
        device: contextlib.AbstractContextManager[None] = torch.cuda.device(self._index)
        return device

    def _forget_error(self) -> None:
        """Clear the runtime's last error, which the next kernel launch would otherwise report."""
        with contextlib.suppress(RuntimeError):  # this launch reports it
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
                "the policy called torch.cuda.set_stream() and did not restore the stream: its actions wait for that stream; use "
                "`with torch.cuda.stream(...)`"
            )

    def prepare_capture(self, call: Callable[[], Any]) -> None:
        context = torch.cuda.Stream(self._index)
        context.wait_stream(self._compute)
        with torch.cuda.stream(context):
            for _ in range(_PREPARING_CALLS):
                call()
                context.synchronize()
        self._compute.wait_stream(context)

    def capture(self, call: Callable[[], Any]) -> CudaCaptured:
        if self._graphs is None:
            self._graphs = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: they run one after the other, and each action is copied out before the next one runs.
        # Thread local, so that the policy's own threads may continue to use CUDA.
        try:
            with torch.cuda.graph(graph, pool=self._graphs, capture_error_mode="thread_local"):
                output = call()
        except BaseException:
            self._give_up_recording()
            raise
        return CudaCaptured(graph, output)

    def _give_up_recording(self) -> None:
        """Make up for what torch leaves behind if CUDA refuses a recording: the current stream, and a pool that still records."""
        torch.cuda.set_stream(self._compute)
        pool, self._graphs = self._graphs, None
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):  # torch has ended it, because the error was not CUDA's
                end(self._index, pool)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def poisoned(self) -> str | None:
        # After an error that ends the context, every later call fails, whatever its text. An error left over from a
        # library's unchecked call is reported once, and is gone the second time.
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

    def give_back_pinned(self) -> None:
        give_back = getattr(torch._C, "_host_emptyCache", None)  # since torch 2.5
        if give_back is not None:
            give_back()

    def free_memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        if self.facts()["integrated"]:
            free = max(free, min(total, available_bytes(Path("/proc/meminfo").read_text()) or 0))
        return int(free), int(total)

    def used_memory(self) -> int:
        return int(torch.cuda.max_memory_reserved(self.torch_device))

    def reserved_memory(self) -> int:
        return int(torch.cuda.memory_reserved(self.torch_device))

    def facts(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(self._index)
        return {
            "name": found.name,
            "memory_bytes": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
            "integrated": bool(getattr(found, "is_integrated", False)),
            "cuda": torch.version.cuda,
        }


class _Bytes:
    """Bytes at an address of the device, as torch takes memory that is not its own."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 2}


class CudaSharedMemory:
    """Memory that the driver has mapped, as a tensor; see `interface.SharedMemory`."""

    def __init__(self, mapped: MappedMemory, device: torch.device) -> None:
        self._mapped = mapped
        self.size = mapped.size
        with torch.inference_mode(False):
            self.tensor = torch.as_tensor(_Bytes(mapped.address, mapped.size), device=device)

    def close(self) -> None:
        del self.tensor
        self._mapped.close()


@contextlib.contextmanager
def _shared() -> Iterator[Driver]:
    """Lend the driver; raises SharingFailed for its errors."""
    try:
        yield cuda_driver.driver()
    except CudaError as error:
        raise SharingFailed(str(error), is_short=error.code == CUDA_ERROR_OUT_OF_MEMORY) from error
    except RuntimeError as error:  # torch cannot use the memory
        raise SharingFailed(_first_line(error), is_short=is_out_of_memory(error)) from error


class CudaCaptured:
    """A recorded graph and its output."""

    def __init__(self, graph: Any, output: Any) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        self._graph.replay()


def _first_line(error: BaseException) -> str:
    # The further lines advise to compile with TORCH_USE_CUDA_DSA.
    return (str(error).splitlines() or [type(error).__name__])[0]
