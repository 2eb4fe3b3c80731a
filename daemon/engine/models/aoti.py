"""Code that torch's AOTInductor compiled ahead of time, as model.pt2."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from shmserve.errors import ContractMismatch, ModelPackageError

from ...packages.formats import FORMATS
from ...packages.package import ModelPackage
from .actions import ActionNames
from .arguments import Arguments, ConstantField, Field, Length, TensorField
from .example_files import read_recorded
from .pytree_paths import argument_of, key_of
from .saved_module import SavedModule
from .script_state import changed_by

_FOLDER = "/data/aotinductor/"
#: Of one metadata file of the archive.
_METADATA_BYTES = 1 << 16
#: Sets of instructions as AOTInductor names them, and as torch's own view of this CPU does.
_INSTRUCTIONS = {"AVX2": "avx2", "AVX512": "avx512_f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_tile"}
_REFUSED_INPUT = re.compile(r"input_handles\[(\d+)\]: ([^\n]*)")


def load(package: ModelPackage, device: torch.device) -> SavedModule:
    """Load the code to `device`; raises ModelPackageError where manifest, example and code disagree."""
    file = package.path / (FORMATS[package.format].file or "")
    name, made_for = _metadata(file)
    _check_machine(file, made_for, device)
    assert package.example is not None  # read_manifest requires it
    example = read_recorded(package.path / package.example)
    loader = _load(file, name, made_for, device)
    in_spec, out_spec = (pytree.treespec_loads(spec) for spec in loader.get_call_spec())
    fields = _fields(package, in_spec, example)
    ActionNames(package).of(pytree.tree_unflatten([None] * out_spec.num_leaves, out_spec))
    model = SavedModule(package, Arguments(fields), _Call(loader, fields, out_spec), example=example)
    _check_example(package, model, example, device)
    return model


# ------------------------------------------------------------------------------------------------- the archive


def _metadata(file: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the archive's only model, and what it was compiled for (the keys are AOTInductor's)."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [(member, *member.filename.partition(_FOLDER)[1:]) for member in archive.infolist()]
            models = sorted({rest.split("/")[0] for _, folder, rest in members if folder})
            found: dict[str, str] = {}
            for member, folder, rest in members:
                if folder and rest.endswith("_metadata.json") and member.file_size <= _METADATA_BYTES:
                    found |= {str(key): str(value) for key, value in dict(json.loads(archive.read(member))).items()}
    except (OSError, ValueError, TypeError, NotImplementedError, zipfile.BadZipFile, RuntimeError) as error:
        raise ModelPackageError(f"{file} is not an archive of torch: {type(error).__name__}: {error}") from error
    if not models:
        raise ModelPackageError(
            f"{file} holds no code that AOTInductor compiled: make it with torch._inductor.aoti_compile_and_package, "
            'or, for a program of torch.export.save, write format = "torch-export"'
        )
    if len(models) > 1:
        raise ModelPackageError(f"{file} holds {len(models)} compiled models, {', '.join(models)}: package one alone")
    return models[0], found


def _check_machine(file: Path, made_for: dict[str, str], device: torch.device) -> None:
    """Raise ModelPackageError for code that was compiled for another kind of device, machine or CPU."""
    target = made_for.get("AOTI_DEVICE_KEY", device.type)
    if target != device.type:
        other = "--device cuda:0" if target == "cuda" else f"--device {target}"
        raise ModelPackageError(
            f"{file} was compiled for {target}, and this engine runs on {device}: compile the program on a model that "
            f"is on {device.type}, or serve it with {other}"
        )
    machine = made_for.get("AOTI_MACHINE", platform.machine())
    if machine != platform.machine():
        raise ModelPackageError(
            f"{file} was compiled for {machine}, and this machine is {platform.machine()}: compile it here"
        )
    given: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    wanted = made_for.get("AOTI_CPU_ISA", "").split()
    missing = [name for name in wanted if _INSTRUCTIONS.get(name) in given and not given[_INSTRUCTIONS[name]]]
    if missing:
        raise ModelPackageError(
            f"{file} was compiled for a CPU with {', '.join(missing)}, which this one lacks: compile it here"
        )


def _load(file: Path, name: str, made_for: dict[str, str], device: torch.device) -> Any:
    # The compiled code then checks each call: dtype, shape and strides. Without it a wrong array would be read as if it
    # were a right one, beyond its end. The code reads this once, at its first call.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    is_loaded = False
    with _unpacking_into() as unpacked:
        try:
            # As torch._inductor.aoti_load_package does, which also imports torch's compiler and runs the C++ compiler to
            # examine the CPU: ten seconds, and an error on a robot without one.
            index = (device.index or 0) if device.type != "cpu" else -1
            loader = torch._C._aoti.AOTIModelPackageLoader(str(file), name, True, 1, index)
            is_loaded = True
        except Exception as error:  # torch raises RuntimeError for all, and it may change
            capability = made_for.get("AOTI_COMPUTE_CAPABILITY")
            raise ModelPackageError(
                f"{file} cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {_first_line(error)}; compile "
                f"it with this version of torch, on a machine like this one"
                f"{f' (it is for capability {capability})' if capability else ''}"
            ) from error
        finally:
            # The loaded code stays mapped. Code for a GPU reads its kernels at the first call.
            if is_loaded and device.type != "cpu":
                atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
            else:
                shutil.rmtree(unpacked, ignore_errors=True)
    return loader


@contextlib.contextmanager
def _unpacking_into() -> Iterator[str]:
    """Make torch unpack into a directory of the caller: it removes its own in a destructor, which an engine does not run."""
    folder, before = tempfile.mkdtemp(prefix="shmserve-aoti-"), os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# ------------------------------------------------------------------------------------------------- arguments


def _fields(package: ModelPackage, in_spec: Any, example: dict[str, Any]) -> list[Field]:
    """Return one field for each flattened argument, in their order: exactly the dtype and shape of the example's entry."""
    structure = pytree.tree_unflatten(range(in_spec.num_leaves), in_spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(structure)[0]]
    names = _names(package, structure, example)
    fields = []
    for path in paths:
        found = Field(names[argument_of(path)], tuple(key_of(step) for step in path[2:]), ConstantField(None))
        value = found.find(example)
        fields.append(Field(found.name, found.steps, _wanted(package, found.label, value)))
    return fields


