"""Memory of the late GPU: blocks that are handed out again, page-locked ranges, and copies between the two."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from tests.gpu.late_streams import Accesses, Hazard, Stream

#: What memory holds that nobody has written to.
NONSENSE = 0xAB


class Block:
    """Bytes that are handed out, freed, and handed out again."""

    def __init__(self, size: int, pool: Any) -> None:
        self.size, self.pool = size, pool
        self.accesses = Accesses()
        with torch.inference_mode(False):
            self.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.start = self.memory.data_ptr()
        self._unused = self._sharing()

    def _sharing(self) -> tuple[int, int]:
        # The tensors over the memory, and the references to its Python object.
        storage = self.memory.untyped_storage()
        return int(torch._C._storage_Use_Count(storage._cdata)), sys.getrefcount(storage)

    @property
    def used(self) -> bool:
        return self._sharing() != self._unused


class Blocks:
    """An allocator that hands freed memory out again at once, the newest first; a copy under way keeps nothing from that."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    def take(self, size: int, pool: Any = None) -> Block:
        """Give a block, as of a stream's own pool; its tensors are made from `memory`."""
        for block in reversed(self._blocks.values()):
            if block.size == size and block.pool == pool and not block.used:
                self._blocks[block.start] = self._blocks.pop(block.start)
                break
        else:
            block = Block(size, pool)
            self._blocks[block.start] = block
        if isinstance(pool, Stream):
            pool.do()  # its order protects what used the memory before
        block.memory.fill_(NONSENSE)
        return block

    @property
    def used_bytes(self) -> int:
        return sum(block.size for block in self._blocks.values() if block.used)

    @property
    def held_bytes(self) -> int:
        """The bytes of all blocks, in use or kept for the next one."""
        return sum(block.size for block in self._blocks.values())

    def empty(self) -> None:
        """Forget the blocks that are not in use."""
        self._blocks = {start: block for start, block in self._blocks.items() if block.used}

    def of(self, tensor: torch.Tensor) -> Block | None:
        """Return the block that holds the tensor, which is one of the host."""
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def loose_leaf(self, leaf: Any) -> Any:
        """As `loose`, for a leaf of an operator's arguments."""
        return self.loose(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def loose(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor's memory without keeping its block from being freed; other memory as it is."""
        if self.of(tensor) is None or not tensor.numel() or not tensor.is_contiguous():
            return tensor
        memory = (ctypes.c_uint8 * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


class CopyIn:
    """Host to device; `source` is page-locked, or a copy that nobody changes."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._target, self.source = target, source
        self._content = source.clone()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def do(self) -> None:
        self._target.copy_(self.source)

    def see(self) -> None:
        if not _same_bytes(self.source, self._content):
            raise Hazard("host memory was written to while it was copied to the device")


class CopyOut:
    """Device to page-locked memory of the host, which holds nonsense until the host has waited."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.target, self._source = target, source
        self._content: torch.Tensor | None = None
        if target.numel():
            with torch.inference_mode():
                target.view(-1).view(torch.uint8).fill_(NONSENSE)

    def do(self) -> None:
        self._content = self._source.clone()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def see(self) -> None:
        self.target.copy_(self._content)


class HostAccesses(Accesses):
    """Accesses to registered memory of the host, which kernels read directly."""

    def __init__(self, address: int) -> None:
        super().__init__()
        #: The address that the device has for it.
        self.address = address


class HostRead:
    """A kernel that reads registered memory of the host: the bytes must not change until the host has waited for it."""

    def __init__(self, source: torch.Tensor) -> None:
        self.source = source
        self.refresh()

    def refresh(self) -> None:
        """Expect the bytes that are there now, which another kernel wrote."""
        self._content = self.source.clone()

    def do(self) -> None:
        pass

    def see(self) -> None:
        if not _same_bytes(self.source, self._content):
            raise Hazard("host memory was written to while a kernel read it")


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not one.numel() or torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


class Runtime:
    """The two calls of `torch.cuda.cudart()` that lock memory of the host; returns numbers as the binding does."""

    _TEXTS: ClassVar[dict[int, str]] = {
        1: "invalid argument",
        2: "out of memory",
        712: "part or all of the requested memory range is already mapped",
        713: "pointer does not correspond to a registered memory region",
        801: "operation not supported",
    }

    def __init__(self, *, registers: bool = True, limit: int = 1 << 60) -> None:
        """`limit`: bytes that may be page-locked together."""
        self.registers = registers
        self.limit = limit
        self.pinned = Blocks()
        #: By address: the bytes of memory that is registered.
        self.registered: dict[int, int] = {}
        #: Of the latest call that failed; the next launch reports it.
        self.last_error = 0
        #: Registrations before the one that is refused; None: none is.
        self.refuse_at: int | None = None
        self.streams: list[Stream] = []
        #: Called by the two calls as they begin: with their name, in their thread.
        self.began: Callable[[str], None] = lambda call: None

    @property
    def pinned_bytes(self) -> int:
        return self.pinned.held_bytes + sum(self.registered.values())

    def locked(self, tensor: torch.Tensor) -> bool:
        """Whether the memory of this tensor of the host is page-locked."""
        if self.pinned.of(tensor) is not None:
            return True
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        return any(address <= start and end <= address + size for address, size in self.registered.items())

    def registration(self, address: int, size: int) -> int | None:
        """Return the address of the registered memory that holds this piece of it."""
        for start, length in self.registered.items():
            if start <= address and address + size <= start + length:
                return start
        return None

    def _said(self, code: int) -> int:
        self.last_error = code or self.last_error
        return code

    def cudaGetErrorString(self, code: int) -> str:
        return self._TEXTS.get(code, "unrecognized error code")

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert (type(address), type(size), type(flags)) == (int, int, int)
        self.began("register")
        if self.refuse_at is not None:
            self.refuse_at -= 1
        if not self.registers or self.refuse_at == -1:
            return self._said(801)
        if any(start < address + size and address < start + length for start, length in self.registered.items()):
            return self._said(712)
        if "w" not in mapping(address):
            return self._said(1)  # as CUDA says of memory mapped for reading
        if self.pinned_bytes + size > self.limit:
            return self._said(2)
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.began("unregister")
        size = self.registered.pop(address, None)
        if size is None:
            return self._said(713)
        if not mapping(address):
            raise Hazard("unregistered after it was unmapped")
        for stream in self.streams:
            for item in stream.items:
                if (
                    isinstance(item.what, (CopyIn, HostRead))
                    and address <= item.what.source.data_ptr() < address + size
                ):
                    raise Hazard("unregistered while a copy of it is under way, or a kernel reads it")
        return 0


def mapping(address: int) -> str:
    """Return the permissions of the mapping that holds `address`; empty if nothing is there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, permissions, *_ = line.split()
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            if first <= address < last:
                return permissions
    return ""
