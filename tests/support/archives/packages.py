"""Small model packages, and descriptors of them as an operator's program would send them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.archives.tar_bytes import MANIFEST, POLICY

FILES: dict[str, bytes] = {
    "model.toml": MANIFEST,
    "policy.py": POLICY,
    "weights/actor.bin": bytes(range(256)) * 100,
    "weights/empty.bin": b"",
}


def write_package(directory: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def numbered(directory: Path, number: int) -> Path:
    """A package whose content is different for each number."""
    return write_package(directory, {**FILES, "weights/actor.bin": b"%d" % number * 1000})


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