def _names(package: ModelPackage, structure: Any, example: dict[str, Any]) -> dict[tuple[bool, Any], str | None]:
    """Return each argument's entry of the observation, None for the whole observation."""
    positional, keywords = structure
    arguments: list[tuple[bool, Any]] = [*((False, place) for place in range(len(positional)))]
    arguments += [(True, name) for name in keywords]
    if package.inputs is not None:
        if len(package.inputs) != len(arguments):
            raise ModelPackageError(
                f"{package.path}: inputs names {len(package.inputs)} arguments, the compiled code takes {len(arguments)}"
            )
        return dict(zip(arguments, package.inputs, strict=True))
    if len(arguments) == 1:
        ((keyword, place),) = arguments
        if isinstance(structure[keyword][place], dict):
            return {arguments[0]: None}
        if not keyword and len(example) == 1:
            return {arguments[0]: next(iter(example))}
    if positional:
        raise ModelPackageError(
            f"{package.path}: the compiled code does not say what its {len(arguments)} arguments are called: name them in "
            f"their order, inputs = {json.dumps(list(example))} under [model]"
        )
    return {(True, name): name for _, name in arguments}


def _wanted(package: ModelPackage, label: str, value: Any) -> TensorField | ConstantField:
    if isinstance(value, np.ndarray):
        lengths = tuple(Length(length, length) for length in value.shape)
        return TensorField(torch.from_numpy(np.ascontiguousarray(value)).dtype, lengths)
    if value is None or isinstance(value, (bool, int, float, str)):
        return ConstantField(value)  # torch.export made it part of the code
    raise ModelPackageError(
        f"{package.path / (package.example or '')} has no entry {label!r}, which the compiled code takes"
    )


# ------------------------------------------------------------------------------------------------- calls


class _Call:
    """Callable that runs the code on flat arguments."""

    def __init__(self, loader: Any, fields: list[Field], out_spec: Any) -> None:
        self._run: Callable[[list[Any]], list[Any]] = loader.boxed_run
        self._taken = [index for index, field in enumerate(fields) if isinstance(field.wanted, TensorField)]
        self._labels = [fields[index].label for index in self._taken]
        self._out_spec = out_spec

    def __call__(self, values: list[Any]) -> Any:
        try:
            results = self._run([values[index] for index in self._taken])
        except RuntimeError as error:
            if (refused := _REFUSED_INPUT.search(str(error))) is None:
                raise
            label = self._labels[int(refused[1])]
            raise ContractMismatch(f"{label}: the code was compiled for another array: {refused[2]}") from error
        return pytree.tree_unflatten(results, self._out_spec)


def _check_example(package: ModelPackage, model: SavedModule, example: dict[str, Any], device: torch.device) -> None:
    """Run the example; raises ModelPackageError for code that was compiled for other arrays, or that keeps state."""

    def run() -> Any:
        seen = {
            name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in example.items()
        }
        return model.infer([seen])[0]

    try:
        run()
    except (RuntimeError, ContractMismatch) as error:
        rows = "; with batch_dim = true the code must be compiled for exactly one row" if package.batch_dim else ""
        raise ModelPackageError(
            f"{package.path}: the compiled code refuses the example {package.example}: {_first_line(error)}{rows}"
        ) from error
    if changed := changed_by(torch.nn.Module(), run, atol=package.atol, rtol=package.rtol):
        raise ModelPackageError(
            f"{package.path}: the compiled code keeps state from one call to the next ({', '.join(changed)}), so that one "
            "client's requests change another's actions: take the state as an argument and return it"
        )
