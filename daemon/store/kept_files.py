"""Files of the kept versions, which a package that is received shares instead of writing the same bytes again.

A received file is compared with the kept files of its size while it is read and hashed. Only a kept file that has the
same bytes now, not only a record of the same hash, is shared: the check of a new version covers every byte that is
loaded, as if it had been written.

It is shared by a reflink where the file system has them (Btrfs, XFS), otherwise by a hard link. A write to a reflink
stays in its version. A hard link is one file in several versions: a write to it, by a process of the daemon's user
that first makes it writable, damages all of them; as with a reflink, so does a bad block. The check before a version
is served finds both, and the store never writes to a file that it keeps. Small files are not shared, because a copy of
its own costs little and the policy's sources are those that people edit in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .overlapped_copy import OVERLAPPED_BYTES, PieceThread

if TYPE_CHECKING:
    from .stored_version import StoredVersion

#: Files from this size are shared.
SHARED_BYTES = 64 << 10
#: Most kept files with which one received file is compared: one descriptor and one read of each piece for each.
_COMPARED = 8
_CHUNK_BYTES = 1 << 20
#: linux/fs.h: _IOW(0x94, 9, int), the same on x86-64 and aarch64.
_FICLONE = 0x40049409
#: The file system, or this pair of files, has no reflinks.
_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)
#: No hard link can be made: too many of them, or the version was removed meanwhile.
_NO_LINK = (errno.EMLINK, errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class KeptFile:
    """One file of a kept version: its absolute path, and the content that its record names."""

    path: str
    size: int
    sha256: str


def shareable_files(versions: Iterable[StoredVersion]) -> list[KeptFile]:
    """Return the files to share, one for each content; `versions` come in the order in which they are preferred."""
    found: dict[str, KeptFile] = {}
    for version in versions:
        for file in version.files or ():
            if file.size >= SHARED_BYTES:
                found.setdefault(file.sha256, KeptFile(str(version.path / file.name), file.size, file.sha256))
    return list(found.values())


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`: the kept file that was the same longest, and what is left of the received file."""

    descriptor: int
    same_bytes: int
    #: sha256 in hex of the first `same_bytes` bytes.
    sha256: str
    #: The received bytes from there on; empty if the whole file was the same.
    rest: Iterable[bytes | memoryview]
    #: Whether the kept file has these bytes and no others, and its record names them.
    is_same: bool

    def received(self) -> Iterator[bytes | memoryview]:
        """Yield all bytes that were received; raises OSError if the kept file is not what it was when compared."""
        digest, position = hashlib.sha256(), 0
        while position < self.same_bytes:
            piece = os.pread(self.descriptor, min(_CHUNK_BYTES, self.same_bytes - position), position)
            if not piece:
                break
            digest.update(piece)
            position += len(piece)
            yield piece
        if digest.hexdigest() != self.sha256:
            raise OSError(errno.EIO, "a file of a kept version was changed while it was compared with the package")
        yield from self.rest


class KeptFiles:
    """The kept files, by size."""

    def __init__(self, files: Sequence[KeptFile] = ()) -> None:
        self._by_size: dict[int, list[KeptFile]] = {}
        for file in files:
            self._by_size.setdefault(file.size, []).append(file)

    @contextlib.contextmanager
    def compared(self, size: int, chunks: Iterable[bytes | memoryview]) -> Iterator[Comparison | None]:
        """Compare a received file with the kept ones of its size; None, with nothing read, if there is none.

        The comparison, and its `rest`, are valid within the block.
        """
        with contextlib.ExitStack() as closing:
            opened = []
            for file in self._by_size.get(size, ())[:_COMPARED]:
                descriptor = _open_immutable(file)
                if descriptor is not None:
                    closing.callback(os.close, descriptor)
                    opened.append((descriptor, file))
            yield _compare(opened, size, chunks) if opened else None


def _compare(kept: list[tuple[int, KeptFile]], size: int, chunks: Iterable[bytes | memoryview]) -> Comparison:
    digest, position = hashlib.sha256(), 0
    received = iter(chunks)
    # As in a copy, a large file is hashed beside the reading.
    thread = PieceThread(digest.update) if size >= OVERLAPPED_BYTES else None
    rest: list[bytes] = []
    try:
        for chunk in received:
            piece = bytes(chunk)
            same = [(descriptor, file) for descriptor, file in kept if _holds(descriptor, position, piece)]
            if not same:
                rest.append(piece)
                break
            kept = same
            position += len(piece)
            if thread is None:
                digest.update(piece)
            else:
                thread.give(piece)
    finally:
        if thread is not None:
            thread.end()
    if thread is not None:
        thread.check()
    descriptor, _ = kept[0]
    sha256 = digest.hexdigest()
    named = next((other for other, file in kept if file.sha256 == sha256), None)
    is_same = not rest and position == size and named is not None
    return Comparison(
        named if is_same and named is not None else descriptor, position, sha256, _chain(rest, received), is_same
    )


def _chain(first: list[bytes], others: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield from first
    yield from others


def _holds(descriptor: int, position: int, piece: bytes) -> bool:
    """Report whether a kept file has these bytes at `position`; a file that cannot be read has not."""
    try:
        return os.pread(descriptor, len(piece), position) == piece
    except OSError:
        return False


def _open_immutable(file: KeptFile) -> int | None:
    """Open a kept file; None unless it is as the store wrote it: a file of this user without write permission."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # its version was removed, or is damaged
        return None
    found = os.fstat(descriptor)
    if (
        stat.S_ISREG(found.st_mode)
        and stat.S_IMODE(found.st_mode) == 0o400
        and found.st_uid == os.geteuid()
        and found.st_size == file.size
    ):
        return descriptor
    os.close(descriptor)
    return None


def reflink(source: int, target: int) -> bool:
    """Make the new file `target` share the blocks of `source`; False if the file system cannot. Raises OSError."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def hard_link(source: int, name: str, directory: int) -> bool:
    """Give the open file a name in `directory`; False if it cannot have a further one. Raises OSError."""
    try:
        # Of the file that was compared, whatever its path names by now.
        os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True
