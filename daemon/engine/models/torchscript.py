"""Module saved with torch.jit.save, as model.pt."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shmserve.errors import ModelPackageError

from ...packages.formats import FORMATS
from ...packages.package import ModelPackage
from .actions import ActionNames
from .arguments import MISSING, AnyField, Arguments, Field, TensorField
from .example_files import read_recorded
from .saved_module import SavedModule
from .script_state import KeptModule, changed_by, written


def load(package: ModelPackage, device: torch.device) -> SavedModule:
    """Load the module to `device`; raises ModelPackageError where manifest and module disagree."""
    file = package.path / (FORMATS[package.format].file or "")
    module = _read(file, device)
    taken = module.forward.schema.arguments[1:]  # without self
    _check_result(package, module)
    example = read_recorded(package.path / package.example) if package.example is not None else None
    kept = KeptModule(module, lambda: _read(file, device)) if package.stateful else None
    call: Callable[..., Any] = kept or module
    reset = _reset(module) if kept is None else lambda client_id: _reset_kept(kept, client_id)
    if package.inputs is None and len(taken) == 1 and str(taken[0].type).startswith("Dict["):
        model = _of_whole_observations(package, call, example, reset)
    else:
        names = _names(package, taken)
        arguments = Arguments([_field(name, argument, example) for name, argument in zip(names, taken, strict=False)])
        model = SavedModule(package, arguments, lambda values: call(*values), reset=reset)
    if not package.stateful:
        _check_stateless(package, module, model, example, device)
    return model


def _read(file: Path, device: torch.device) -> Any:
    try:
        module = _loaded(file, device)
        module.eval()
        return module
    except Exception as error:  # a damaged archive can make torch's reader raise anything
        raise ModelPackageError(
            f"{file} cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {error}; it must be a "
            "module saved with torch.jit.save (a plain torch.save of weights is not a model)"
        ) from error


def _loaded(file: Path, device: torch.device) -> Any:
    with warnings.catch_warnings():
        # The operator cannot change the author's choice of format; the documentation says that it is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(file, map_location=device)


def _check_stateless(
    package: ModelPackage, module: Any, model: SavedModule, example: dict[str, Any] | None, device: torch.device
) -> None:
    """Reject a module that keeps undeclared state."""
    found = written(module)
    if not found and example is not None:
        seen = {
            name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in example.items()
        }

        def run() -> Any:
            return model.infer([{name: _own(value) for name, value in seen.items()}])[0]

        with torch.no_grad(), contextlib.suppress(Exception):  # the warm-up reports a module that cannot run
            found = changed_by(module, run, atol=package.atol, rtol=package.rtol)
    if found:
        raise ModelPackageError(
            f"{package.path}: the module keeps state from one call to the next ({', '.join(found)}), so that one "
            "client's requests change another's actions: take the state as an argument and return it, or set stateful = "
            "true under [model] if there is only one client (a reset then restores the state in the file)"
        )


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _check_result(package: ModelPackage, module: Any) -> None:
    """Check that the results have names, as far as their type shows; a named tuple or dict is only checked when it runs."""
    result = module.forward.schema.returns[0].type
    kind = str(result)
    if kind == "Tensor":
        ActionNames(package).of(None)
    elif kind.startswith("Tuple["):
        ActionNames(package).of([None] * len(result.elements()))


def _names(package: ModelPackage, taken: list[Any]) -> list[str]:
    """Return each argument's entry of the observation, by the manifest or by the arguments' own names."""
    if package.inputs is None:
        return [argument.name for argument in taken]
    needed = [argument for argument in taken if not argument.has_default_value()]
    if not len(needed) <= len(package.inputs) <= len(taken):
        raise ModelPackageError(
            f"{package.path}: inputs names {len(package.inputs)} arguments, the module takes "
            f"{', '.join(f'{argument.name}: {argument.type}' for argument in taken)}"
        )
    return list(package.inputs)


def _field(name: str, argument: Any, example: dict[str, Any] | None) -> Field:
    """Return an argument's field; its dtype and rank come from the package's example, because the module does not record them."""
    if str(argument.type) == "Tensor":
        return Field(name, (), _like((example or {}).get(name)))
    return Field(name, (), AnyField(argument.default_value if argument.has_default_value() else MISSING))


def _like(recorded: Any) -> TensorField:
    if isinstance(recorded, (bool, int, float)):
        recorded = np.asarray(recorded)
    if not isinstance(recorded, np.ndarray):
        return TensorField(None, None)
    # The lengths may vary from request to request, the dtype and the number of dimensions may not.
    return TensorField(torch.from_numpy(recorded).dtype, None, recorded.ndim)


def _of_whole_observations(
    package: ModelPackage, module: Callable[..., Any], example: dict[str, Any] | None, reset: Any
) -> SavedModule:
    """Return a model for a module of one dict: it gets the example's entries, or without an example the whole observation."""
    if example is None:
        return SavedModule(
            package, Arguments([Field(None, (), AnyField())]), lambda values: module(values[0]), reset=reset
        )
    names = list(example)
    arguments = Arguments([Field(None, (name,), _like(example[name])) for name in names])
    return SavedModule(package, arguments, lambda values: module(dict(zip(names, values, strict=True))), reset=reset)


def _reset(module: Any) -> Any:
    """Return the module's exported reset(), or reset(client_id), if it has one."""
    method = getattr(module, "reset", None)
    if method is None:
        return None
    return method if len(method.schema.arguments) > 1 else lambda client_id: method()


def _reset_kept(kept: KeptModule, client_id: int) -> None:
    """Call the module's own reset for a client, if it has one; otherwise, and for the warm-up, restore the file's state."""
    own = _reset(kept.module) if client_id >= 0 else None
    if own is None:
        kept.restore()
    else:
        own(client_id)
