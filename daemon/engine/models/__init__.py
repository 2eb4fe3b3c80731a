"""Model formats by name; each is imported only when a package of its kind is loaded."""

from __future__ import annotations

import importlib

import torch

from shmserve.errors import ModelPackageError

from ...model_package import ModelPackage
from .model import Model

_FORMATS = {"python": "python_class"}


def load_model(package: ModelPackage, device: torch.device) -> Model:
    """Load the package's model on `device`; raises whatever the model's own code raises."""
    module = _FORMATS.get(package.format)
    if module is None:
        raise ModelPackageError(f"format {package.format!r} is none of {', '.join(_FORMATS)}")
    loaded: Model = importlib.import_module(f".{module}", __name__).load(package, device)
    return loaded
