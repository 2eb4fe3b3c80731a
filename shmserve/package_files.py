"""Files of a model package: which belong to it, their names, and the content address over them.

A package is a tree of regular files. Empty directories, `__pycache__` and the files that macOS adds to folders and
archives are not part of it. Neither is its signature (`model.sig`): the same files signed again are the same version.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .errors import ModelPackageError

SIGNATURE = "model.sig"
CACHE = "__pycache__"
#: Written by macOS: the Finder's view of a folder; the folder of a zip file with the attributes of its files.
_OF_MACOS = (".DS_Store", "__MACOSX")
#: Where a file system or tar has no place for them, macOS writes the attributes of `x` to `._x`, in this format.
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
#: Digits of the content address by which people and replies name a version.
VERSION_DIGITS = 16

NAME_BYTES = 1024
PART_BYTES = 255  # the longest directory entry of Linux
DEPTH = 16

CHUNK_BYTES = 1 << 20
#: Cc: control, Cf: invisible (among them those that turn the reading direction), Zl and Zp: line breaks.
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp")


@dataclass(frozen=True)
class PackageFile:
    """One file: its name relative to the package with '/' between the parts, and what it holds."""

    name: str
    size: int
    sha256: str  # hex


def name_fault(name: str) -> str | None:
    r"""What keeps `name` from naming a file of a package, as the end of a sentence; None if nothing does.

    Undecodable bytes are expected as os.fsdecode() gives them.

    >>> name_fault("weights/actor.safetensors")
    >>> name_fault("../policy.py"), name_fault("/policy.py"), name_fault("a\\b")
    ("goes up with '..'", 'is absolute', 'has a backslash')
    """
    if not name:
        return "is empty"
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if len(raw) > NAME_BYTES:
        return f"is {len(raw)} bytes long, more than {NAME_BYTES}"
    if any(unicodedata.category(character) in _INVISIBLE for character in name):
        return "has a control or invisible character"
    if "\\" in name:
        return "has a backslash"
    if name.startswith("/"):
        return "is absolute"
    parts = name.split("/")
    if len(parts) > DEPTH:
        return f"is {len(parts)} levels deep, more than {DEPTH}"
    for part in parts:
        if part == "..":
            return "goes up with '..'"
        if part == ".":
            return "has a part '.'"
        if not part:
            return "has an empty part"
        if len(part.encode()) > PART_BYTES:
            return f"has a part of {len(part.encode())} bytes, more than {PART_BYTES}"
    return None


def is_left_out(name: str) -> bool:
    """Whether a file of this name is never part of a package.

    >>> is_left_out("sub/__pycache__/policy.pyc"), is_left_out(".DS_Store"), is_left_out("sub/policy.py")
    (True, True, False)
    """
    return any(part == CACHE or part in _OF_MACOS for part in name.split("/"))


def may_be_apple_double(name: str) -> bool:
    """Whether the content of a file of this name has to be looked at: see `is_apple_double`."""
    return name.rpartition("/")[2].startswith("._")


def is_apple_double(start: bytes) -> bool:
    """Whether a file that begins with these bytes holds the attributes of another file on macOS, and no content."""
    return start.startswith(_APPLE_DOUBLE)


def shown(name: str) -> str:
    r"""`name` for a message: quoted, nothing in it that a terminal would act on, 64 characters at most.

    >>> print(shown("a\x1b[2J"))
    'a\x1b[2J'
    """
    quoted = ascii(name)
    return quoted if len(quoted) <= 64 else quoted[:60] + "...'"


@dataclass(frozen=True)
class OpenFile:
    """A file of a package, open for reading until the iteration goes on."""

    name: str
    descriptor: int
    found: os.stat_result


def open_files(directory: int, *, entries: int | None = None, exact: bool = False) -> Iterator[OpenFile]:
    """Every file below the open `directory`, in the order of their names, reached without following any link.

    What macOS adds is left out, unless `exact`.
    Raises ModelPackageError for anything but regular files and directories, for names that cannot be, and for more
    than `entries` entries.
    """
    counted = 0

    def below(parent: int, prefix: str) -> Iterator[OpenFile]:
        nonlocal counted
        names = []
        try:
            with os.scandir(parent) as listing:
                for entry in listing:
                    counted += 1
                    if entries is not None and counted > entries:
                        raise ModelPackageError(f"the directory holds more than {entries} files and directories")
                    names.append(entry.name)
        except OSError as error:
            raise _unreadable(prefix, error) from error
        for part in sorted(names):
            name = prefix + part
            if part == CACHE or (part in _OF_MACOS and not exact):
                continue
            if fault := name_fault(name):
                raise ModelPackageError(f"the name {shown(name)} {fault}")
            # Looked at before it is opened: opening a device may already do something.
            try:
                mode = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
            except OSError as error:
                raise _unreadable(name, error) from error
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise ModelPackageError(f"{shown(name)} is {_kind(mode)}")
            descriptor = _open(part, parent, name)
            try:
                found = os.fstat(descriptor)
                if stat.S_ISDIR(found.st_mode):
                    yield from below(descriptor, name + "/")
                elif stat.S_ISREG(found.st_mode):
                    if not exact and may_be_apple_double(part) and is_apple_double(_start(descriptor, name)):
                        continue
                    yield OpenFile(name, descriptor, found)
                else:  # exchanged since it was looked at
                    raise ModelPackageError(f"{shown(name)} is {_kind(found.st_mode)}")
            finally:
                os.close(descriptor)

    # A description of our own: the offset of the caller's may be shared with another process.
    own = _open(".", directory, "")
    try:
        yield from below(own, "")
    finally:
        os.close(own)


def _open(part: str, parent: int, name: str) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=parent)
    except OSError as error:
        raise _unreadable(name, error) from error


def _start(descriptor: int, name: str) -> bytes:
    try:
        return os.pread(descriptor, len(_APPLE_DOUBLE), 0)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> ModelPackageError:
    return ModelPackageError(f"{shown(name) if name else 'the directory'} cannot be read: {error.strerror}")


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link; a package holds the files themselves ('cp -rL' copies what links point to)"
    for test, kind in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return f"{kind}; a package holds regular files"
    return "no regular file"


def read_chunks(file: OpenFile) -> Iterator[bytes]:
    """What an open file holds."""
    with contextlib.suppress(OSError):  # a hint: the kernel reads further ahead
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while True:
        try:
            chunk = os.read(file.descriptor, CHUNK_BYTES)
        except OSError as error:
            raise _unreadable(file.name, error) from error
        if not chunk:
            return
        yield chunk


def package_files(
    path: str | os.PathLike[str], *, exact: bool = False, read: Callable[[int], None] = lambda count: None
) -> list[PackageFile]:
    """The files of the package in directory `path`, hashed; raises ModelPackageError for what no package holds.

    `exact`: with what macOS adds, as nothing adds anything to a kept version. `read` is called with each count of bytes.
    """
    files = []
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ModelPackageError(f"model package {os.fspath(path)} cannot be read: {error.strerror}") from error
    try:
        for file in open_files(directory, exact=exact):
            digest, size = hashlib.sha256(), 0
            for chunk in read_chunks(file):
                digest.update(chunk)
                size += len(chunk)
                read(len(chunk))
            files.append(PackageFile(file.name, size, digest.hexdigest()))
    except ModelPackageError as error:
        raise ModelPackageError(f"model package {os.fspath(path)}: {error}") from error
    finally:
        os.close(directory)
    return files


def package_bytes(path: str | os.PathLike[str]) -> int:
    """The size of the package in directory `path`, whose files are opened and not read; raises as `package_files`."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ModelPackageError(f"model package {os.fspath(path)} cannot be read: {error.strerror}") from error
    try:
        return sum(file.found.st_size for file in open_files(directory))
    except ModelPackageError as error:
        raise ModelPackageError(f"model package {os.fspath(path)}: {error}") from error
    finally:
        os.close(directory)


def content_digest(files: Iterable[PackageFile]) -> str:
    """The content address: sha256 in hex over the files' names and contents, whatever their order.

    A name holds no NUL and a digest has one length, so no two packages give the same bytes to hash.

    >>> content_digest([])[:16]
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        if file.name != SIGNATURE:
            digest.update(file.name.encode() + b"\0" + bytes.fromhex(file.sha256))
    return digest.hexdigest()


def content_version(path: str | os.PathLike[str], *, exact: bool = False) -> str:
    """How the package in directory `path` is named everywhere: the first 16 digits of its content address."""
    return content_digest(package_files(path, exact=exact))[:VERSION_DIGITS]
