"""Reader of the observations and actions that a package holds as .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.errors import ModelPackageError


def read_recorded(file: Path) -> dict[str, Any]:
    """Return the arrays of `file` by name; strings and Python numbers come back as such.

    Raises ModelPackageError for a file that is not a readable archive of arrays.
    """
    try:
        # Opened here, because numpy leaves a file open that is not an archive.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: _value(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelPackageError(f"{file} cannot be read: {error}; write it with numpy.savez(file, **arrays)") from error


#: Dtypes to which numpy converts Python's int, float and bool.
_PYTHON_NUMBERS = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_))


def _value(array: Any) -> Any:
    # Observations have no arrays of strings: convert those back to the str or list that numpy.savez was given.
    if array.dtype.kind in "US" or (array.ndim == 0 and array.dtype in _PYTHON_NUMBERS):
        return array.tolist()
    return array
