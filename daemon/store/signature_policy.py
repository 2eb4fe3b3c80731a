"""Policy for package signatures: whether they are required, and the trusted keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shmserve.package_files import SIGNATURE, PackageFile
from shmserve.package_signature import SIGNATURE_BYTES, PublicKey, check_signature


@dataclass(frozen=True)
class SignaturePolicy:
    """The trusted keys. If there are any, a package's signature must be valid even if none is required."""

    required: bool = False
    keys: Sequence[PublicKey] = ()

    def __post_init__(self) -> None:
        if self.required and not self.keys:
            raise ValueError("signatures are required, but no key is trusted: set signature_keys")

    def check(self, files: Sequence[PackageFile], path: Path) -> None:
        """Raise SignatureRefused unless the package with these files, at `path`, is trusted."""
        signed = any(file.name == SIGNATURE for file in files)
        if self.required or (signed and self.keys):
            check_signature(files, _start_of(path / SIGNATURE) if signed else None, self.keys)


def _start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SIGNATURE_BYTES + 1)
