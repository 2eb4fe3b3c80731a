"""State that a TorchScript module keeps between calls: detected before the module serves, and restored."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .repeatability import leaves_of
from .validation import deviations

#: Operators whose result is a view of their first argument, never a copy.
_VIEWS = {
    "aten::__getitem__",
    "aten::as_strided",
    "aten::chunk",
    "aten::detach",
    "aten::diagonal",
    "aten::expand",
    "aten::narrow",
    "aten::permute",
    "aten::select",
    "aten::slice",
    "aten::split",
    "aten::squeeze",
    "aten::t",
    "aten::transpose",
    "aten::unbind",
    "aten::unsqueeze",
    "aten::view",
    "prim::ListUnpack",
    "prim::TupleIndex",
    "prim::TupleUnpack",
    "prim::unchecked_cast",
}


class KeptModule:
    """A module with state, and its initial state from its file."""

    def __init__(self, module: Any, read: Callable[[], Any]) -> None:
        """Keep a copy of the module; `read` reads the file again, for a module that cannot be copied."""
        self._read = read
        self._first: Any = None
        with contextlib.suppress(RuntimeError):  # raised if an object in it can only be copied by its own library
            self._first = copy.deepcopy(module)  # shares the compiled code
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        if self.module is None:  # the last restore ran out of memory
            self.restore()
        return self.module(*arguments)

    def restore(self) -> None:
        """Restore the state that the file holds."""
        self.module = None  # the copy may need its memory
        self.module = self._read() if self._first is None else copy.deepcopy(self._first)


def written(module: Any) -> list[str]:
    """Return the names of the attributes that `module.forward`, or code called by it, assigns to or changes."""
    graph = _graph(module)
    found = {f"{_name(node.inputsAt(0))}{node.s('name')}" for node in graph.findAllNodes("prim::SetAttr")}
    for node in _nodes(graph):
        schema = node.schema()
        if "!" not in schema:
            continue
        for argument, value in zip(torch._C.parse_schema(schema).arguments, node.inputs(), strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and (name := _attribute(value)):
                found.add(name)
    return sorted(found)


def changed_by(module: Any, run: Callable[[], Any], *, atol: float, rtol: float) -> list[str]:
    """Return the buffers and parameters that two calls of `run` changed, else the entries of its answers that differ for one seed."""
    before = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    versions = {name: parameter._version for name, parameter in module.named_parameters()}
    answers = []
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        for _ in range(2):
            torch.manual_seed(0)
            answers.append(leaves_of(run()))
    after = dict(module.named_buffers())
    found = [name for name, (_, first) in before.items() if name not in after or not _same(after[name], first)]
    found += [name for name, parameter in module.named_parameters() if parameter._version != versions[name]]
    return sorted(found) or deviations(answers[1], answers[0], atol=atol, rtol=rtol)


def _graph(module: Any) -> Any:
    """Return the graph of `module.forward`, without the parts that only run in training."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.freeze(module, optimize_numerics=False).graph
    except RuntimeError:  # not every module can be frozen
        return module.inlined_graph


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _name(value: Any) -> str:
    """Return the prefix of the attribute names of the (sub)module that `value` stands for."""
    node = value.node()
    return f"{_name(node.inputsAt(0))}{node.s('name')}." if node.kind() == "prim::GetAttr" else ""


def _attribute(value: Any) -> str | None:
    """Return the attribute whose memory `value` surely shares, None for separate memory."""
    node = value.node()
    while node.kind() in _VIEWS and node.inputsSize():
        node = node.inputsAt(0).node()
    return _name(node.output()).removesuffix(".") if node.kind() == "prim::GetAttr" else None


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    nan = tensor.isnan() & other.isnan() if tensor.is_floating_point() else torch.zeros((), dtype=torch.bool)
    return bool(((tensor == other) | nan.to(tensor.device)).all())
