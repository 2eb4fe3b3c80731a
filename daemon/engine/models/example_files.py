"""Reader of the observations and actions that a package holds as .npz files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.npz_file import NpzUnreadable, read_npz


def read_recorded(file: Path) -> dict[str, Any]:
    """Return the arrays of `file` by name; strings and Python numbers come back as such.

    Raises ModelPackageError for a file that is not a readable archive of arrays.
    """
    try:
        return read_npz(file)
    except NpzUnreadable as error:
        raise ModelPackageError(str(error)) from error
