"""Writer of a package's files into a new directory, with their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

from shmserve.package_files import PackageFile, shown

from ..failpoints import failpoint
from .errors import ArchiveRefused
from .kept_files import SHARED_BYTES, Comparison, KeptFiles, hard_link, reflink
from .limits import PackageLimits
from .overlapped_copy import OVERLAPPED_BYTES, copy_and_hash, hash_beside, pieces_of, write_all


class PackageWriter:
    """Writes and hashes each file in one pass, so that the checked bytes are the loaded ones.

    A file that is among `kept` is not written again: see kept_files.py. Neither is one that can be a reflink of the sender's.
    """

    def __init__(
        self, directory: int, limits: PackageLimits, on_bytes: Callable[[int], None], kept: KeptFiles | None = None
    ) -> None:
        self._root = directory
        self._limits = limits
        self._on_bytes = on_bytes
        self._kept = kept or KeptFiles()
        # Until the file system says that it has none, with a kept file and with one of the sender.
        self._has_reflinks = self._may_clone = True
        self._directories: set[str] = set()
        #: Names that are hard links of kept files, which are on the disk already.
        self._linked: set[str] = set()
        self._total = 0
        self.files: dict[str, PackageFile] = {}

    def expect_directory(self, name: str) -> None:
        """Reserve a directory's name, which no file may have; the directory is made with its first file."""
        for above in _directories_of(name + "/"):
            if above in self.files:
                raise ArchiveRefused(f"{shown(above)} is both a file and a directory")
            self._directories.add(above)

    def add(self, name: str, size: int, chunks: Iterable[bytes | memoryview], source: int | None = None) -> PackageFile:
        """Write one new file of these chunks, or of the file `source`; `size` is the size that its header claims."""
        if name in self.files:
            raise ArchiveRefused(f"{shown(name)} occurs twice")
        if name in self._directories:
            raise ArchiveRefused(f"{shown(name)} is both a file and a directory")
        for above in _directories_of(name):
            if above in self.files:
                raise ArchiveRefused(f"{shown(above)} is both a file and a directory")
            self._directories.add(above)
        if len(self.files) >= self._limits.members:
            raise ArchiveRefused(f"the package has more than {self._limits.members} files")
        self._check_total(name, size)
        failpoint("ingest.before_file")
        parent = self._make_parents(name)
        before = self._total
        try:
            digest = self._clone(parent, name, source) if source is not None and size >= SHARED_BYTES else None
            if digest is None:
                digest = self._take(parent, name, size, self._counted(name, chunks))
        finally:
            os.close(parent)
        self.files[name] = file = PackageFile(name, self._total - before, digest)
        return file

    def _clone(self, parent: int, name: str, source: int) -> str | None:
        """Make the file a reflink of the sender's and hash what is stored, whatever the sender writes meanwhile.

        Returns its sha256 in hex, or None, with no file, if the two file systems are not one with reflinks.
        """
        if not self._may_clone:
            return None
        base = name.rpartition("/")[2]
        descriptor = _create(base, parent)
        try:
            if reflink(source, descriptor):
                self._check_total(name, os.fstat(descriptor).st_size)
                return hash_beside(self._counted(name, pieces_of(descriptor)), lambda: failpoint("ingest.in_file"))
        finally:
            os.close(descriptor)
        self._may_clone = False
        os.unlink(base, dir_fd=parent)
        return None

    def _take(self, parent: int, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> str:
        """Share the file with a kept version, or write it; return its sha256 in hex."""
        with self._kept.compared(size, chunks) as comparison:
            if comparison is None:
                return self._write(parent, name, size, chunks)
            failpoint("ingest.compared")
            if comparison.is_same and self._share(parent, name, comparison):
                failpoint("ingest.shared")
                return comparison.sha256
            return self._write(parent, name, size, comparison.received())

    def _share(self, parent: int, name: str, kept: Comparison) -> bool:
        base = name.rpartition("/")[2]
        if self._has_reflinks:
            descriptor = _create(base, parent)
            try:
                if reflink(kept.descriptor, descriptor):
                    return True
            finally:
                os.close(descriptor)
            self._has_reflinks = False
            os.unlink(base, dir_fd=parent)
        if hard_link(kept.descriptor, base, parent):
            self._linked.add(name)
            return True
        return False

    def _write(self, parent: int, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> str:
        self._check_room(name, size)
        descriptor = _create(name.rpartition("/")[2], parent)
        try:
            copy = copy_and_hash if size >= OVERLAPPED_BYTES else _copy_small
            return copy(descriptor, chunks, lambda: failpoint("ingest.in_file"))
        finally:
            os.close(descriptor)

    def sync(self, movable: str) -> None:
        """Return once every file and directory is on the disk, the directories inside read-only.

        `movable` stays writable, because moving a directory elsewhere writes to it. Everything is synced at the end, so
        that the file system commits its journal once.
        """
        failpoint("ingest.before_sync")
        for name in self.files:
            if name not in self._linked:
                self._sync(name, 0)
        made = {above for name in self.files for above in _directories_of(name)}
        for name in sorted(made, reverse=True):
            self._sync(name, os.O_DIRECTORY, 0o700 if name == movable else 0o500)
        os.fsync(self._root)
        failpoint("ingest.after_sync")

    def _check_total(self, name: str, size: int) -> None:
        if self._total + size > self._limits.total_bytes:
            raise ArchiveRefused(
                f"{shown(name)} has {size} bytes and the files before it {self._total}; "
                f"a package has at most {self._limits.total_bytes}"
            )

    def _check_room(self, name: str, size: int) -> None:
        found = os.fstatvfs(self._root)
        free = found.f_bavail * found.f_frsize
        if free < size + self._limits.spare_bytes:
            raise OSError(errno.ENOSPC, f"{shown(name)} has {size} bytes and the state directory {free} free")

    def _counted(self, name: str, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            self._total += len(chunk)
            if self._total > self._limits.total_bytes:  # a file that grows while it is read
                raise ArchiveRefused(f"with {shown(name)} the package has more than {self._limits.total_bytes} bytes")
            self._on_bytes(len(chunk))
            yield chunk

    def _make_parents(self, name: str) -> int:
        """Make a file's directory and return its descriptor."""
        parent = os.dup(self._root)
        for part in name.split("/")[:-1]:
            try:
                os.mkdir(part, 0o700, dir_fd=parent)
            except FileExistsError:
                pass
            except BaseException:
                os.close(parent)
                raise
            above = parent
            try:
                parent = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
        return parent

    def _sync(self, name: str, flags: int, mode: int | None = None) -> None:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=self._root)
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _create(base: str, directory: int) -> int:
    """Create a file that a policy must not change, as those of every version."""
    return os.open(base, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400, dir_fd=directory)


def _directories_of(name: str) -> list[str]:
    """Return the directories above a file, outermost first.

    >>> _directories_of("a/b/c.py")
    ['a', 'a/b']
    """
    parts = name.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _copy_small(descriptor: int, chunks: Iterable[bytes | memoryview], written: Callable[[], None]) -> str:
    """Copy and hash as `copy_and_hash` does, without threads."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        write_all(descriptor, chunk)
        written()
    return digest.hexdigest()
