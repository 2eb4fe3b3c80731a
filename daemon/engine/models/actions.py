"""Names for the values that a saved module returns."""

from __future__ import annotations

from typing import Any

import torch

from shmserve.errors import ModelPackageError

from ...packages.manifest import MANIFEST
from ...packages.package import ModelPackage

#: Name of a single tensor without a name in the manifest.
ACTION = "action"


class ActionNames:
    """Builds the action dict: a dict or named tuple keeps its names, a plain tuple is named by the manifest's `outputs`."""

    def __init__(self, package: ModelPackage) -> None:
        self._path = package.path
        self._names = package.outputs

    def of(self, result: Any) -> dict[str, Any]:
        """Return the action; raises ModelPackageError for a result without names, or with another number than the manifest."""
        if isinstance(result, dict):
            if self._names is not None and set(self._names) != set(result):
                raise self._refused(f"the module returns a dict with the entries {_listed(result)}")
            return {str(key): _plain(value) for key, value in result.items()}
        fields = getattr(result, "_fields", None)
        values = list(result) if isinstance(result, (list, tuple)) else [result]
        names = self._names or fields or ((ACTION,) if len(values) == 1 else None)
        if names is None:
            wanted = ", ".join(f'"name{number}"' for number in range(1, len(values) + 1))
            raise ModelPackageError(
                f"{self._path}: the module returns {len(values)} values without names; name them in {MANIFEST}: "
                f"[model] outputs = [{wanted}]"
            )
        if len(names) != len(values):
            raise self._refused(f"the module returns {len(values)} value{'s' * (len(values) != 1)}")
        return {name: _plain(value) for name, value in zip(names, values, strict=True)}

    def _refused(self, what: str) -> ModelPackageError:
        return ModelPackageError(f"{self._path / MANIFEST}: outputs = {list(self._names or ())}, but {what}")


def _plain(tree: Any) -> Any:
    """Convert subclasses of dict and tuple, which a reply cannot carry, to plain dicts and lists."""
    if isinstance(tree, torch.Tensor):
        return tree
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    fields = getattr(tree, "_fields", None)
    if fields is not None:
        return {name: _plain(value) for name, value in zip(fields, tree, strict=True)}
    if isinstance(tree, (list, tuple)):
        return [_plain(value) for value in tree]
    return tree


def _listed(result: dict[Any, Any]) -> str:
    return ", ".join(map(str, result))
