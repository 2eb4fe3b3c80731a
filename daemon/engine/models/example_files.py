"""Observations and actions that a package holds as .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.errors import ModelPackageError


def read_recorded(file: Path) -> dict[str, Any]:
    """The arrays of `file` by their names, plain text and numbers as they were put in.

    Raises ModelPackageError for what is no such file.
    """
    try:
        # Opened here: numpy leaves open what turns out to be no archive.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: _value(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelPackageError(f"{file} cannot be read: {error}; write it with numpy.savez(file, **arrays)") from error


#: What numpy makes of Python's own int, float and bool.
_PYTHON_NUMBERS = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_))


def _value(array: Any) -> Any:
    # An observation has no arrays of text: what numpy made of a str or a list of them is that again.
    if array.dtype.kind in "US" or (array.ndim == 0 and array.dtype in _PYTHON_NUMBERS):
        return array.tolist()
    return array
