"""Integrity check of a kept version's files against its digest."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from shmserve.errors import ModelPackageError
from shmserve.package_files import CACHE, SIGNATURE, PackageFile, content_digest, package_files, shown

from .atomic_files import remove_tree
from .errors import VersionDamaged
from .stored_version import StoredVersion

log = logging.getLogger(__name__)


def check_files(version: StoredVersion, read: Callable[[int], None] = lambda count: None) -> list[PackageFile]:
    """Return the present files of a version; raise VersionDamaged unless they match its digest.

    `read` is called with each count of bytes.
    """
    _remove_caches(version.path)
    try:
        found = package_files(version.path, exact=True, read=read)
    except ModelPackageError as error:
        raise VersionDamaged(f"version {version.version} is damaged: {error}") from error
    if content_digest(found) != version.digest:
        raise VersionDamaged(f"version {version.version} is damaged: {_difference(version, found)}; it is not served")
    return found


def _remove_caches(path: Path) -> None:
    """Remove every `__pycache__`, which only an attacker would put here: Python would run it instead of the sources."""
    for directory, names, _ in os.walk(path):
        if CACHE in names:
            names.remove(CACHE)
            log.warning("%s does not belong to the version: removed", Path(directory) / CACHE)
            os.chmod(directory, 0o700)
            remove_tree(Path(directory) / CACHE)
            os.chmod(directory, 0o500)


def _difference(version: StoredVersion, found: Sequence[PackageFile]) -> str:
    if version.files is None:
        return "its files differ from the stored ones"
    stored = {file.name: file for file in version.files if file.name != SIGNATURE}
    present = {file.name: file for file in found if file.name != SIGNATURE}
    for name in sorted(stored.keys() | present.keys()):
        if name not in present:
            return f"{shown(name)} is missing"
        if name not in stored:
            return f"{shown(name)} was added"
        if stored[name] != present[name]:
            return f"{shown(name)} was changed"
    return "its files do not match its digest"
