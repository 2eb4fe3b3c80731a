"""Tensors of the late GPU: their bytes are the host's, their device is not, and nothing on the host may read them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from tests.gpu.late_memory import CopyIn, CopyOut, HostAccesses, HostRead
from tests.gpu.late_streams import Accesses, Stream

if TYPE_CHECKING:
    from typing_extensions import Self

    from tests.gpu.late_cuda import LateCuda

aten = torch.ops.aten
#: Operators that wait for the device, because the host needs a value or a shape.
_WAITING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
}
#: Operators that take indices of the host beside tensors of the device.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_CAPTURING = "CUDA error: operation not permitted when stream is capturing"


class LateTensor(torch.Tensor):  # type: ignore[misc]
    """A tensor whose bytes are `raw`'s, on the GPU `where`."""

    where: torch.device
    accesses: Accesses
    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self) -> int:
        if not isinstance(self.accesses, HostAccesses):
            return int(super().data_ptr())
        return self.accesses.address + int(self.storage_offset() * self.element_size())

    @staticmethod
    def __new__(cls, raw: torch.Tensor, where: torch.device, accesses: Accesses) -> Self:
        made: Self = torch.Tensor._make_subclass(cls, raw, False, dispatch_device=True, device_for_backend_keys=where)
        made.where, made.accesses = where, accesses
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].where
        return cls.gpus[-1].dispatch(func, args, kwargs or {})

    #: The GPUs of this process; the latest are those that work.
    gpus: ClassVar[list[LateCuda]] = []

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, other)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(
            f"can't convert {self.where} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.cpu()!r} on {self.where}"

    def __deepcopy__(self, memo: Any) -> Any:
        return self.detach().clone()


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes as a new tensor of the host."""
    with no_dispatch():
        empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
        return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


@functools.cache
def _is_composed(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


@functools.cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """The places and names of the arguments that the operator writes to."""
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def accelerator_error(text: str, code: int = 1) -> Exception:
    """Return CUDA's error as this torch raises it."""
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    error: Exception = kind(f"{text}\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.")
    error.error_code = code  # type: ignore[attr-defined]
    return error


@dataclass
class _Step:
    """One recorded kernel or copy."""

    func: Any
    args: Any
    kwargs: Any
    results: list[torch.Tensor]
    notes: list[tuple[Accesses, int, int, bool]]
    copy: Callable[[], CopyIn | CopyOut] | None = None


class Operators:
    """What operators do on the GPU; mixed into `LateCuda`."""

    def dispatch(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if _is_composed(func):  # in inference mode nothing has taken it apart yet
            return func.decompose(*args, **kwargs)
        with self.lock:
            name = _name(func)
            if name == "copy_":
                return self._copy(*args, **kwargs)
            if name == "_to_copy":
                return self._to_copy(*args, **kwargs)
            if _is_view(func):
                return self._wrapped(func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs)), args, kwargs)
            return self._run(func, name, args, kwargs)

    def _run(self: Any, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        late = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, LateTensor)]
        where = late[0].where
        self._check_devices(name, where, args, kwargs)
        self.launch()
        stream = self.current_stream(where)
        masks = name in _INDEXING and any(each.dtype in (torch.bool, torch.uint8) for each in late[1:])
        if name in _WAITING or masks:
            self.refuse_in_capture()
            stream.see()
        capture = self.capture_of(stream)
        if capture is None:
            stream.do()
        if kwargs.get("device") is not None:
            given = torch.device(kwargs["device"])
            kwargs = {**kwargs, "device": torch.device("cpu")}
            where = given if given.type == "cuda" else None
        raws, spec = tree_flatten((args, kwargs))
        raws = [_unwrap(leaf) for leaf in raws]
        raw_args, raw_kwargs = tree_unflatten(raws, spec)
        written = [args[i] if i < len(args) else kwargs.get(argument) for i, argument in _written(func)]
        before = [
            raw(each).clone() if capture is not None else None for each in written if isinstance(each, LateTensor)
        ]
        changed = {id(each) for each in written}
        notes = [(each.accesses, *_bounds(raw(each)), id(each) in changed) for each in late]
        if capture is None:
            self._note(stream, notes, name)
        found = self._called(func, raw_args, raw_kwargs, where)
        self._note_of_host(stream, late, changed)
        if capture is not None:
            results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
            step_args, step_kwargs = tree_map(self.memory_blocks.loose_leaf, (raw_args, raw_kwargs))
            capture.steps.append(_Step(func, step_args, step_kwargs, results, notes))
        if where is None:
            return found
        wrapped = self._wrapped(found, args, kwargs, where=where, stream=stream if capture is None else None)
        self._reshaped(written, raw_args, raw_kwargs, func)
        if capture is not None:  # the kernel has not run
            notes += [
                (leaf.accesses, *_bounds(raw(leaf)), True)
                for leaf in tree_leaves(wrapped)
                if isinstance(leaf, LateTensor)
            ]
            for each, old in zip((each for each in written if isinstance(each, LateTensor)), before, strict=True):
                if old is not None and raw(each).shape == old.shape:
                    raw(each).copy_(old)
        return wrapped

    def _note_of_host(self: Any, stream: Stream, late: list[LateTensor], changed: set[int]) -> None:
        """A kernel has used registered memory of the host, and may have changed it."""
        of_host = [each for each in late if isinstance(each.accesses, HostAccesses)]
        if any(id(each) in changed for each in of_host):
            for item in stream.items:
                if isinstance(item.what, HostRead):
                    item.what.refresh()
        for each in of_host:
            stream.put(HostRead(raw(each)))

    def _check_devices(self: Any, name: str, where: torch.device, args: Any, kwargs: Any) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if not isinstance(leaf, torch.Tensor) or name in _INDEXING:
                continue
            if leaf.device != where and (leaf.dim() or leaf.device.type == "cuda"):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {where} and {leaf.device}!"
                )

    def _called(self: Any, func: Any, args: Any, kwargs: Any, where: torch.device | None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if self.generators_wait and self.threads.capture is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        generator = self.generators[(where.index if where else 0) or 0]
        of_host = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(of_host)

    def _note(self: Any, stream: Stream, notes: list[tuple[Accesses, int, int, bool]], name: str) -> None:
        number = stream.tick()
        for accesses, start, end, writes in notes:
            if end > start:
                accesses.add(stream, number, start, end, writes=writes, name=name)

    def _wrapped(
        self: Any,
        found: Any,
        args: Any,
        kwargs: Any,
        *,
        where: torch.device | None = None,
        stream: Stream | None = None,
    ) -> Any:
        late = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, LateTensor)]

        def wrapped(result: Any) -> Any:
            if not isinstance(result, torch.Tensor):
                return result
            for each in late:
                if each.untyped_storage()._cdata == result.untyped_storage()._cdata:
                    if each.shape == result.shape and each.stride() == result.stride() and where is not None:
                        return each  # written in place
                    # As for a view in torch: it is an inference tensor if its base is one.
                    with torch.inference_mode(each.is_inference()):
                        return self.tensor(raw(result), each.where, each.accesses)
            made = self.tensor(result, where or late[0].where, Accesses())
            if stream is not None and result.numel():
                number = stream.clock.get(stream.stream_id, 0)
                made.accesses.add(stream, number, *_bounds(result), writes=True, name="its kernel")
            return made

        return tree_map(wrapped, found)

    def tensor(self: Any, raw_tensor: torch.Tensor, where: torch.device, accesses: Accesses) -> LateTensor:
        with no_dispatch():
            return LateTensor(raw_tensor, where, accesses)

    def _reshaped(self: Any, written: list[Any], raw_args: Any, raw_kwargs: Any, func: Any) -> None:
        """Give tensors that an operator resized, or changed the shape of, their new memory and shape."""
        for (index, name), each in zip(_written(func), written, strict=True):
            now = raw_args[index] if index < len(raw_args) else raw_kwargs.get(name)
            if isinstance(each, LateTensor) and (each.shape != now.shape or each.stride() != now.stride()):
                each.data = self.tensor(now, each.where, each.accesses)

    # Copies

    def _to_copy(
        self: Any,
        source: LateTensor,
        *,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        pin_memory: Any = None,
        non_blocking: bool = False,
        memory_format: Any = None,
    ) -> torch.Tensor:
        device = source.where if device is None else torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.threads.device)
        if device == source.where:
            return self._run(
                aten._to_copy.default, "_to_copy", (source,), {"dtype": dtype, "memory_format": memory_format}
            )
        if dtype is not None and dtype != source.dtype:
            source = source.to(dtype)
        target = torch.empty_like(raw(source), memory_format=memory_format or torch.preserve_format)
        if device.type == "cuda":
            target = self.tensor(target, device, Accesses())
        return self._copy(target, source, non_blocking)

    def _copy(self: Any, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if target.device == source.device:
            if source.accesses.is_shared:
                self._copy_shared(target, source)
                return target
            return self._run(aten.copy_.default, "copy_", (target, source), {})
        if target.device.type == "cuda" and source.device.type == "cuda":
            return self._between(target, source)
        if target.device.type == "cuda":
            self._copy_in(target, source, non_blocking)
        else:
            self._copy_out(target, source, non_blocking)
        return target

    def _between(self: Any, target: LateTensor, source: LateTensor) -> LateTensor:
        """Copy between two GPUs, on the source's stream: both streams wait before and after."""
        self.launch()
        there, here = self.current_stream(source.where), self.current_stream(target.where)
        for capture in filter(None, map(self.capture_of, (there, here))):
            capture.wait(here, None)
        there.wait(here.record())
        there.do()
        self._note(
            there,
            [(source.accesses, *_bounds(raw(source)), False), (target.accesses, *_bounds(raw(target)), True)],
            "copy",
        )
        raw(target).copy_(raw(source))
        here.wait(there.record())
        return target

    def _copy_in(self: Any, target: LateTensor, source: torch.Tensor, non_blocking: bool) -> None:
        self.called("copy_in")
        self.launch()
        stream = self.current_stream(target.where)
        alike = source.dtype == target.dtype and source.shape == target.shape and source.is_contiguous()
        locked = alike and self.runtime.locked(source)
        into = self.memory_blocks.loose(raw(target))
        notes = [(target.accesses, *_bounds(raw(target)), True)]
        capture = self.capture_of(stream)
        if capture is not None:
            if not locked:
                raise RuntimeError(
                    "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."
                )
            of_host = self.runtime.pinned.loose(source)
            capture.steps.append(_Step(None, (), {}, [], notes, lambda: CopyIn(into, of_host)))
            return
        self._count_copy_in(target, stream)
        self._note(stream, notes, "copy to the device")
        if locked:
            stream.put(CopyIn(into, self.runtime.pinned.loose(source.detach())))
        else:  # the driver has its own copy when the call returns
            stream.put(CopyIn(into, source.detach().to(target.dtype).expand(target.shape).clone()))
        if locked and not non_blocking:
            self.blocked += 1
            stream.see()

    def _count_copy_in(self: Any, target: torch.Tensor, stream: Stream) -> None:
        size = target.numel() * target.element_size()
        self.copies_in.append((size, stream is not self.default_streams[stream.device]))

    def _copy_shared(self: Any, target: LateTensor, source: LateTensor) -> None:
        """Copy memory that another process writes, as late as memory of the host: it may not change before the host has waited."""
        self.launch()
        self.refuse_in_capture()
        stream = self.current_stream(target.where)
        self.copies_shared.append(target.numel() * target.element_size())
        self._note(stream, [(target.accesses, *_bounds(raw(target)), True)], "copy of shared memory")
        stream.put(CopyIn(self.memory_blocks.loose(raw(target)), raw(source)))

    def _copy_out(self: Any, target: torch.Tensor, source: LateTensor, non_blocking: bool) -> None:
        self.called("copy_out")
        if not source.is_contiguous() or source.dtype != target.dtype or source.shape != target.shape:
            source = source.to(target.dtype).expand(target.shape).contiguous()  # on the device, as torch does
        self.launch()
        stream = self.current_stream(source.where)
        if isinstance(source.accesses, HostAccesses):
            stream.put(HostRead(raw(source)))
        asynchronous = non_blocking and self.runtime.locked(target) and target.is_contiguous()
        of_device = self.memory_blocks.loose(raw(source))
        notes = [(source.accesses, *_bounds(raw(source)), False)]
        capture = self.capture_of(stream)
        if capture is not None:
            if not asynchronous:
                capture.broken = True
                raise accelerator_error(_CAPTURING, 900)
            of_host = self.runtime.pinned.loose(target)
            capture.steps.append(_Step(None, (), {}, [], notes, lambda: CopyOut(of_host, of_device)))
            return
        self.copies_out += 1
        self._note(stream, notes, "copy to the host")
        if asynchronous:
            stream.put(CopyOut(self.runtime.pinned.loose(target), of_device))
        else:
            self.blocked += 1
            stream.see()
            target.copy_(raw(source))

    # Recorded work

    def replay(self: Any, steps: list[_Step], stream: Stream) -> None:
        """Launch recorded steps, one after the other."""
        for step in steps:
            self._note(stream, step.notes, "a recorded kernel")
            if step.copy is not None:
                copy = step.copy()
                if isinstance(copy, CopyIn):
                    self._count_copy_in(copy.source, stream)
                else:
                    self.copies_out += 1
                stream.put(copy)
                continue
            stream.do()
            with torch.inference_mode():
                found = self._called(step.func, step.args, step.kwargs, None)
                for old, new in zip(step.results, tree_leaves(found), strict=True):
                    if isinstance(new, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _unwrap(leaf: Any) -> Any:
    if isinstance(leaf, LateTensor):
        return raw(leaf)
    if isinstance(leaf, torch.device) and leaf.type == "cuda":
        return torch.device("cpu")
    return leaf


def _bounds(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of the tensor, and the one after its last."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def normal(device: Any, index: int) -> torch.device | None:
    """Return the GPU that an argument names, with its index; None for another device or none."""
    if device is None or isinstance(device, (bool, torch.dtype, torch.Tensor)):
        return None
    if isinstance(device, int):
        return torch.device("cuda", device)
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        return None
    if found.type != "cuda":
        return None
    return torch.device("cuda", index if found.index is None else found.index)
