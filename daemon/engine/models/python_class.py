"""Policy class in a Python file of the package."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

import torch

from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage
from .package_modules import import_entry
from .per_client import PerClientPolicy, wants_client_id
from .policy_object import PythonPolicy
from .policy_styles import styled_policy


def load(package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Import the package's entry and construct its policy."""
    module_name, _, class_name = package.entry.partition(":")
    module = import_entry(package.path, module_name)
    policy_class = getattr(module, class_name, None)
    if policy_class is None:
        hint = _meant(module, module_name, class_name)
        raise ModelPackageError(f"{package.entry}: {module_name} has no {class_name}{hint}")
    return make_policy(policy_class, package, device)


def make_policy(policy_class: Any, package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Construct the class for this package by its style."""
    policy = styled_policy(policy_class, package, device)
    kind = PerClientPolicy if wants_client_id(policy) else PythonPolicy
    return kind(policy, package)


def _meant(module: ModuleType, module_name: str, class_name: str) -> str:
    """Return a hint for the error: the policy classes of the module that the entry may mean."""
    own = [name for name, value in vars(module).items() if isinstance(value, type) and _is_policy(value, module)]
    near = difflib.get_close_matches(class_name, own, 1) or own
    if len(near) != 1:
        return f" (policies in it are {', '.join(near)})" if near else ""
    return f'; did you mean {near[0]}? Then write entry = "{module_name}:{near[0]}" under [model] in model.toml'


def _is_policy(value: type, module: ModuleType) -> bool:
    return value.__module__ == module.__name__ and (hasattr(value, "infer") or hasattr(value, "get_action"))
