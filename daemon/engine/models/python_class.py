"""A policy class in a Python file of the package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from shmserve.errors import ModelPackageError

from ...model_package import ModelPackage
from .policy_styles import styled_policy, takes_numpy


def load(package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Import the package's entry and make its policy."""
    module_name, _, class_name = package.entry.partition(":")
    module = _import(package.path, module_name)
    policy_class = getattr(module, class_name, None)
    if policy_class is None:
        raise ModelPackageError(f"{package.entry}: {module.__name__} has no {class_name}")
    return make_policy(policy_class, package, device)


def make_policy(policy_class: Any, package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Construct the class for this package, in its style."""
    return PythonPolicy(styled_policy(policy_class, package, device), package, torch.inference_mode())


def _import(path: Path, module_name: str) -> ModuleType:
    # This process serves one package and ends with it, so the directory may lead sys.path: the policy
    # imports its neighbours by their plain names, and a later version meets none of them.
    if not any((path / Path(*module_name.split("."))).with_suffix(ending).exists() for ending in (".py", "")):
        raise ModelPackageError(f"{path} has no module {module_name} ({module_name.replace('.', '/')}.py)")
    sys.path.insert(0, str(path))
    sys.dont_write_bytecode = True  # the package is content addressed
    return importlib.import_module(module_name)


class PythonPolicy:
    """A policy class behind the engine's `Model`."""

    def __init__(self, policy: Any, package: ModelPackage, mode: Any) -> None:
        self._policy = policy
        self._package = package
        self._mode = mode
        self._infer = policy.infer
        self._infer_batch = getattr(policy, "infer_batch", None)
        self._reset = getattr(policy, "reset", None)
        self.batches = self._infer_batch is not None
        self.takes_host_arrays = takes_numpy(policy)

    def infer(self, observations: list[Any]) -> list[Any]:
        with self._mode:
            if len(observations) == 1 or self._infer_batch is None:
                return [self._infer(observation) for observation in observations]
            results = list(self._infer_batch(observations))
        if len(results) != len(observations):
            raise ValueError(f"infer_batch gave {len(results)} results for {len(observations)} observations")
        return results

    def reset(self, client_id: int) -> None:
        if self._reset is not None:
            with self._mode:
                self._reset(client_id)

    def example_observation(self) -> Any:
        example = getattr(self._policy, "example_observation", None)
        return example() if example is not None else None

    def metadata(self) -> dict[str, Any]:
        metadata = getattr(self._policy, "metadata", None)
        return {**self._package.metadata, **(metadata() if metadata is not None else {})}
