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
from .per_client import PerClientPolicy, wants_client_id
from .policy_object import PythonPolicy
from .policy_styles import styled_policy


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
    policy = styled_policy(policy_class, package, device)
    kind = PerClientPolicy if wants_client_id(policy) else PythonPolicy
    return kind(policy, package)


def _import(path: Path, module_name: str) -> ModuleType:
    # This process serves one package and ends with it, so the directory may lead sys.path: the policy
    # imports its neighbours by their plain names, and a later version meets none of them.
    if not any((path / Path(*module_name.split("."))).with_suffix(ending).exists() for ending in (".py", "")):
        raise ModelPackageError(f"{path} has no module {module_name} ({module_name.replace('.', '/')}.py)")
    sys.path.insert(0, str(path))
    sys.dont_write_bytecode = True  # the package is content addressed
    return importlib.import_module(module_name)
