"""Signature of a model package: signing it, and checking that a trusted key has signed it.

`model.sig` lies in the package and holds one line for each signature, so that a key can be replaced without a day on
which nothing is valid:

    shmserve model signature 1
    5f1c0d7a9e3b2846 <base64 of the 64-byte Ed25519 signature>

The signed text is not stored. It is made anew from the files, one line "sha256 size name" for each but `model.sig`, in
the order of their names, so that there is no stored manifest to replace.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelPackageError, ShmServeError
from .package_files import SIGNATURE, PackageFile, package_files
from .text_file import without_byte_order_mark

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: More than any honest model.sig.
SIGNATURE_BYTES = 16384
_FIRST_LINE = "shmserve model signature 1"
_LINE = re.compile(r"([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)")
_KEY_BYTES = 32


class SignatureRefused(ModelPackageError):
    """The package is not what a holder of a trusted key signed, or says nothing of it."""


class KeyUnusable(ShmServeError, ValueError):
    """A key that cannot be read, made or used; the message names it and says why."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key: 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """By which a signature says whose it is, and a message which key is meant."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return base64.b64encode(self.raw).decode("ascii")

    @classmethod
    def read(cls, text: str) -> PublicKey:
        """From its base64 form, or from a file with that or with PEM; raises KeyUnusable."""
        return _from_base64(text) or _from_file(Path(text))


def signed_bytes(files: Iterable[PackageFile]) -> bytes:
    """Return the bytes that a signature of a package with these files covers.

    >>> signed_bytes([PackageFile("policy.py", 3, "ab" * 32)]).replace(b"ab" * 32, b"<sha256>")
    b'shmserve model signature 1\\n<sha256> 3 policy.py\\n'
    """
    lines = [_FIRST_LINE]
    for file in sorted(files, key=lambda file: file.name):
        if file.name != SIGNATURE:
            lines.append(f"{file.sha256} {file.size} {file.name}")
    return "\n".join([*lines, ""]).encode()


def check_signature(files: Iterable[PackageFile], signature: bytes | None, keys: Sequence[PublicKey]) -> PublicKey:
    """The key by which these files are signed; raises SignatureRefused.

    `signature` is what the package's model.sig holds, None without one.
    """
    need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature is None:
        raise SignatureRefused(
            f"the package has no {SIGNATURE}, and this service takes signed packages only: "
            "'shmserve-admin sign DIR --key FILE' signs it"
        )
    signatures = _parse(signature)
    known = {key.id: key for key in keys}
    covered = signed_bytes(files)
    fitting = [(known[key_id], mark) for key_id, mark in signatures if key_id in known]
    if not fitting:
        raise SignatureRefused(
            f"the package is signed by key {', '.join(key_id for key_id, _ in signatures)}; "
            f"this service trusts {', '.join(known) or 'no key'} (signature_keys)"
        )
    for key, mark in fitting:
        with contextlib.suppress(InvalidSignature):
            Ed25519PublicKey.from_public_bytes(key.raw).verify(mark, covered)
            return key
    raise SignatureRefused(
        f"the signature by key {fitting[0][0].id} does not fit the package's files: "
        "a file was changed, added or removed after signing"
    )


def sign_package(directory: Path, private_key: Path, *, password: bytes | None = None, add: bool = False) -> PublicKey:
    """Sign the package in `directory` as it is now and replace its model.sig; returns the key to trust.

    With `add` the signatures of other keys stay, good or not. Raises ModelPackageError for a directory that no service
    would take, KeyUnusable for a bad key, SignatureRefused for a model.sig that is none and would stay.
    """
    key = _read_private_key(private_key, password)
    public = PublicKey(key.public_key().public_bytes_raw())
    files = package_files(directory)
    if not any(file.name != SIGNATURE for file in files):
        raise ModelPackageError(f"{directory} holds no file to sign")
    marks = {public.id: key.sign(signed_bytes(files))}
    if add and (directory / SIGNATURE).exists():
        marks = {**dict(_parse((directory / SIGNATURE).read_bytes())), **marks}
    lines = [_FIRST_LINE, *(f"{key_id} {base64.b64encode(mark).decode('ascii')}" for key_id, mark in marks.items())]
    unfinished = directory / f".{SIGNATURE}.{os.getpid()}"
    try:
        unfinished.write_text("\n".join([*lines, ""]), "ascii")
        unfinished.replace(directory / SIGNATURE)
    finally:
        unfinished.unlink(missing_ok=True)
    return public


def make_key_pair(private_key: Path, *, password: bytes | None = None) -> PublicKey:
    """Write a new private key (PEM, mode 0600, never over an existing file) and return its public half.

    `str()` of that is what goes into the configuration.
    """
    need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        descriptor = os.open(private_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KeyUnusable(f"private key {private_key} cannot be made: {error.strerror}") from error
    with open(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    return PublicKey(key.public_key().public_bytes_raw())


def _parse(signature: bytes) -> list[tuple[str, bytes]]:
    if len(signature) > SIGNATURE_BYTES:
        raise SignatureRefused(f"{SIGNATURE} has {len(signature)} bytes, more than {SIGNATURE_BYTES}")
    try:
        first, *lines = signature.decode("ascii").split("\n")
    except UnicodeDecodeError:
        first, lines = "", []
    found = []
    for line in lines[:-1]:
        match = _LINE.fullmatch(line)
        mark = base64.b64decode(match[2]) if match else b""
        # The last character has bits to spare: one signature is written in one way only.
        if match and base64.b64encode(mark).decode("ascii") == match[2]:
            found.append((match[1], mark))
    if first != _FIRST_LINE or not found or len(found) != len(lines) - 1 or lines[-1]:
        raise SignatureRefused(
            f"{SIGNATURE} is not a signature file: expected {_FIRST_LINE!r}, then lines with a key's id and a signature"
        )
    return found


def _from_base64(text: str) -> PublicKey | None:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return PublicKey(raw) if len(raw) == _KEY_BYTES else None


def _from_file(path: Path) -> PublicKey:
    try:
        content = without_byte_order_mark(path.read_bytes())
    except ValueError as error:
        raise KeyUnusable(f"public key {path} cannot be read: {error}") from error
    except OSError as error:
        raise KeyUnusable(
            f"public key {str(path)!r} is neither 32 bytes in base64 nor a file that can be read: {error.strerror}"
        ) from error
    if (key := _from_base64(content.decode("ascii", "replace"))) is not None:
        return key
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        loaded = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"public key {path} is neither 32 bytes in base64 nor PEM") from error
    if not isinstance(loaded, Ed25519PublicKey):
        raise KeyUnusable(f"public key {path} is not of the kind Ed25519")
    return PublicKey(loaded.public_bytes_raw())


def _read_private_key(path: Path, password: bytes | None) -> Ed25519PrivateKey:
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(without_byte_order_mark(path.read_bytes()), password)
    except OSError as error:
        raise KeyUnusable(f"private key {path} cannot be read: {error.strerror}") from error
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:  # TypeError: a password too many or missing
        raise KeyUnusable(f"private key {path} cannot be used: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"private key {path} is not of the kind Ed25519")
    return key


def need_cryptography() -> None:
    """Raises KeyUnusable where the package that computes signatures is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise KeyUnusable("signatures need the package cryptography: pip install 'shmserve[signing]'") from None
