"""Program saved with torch.export.save, as model.pt2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, SymIntArgument, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from shmserve.errors import ContractMismatch, ModelPackageError

from ...packages.formats import FORMATS, is_compiled
from ...packages.package import ModelPackage
from .actions import ActionNames
from .arguments import Arguments, ConstantField, Field, Length, NumberField, TensorField
from .pytree_paths import argument_of, key_of
from .saved_module import SavedModule

#: Structures of arguments that passed the program's own guards.
_REMEMBERED = 1024


def load(package: ModelPackage, device: torch.device) -> SavedModule:
    """Load the program and move it to `device`; raises ModelPackageError where manifest and program disagree."""
    program = _read(package.path / (FORMATS[package.format].file or ""))
    exported_with = program.example_inputs
    if any(tensor.device != device for tensor in _tensors(program)):
        program = move_to_device_pass(program, device)
    fields = _fields(program, package)
    if package.batch_dim:
        _check_rows(program, package)
        fields = [_row(field, package) for field in fields]
    _check_outputs(program, package)
    reset = _check_writes(program, package)
    arguments = Arguments(fields)
    example = _example(exported_with, arguments, package.batch_dim)
    return SavedModule(package, arguments, _Call(program), reset=reset, example=example)


def _read(file: Path) -> ExportedProgram:
    try:
        return torch.export.load(file)
    except Exception as error:  # torch's readers may raise anything; the log has their own messages
        if is_compiled(file):
            raise ModelPackageError(
                f'{file} holds code that AOTInductor compiled, not a program: write format = "aoti" under [model], or '
                "save the program itself, torch.export.save(program, 'model.pt2')"
            ) from error
        raise ModelPackageError(
            f"{file} cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {error}; a program must be "
            "exported with the same or an earlier version of torch, and use no operator that is not torch's own"
        ) from error


def _tensors(program: ExportedProgram) -> list[torch.Tensor]:
    held = [*program.state_dict.values(), *program.constants.values()]
    return [value for value in held if isinstance(value, torch.Tensor)]


# ------------------------------------------------------------------------------------------------- arguments


def _fields(program: ExportedProgram, package: ModelPackage) -> list[Field]:
    """Return one field for each of the program's flattened arguments, in their order."""
    spec = program.call_spec.in_spec
    structure = pytree.tree_unflatten(range(spec.num_leaves), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(structure)[0]]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    wanted = [_wanted(program, spec, values.get(spec.name)) for spec in specs]
    names = _argument_names(program, package, structure, list(zip(paths, wanted, strict=True)))
    fields = []
    for path, want in zip(paths, wanted, strict=True):
        name = names[argument_of(path)]
        fields.append(Field(name, tuple(key_of(step) for step in path[2:]), want))
    return fields


def _argument_names(
    program: ExportedProgram, package: ModelPackage, structure: Any, leaves: list[tuple[Any, Any]]
) -> dict[tuple[bool, Any], str | None]:
    """Return each argument's entry of the observation, None for the whole observation."""
    positional, keywords = structure
    arguments: list[tuple[bool, Any]] = [(False, place) for place in range(len(positional))]
    arguments += [(True, name) for name in keywords]
    # An argument that consists of constants alone is part of the program: observations need not hold it.
    given = [
        argument
        for argument in arguments
        if not all(isinstance(want, ConstantField) for path, want in leaves if argument_of(path) == argument)
    ]
    known = program.module_call_graph[0].signature.forward_arg_names or []
    own = [*known[: len(positional)], *(f"argument_{place}" for place in range(len(known), len(positional))), *keywords]
    names: dict[tuple[bool, Any], str | None] = dict(zip(arguments, own, strict=True))
    if package.inputs is not None:
        if len(package.inputs) != len(given):
            raise ModelPackageError(
                f"{package.path}: inputs names {len(package.inputs)} arguments, the program takes {len(given)}: "
                f"{', '.join(str(names[argument]) for argument in given)}"
            )
        names.update(zip(given, package.inputs, strict=True))
    elif len(given) == 1 and _is_dict(structure, given[0]):
        names[given[0]] = None
    return names


def _is_dict(structure: Any, argument: tuple[bool, Any]) -> bool:
    keyword, place = argument
    return isinstance(structure[keyword][place], dict)


def _wanted(program: ExportedProgram, spec: Any, value: Any) -> TensorField | NumberField | ConstantField:
    if isinstance(spec, ConstantArgument):
        return ConstantField(spec.value)
    if isinstance(spec, TensorArgument):
        lengths = tuple(_length(program, length) for length in value.shape)
        return TensorField(value.dtype, lengths)
    if isinstance(spec, SymIntArgument):
        return NumberField(int)
    raise ModelPackageError(f"the program takes {spec.name}, a {type(spec).__name__}, which no observation can carry")


def _length(program: ExportedProgram, length: Any) -> Length:
    if isinstance(length, int):
        return Length(length, length)
    expression = length.node.expr
    allowed = program.range_constraints.get(expression)
    if allowed is None:
        return Length(0, None, str(expression))
    # torch assumes a lower end of 2 for every dimension without a declared one; programs also run with 1.
    low = int(allowed.lower) if allowed.lower.is_Integer and allowed.lower > 2 else 0
    high = int(allowed.upper) if allowed.upper.is_Integer else None
    return Length(low, high, str(expression))


