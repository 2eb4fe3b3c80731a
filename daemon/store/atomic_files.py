"""Atomic writes to disk: after a power cut a change is complete or absent."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ..failpoints import failpoint

log = logging.getLogger(__name__)


def write_json(path: Path, content: Any, *, steps: str) -> None:
    """Replace the file `path` by one rename; `steps` is the prefix of the failpoints' names.

    Raises OSError, and then the file is unchanged.
    """
    # One name for the unfinished file: a leftover of an earlier process is overwritten.
    unfinished = path.with_name(f".{path.name}.unfinished")
    failpoint(f"{steps}.before_write")
    try:
        with open(unfinished, "wb") as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
            file.flush()
            failpoint(f"{steps}.before_sync")
            os.fsync(file.fileno())
        failpoint(f"{steps}.before_rename")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    try:
        failpoint(f"{steps}.after_rename")
        sync_directory(path.parent)
        failpoint(f"{steps}.after_sync")
    except OSError as error:  # the new file is in place, so the caller must not get an error
        log.error("%s is written, but a power cut may restore the previous file: %s", path, error)


def sync_directory(path: Path) -> None:
    """Return once the names in the directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory whose directories may be read-only; do nothing if it does not exist."""
    if not path.is_symlink() and path.is_dir():
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o700)
        shutil.rmtree(path)
