"""Whose packages are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shmserve.package_files import SIGNATURE, PackageFile
from shmserve.package_signature import SIGNATURE_BYTES, PublicKey, check_signature


@dataclass(frozen=True)
class SignaturePolicy:
    """Whose packages are taken. With keys, a signature that is there must be good even where none is required."""

    required: bool = False
    keys: Sequence[PublicKey] = ()

    def __post_init__(self) -> None:
        if self.required and not self.keys:
            raise ValueError("signatures are required, but there is no key that may have made them (signature_keys)")

    def check(self, files: Sequence[PackageFile], path: Path) -> None:
        """Raises SignatureRefused unless the package of these files, which is at `path`, is to be trusted."""
        signed = any(file.name == SIGNATURE for file in files)
        if self.required or (signed and self.keys):
            check_signature(files, _start_of(path / SIGNATURE) if signed else None, self.keys)


def _start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SIGNATURE_BYTES + 1)