def _row(field: Field, package: ModelPackage) -> Field:
    """Return the field without the first dimension, which observations lack."""
    wanted = field.wanted
    if not isinstance(wanted, TensorField):
        return field
    assert wanted.lengths is not None
    first = wanted.lengths[0] if wanted.lengths else None
    if first is None or not (first.fits(1) and first.fits(package.max_batch)):
        raise ModelPackageError(
            f"{package.path}: batch_dim = true with max_batch = {package.max_batch}, but the program was exported for "
            f"{field.label} = {wanted}: its first dimension must be dynamic, from 1 to {package.max_batch} "
            "(dynamic_shapes of torch.export.export)"
        )
    return Field(field.name, field.steps, TensorField(wanted.dtype, wanted.lengths[1:]))


# ------------------------------------------------------------------------------------------------- results


def _results(program: ExportedProgram) -> list[Any]:
    """Return the program's flattened results, with fake tensors for the tensors."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    values = [getattr(result, "meta", {}).get("val", result) for result in output.args[0]]
    # Values written back to buffers come first; the rest are the results.
    return values[len(values) - program.call_spec.out_spec.num_leaves :]


def _check_outputs(program: ExportedProgram, package: ModelPackage) -> None:
    spec = program.call_spec.out_spec
    ActionNames(package).of(pytree.tree_unflatten([None] * spec.num_leaves, spec))


def _check_rows(program: ExportedProgram, package: ModelPackage) -> None:
    for place, result in enumerate(_results(program)):
        if isinstance(result, torch.Tensor) and result.dim() == 0:
            raise ModelPackageError(
                f"{package.path}: batch_dim = true, but result {place} of the program is a scalar: it cannot be "
                "split among several requests"
            )


# ------------------------------------------------------------------------------------------------- state


def _check_writes(program: ExportedProgram, package: ModelPackage) -> Callable[[int], None] | None:
    """Return a function that restores the program's state, None if it keeps none; raises ModelPackageError for undeclared state."""
    buffers, inputs = _written(program)
    if inputs and package.read_in_place:
        raise ModelPackageError(
            f"{package.path}: read_in_place = true, but the program writes to its argument {', '.join(sorted(inputs))}"
        )
    if not buffers:
        return None
    if not package.stateful:
        raise ModelPackageError(
            f"{package.path}: the program changes its buffers {', '.join(sorted(buffers))} when it runs, so that one "
            "client's requests change another's actions; export it after .eval() (batch normalisation counts in training "
            "mode), or take the state as an argument and return it, or set stateful = true if there is only one client"
        )
    held = {**program.state_dict, **program.constants}
    initial = [(held[name], held[name].clone()) for name in sorted(buffers)]

    def reset(client_id: int) -> None:
        for tensor, first in initial:
            tensor.copy_(first)

    return reset


def _written(program: ExportedProgram) -> tuple[set[str], set[str]]:
    """Return the names of the buffers and of the arguments that the program writes to."""
    signature = program.graph_signature
    buffers = set(signature.buffers_to_mutate.values())
    inputs = set(signature.user_inputs_to_mutate.values())
    held = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        for place, argument in enumerate(node.target._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            root = _root(node.args[place] if place < len(node.args) else node.kwargs.get(argument.name))
            if root is not None:
                (buffers if root.name in held else inputs).add(held.get(root.name, root.name))
    return buffers, inputs


def _root(node: Any) -> torch.fx.Node | None:
    """Return the placeholder whose memory `node` is a view of, None if it has separate memory."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        if schema is None or not any(result.alias_info for result in schema.returns):
            return None
        node = node.args[0] if node.args else None
    return node if isinstance(node, torch.fx.Node) and node.op == "placeholder" else None


# ------------------------------------------------------------------------------------------------- calls


def _example(exported_with: Any, arguments: Arguments, batch_dim: bool) -> Any:
    """Return the observation that the program was exported with, None if it was saved without example inputs."""
    if exported_with is None:
        return None
    values = [
        (value[0] if batch_dim else value).detach().cpu() if isinstance(value, torch.Tensor) else value
        for value in pytree.tree_leaves(exported_with)
    ]
    return arguments.example(values)


class _Call:
    """Callable that runs the program on flat arguments."""

    def __init__(self, program: ExportedProgram) -> None:
        self._spec = program.call_spec.in_spec
        self._guarded = program.module()
        # The same parameters and buffers. Guards depend only on dtypes, shapes and constants, and checking them costs
        # more than a small network: they run once for each structure of arguments.
        self._bare = program.module(check_guards=False).forward
        self._passed: set[Any] = set()

    def __call__(self, values: list[Any]) -> Any:
        args, kwargs = pytree.tree_unflatten(values, self._spec)
        signature = tuple((v.dtype, v.shape) if isinstance(v, torch.Tensor) else v for v in values)
        if signature in self._passed:
            return self._bare(*args, **kwargs)
        try:
            result = self._guarded(*args, **kwargs)
        except AssertionError as error:
            if not str(error).startswith("Guard failed"):
                raise
            raise ContractMismatch(f"the program was not exported for such arguments: {error}") from error
        if len(self._passed) >= _REMEMBERED:
            self._passed.clear()
        self._passed.add(signature)
        return result
