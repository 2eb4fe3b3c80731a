"""Loaders of the model formats; each is imported only when a package of its format is loaded."""

from __future__ import annotations

import importlib

import torch

from shmserve.errors import ModelPackageError

from ...packages.formats import FORMATS
from ...packages.package import ModelPackage
from .model import Model


def load_model(package: ModelPackage, device: torch.device) -> Model:
    """Load the package's model on `device`; exceptions of the model's own code propagate.

    If the package names a weights file, the file is validated before any of the package's code runs.
    """
    form = FORMATS.get(package.format)
    if form is None:
        raise ModelPackageError(f"format {package.format!r} must be one of {', '.join(FORMATS)}")
    if package.weights is not None:
        from .weights import check_weights  # imports safetensors only for packages that need it

        check_weights(package.path / package.weights)
    loaded: Model = importlib.import_module(f".{form.module}", __name__).load(package, device)
    return loaded
