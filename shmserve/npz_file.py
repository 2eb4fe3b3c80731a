"""Observation or action in an .npz file: arrays by name, with text and Python's numbers as numpy.savez was given them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

#: Dtypes to which numpy converts Python's int, float and bool.
_PYTHON_NUMBERS = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_))


class NpzUnreadable(ValueError):
    """The file is missing, or not an archive of arrays; the text names it and the remedy."""


def read_npz(file: Path) -> dict[str, Any]:
    """Return the arrays of `file` by name; strings and Python numbers come back as such. Raises NpzUnreadable."""
    try:
        # Opened here, because numpy leaves a file open that is not an archive.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: _value(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NpzUnreadable(f"{file} cannot be read: {why}; write it with numpy.savez(file, **arrays)") from error


def write_npz(file: Path, values: dict[str, Any]) -> None:
    """Write arrays, numbers and texts by name, as `read_npz` reads them."""
    # Not numpy.savez, which reserves names that no array may have, and changes that of the file.
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in values.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(value), allow_pickle=False)


def _value(array: Any) -> Any:
    # Observations have no arrays of strings: convert those back to the str or list that numpy.savez was given.
    if array.dtype.kind in "US" or (array.ndim == 0 and array.dtype in _PYTHON_NUMBERS):
        return array.tolist()
    return array
