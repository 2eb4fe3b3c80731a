"""Validation of a package's safetensors file, before any of the package's code runs."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from shmserve.errors import ModelPackageError


def check_weights(file: Path) -> None:
    """Raise ModelPackageError unless the header is valid and the file has exactly the bytes that it lists."""
    try:
        with safe_open(file, framework="numpy") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ModelPackageError(f"{file} is not a complete safetensors file: {error}") from error
    if not names:
        raise ModelPackageError(f"{file} holds no tensors")
