"""Segment: the shared-memory object of one direction of a channel.

The supervisor creates and unlinks; it writes the header through the file and never maps the segment,
so that memory a client can write never enters its address space. A client or an engine maps what the
supervisor handed it, checks the header, and closes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import posix_ipc

from .errors import ForeignService, ProtocolMismatch, ServiceUnavailable
from .layout import COUNTER_OFFSET, HEADER, WORD, Geometry, header_bytes
from .protocol import MAGIC, WIRE_VERSION
from .sealed_memory import seal, unsafe_to_map

#: Bytes of a mapping at each step; `python -m bench.channel_memory` measures how long the kernel takes to clear them.
_PIECE_BYTES = 128 << 10
_MADV_POPULATE_READ = 22  # <linux/mman.h>; Python has no name for it yet


@dataclass(frozen=True)
class Identity:
    """Which segment this is: the daemon's run, the channel, and the tenancy of it."""

    epoch: int
    channel: int
    generation: int


def create_segment(name: str, geometry: Geometry, identity: Identity, mode: int = 0o600, *, counter: int = 0) -> None:
    """Create the named segment `name`, all its bytes allocated, its header and first counter written.

    Raises FileExistsError if the name is taken (it is never opened: it may be a stranger's), and
    OSError (ENOSPC) if /dev/shm has no room; then nothing is left behind.
    """
    try:
        # Neither size= here (posix_ipc unlinks the name if sizing fails, even one it did not create)
        # nor name=None (its random names can be guessed).
        shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode)
    except posix_ipc.ExistentialError as error:
        raise FileExistsError(f"shared memory {name} exists already") from error
    try:
        os.fchmod(shared.fd, mode)  # exact, whatever the umask
        # Without this a full /dev/shm is found out by SIGBUS at the first touch.
        os.posix_fallocate(shared.fd, 0, geometry.segment_bytes)
        _write_header(shared.fd, geometry, identity, counter)
    except OSError:
        unlink_segment(name)
        raise
    finally:
        shared.close_fd()


def create_sealed_segment(geometry: Geometry, identity: Identity, mode: int = 0o600, *, counter: int = 0) -> int:
    """Create a memfd with the same contents, sealed against shrinking and growing; the caller owns the descriptor.

    Raises OSError (ENOMEM, ENOSPC) if the memory is full.
    """
    descriptor = os.memfd_create("shmserve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # A memfd begins as 0777: a holder of a read-only descriptor could open it again for writing.
        os.fchmod(descriptor, mode)
        os.posix_fallocate(descriptor, 0, geometry.segment_bytes)
        _write_header(descriptor, geometry, identity, counter)
        seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_only(descriptor: int) -> int:
    """Return another descriptor of the same memfd, for reading alone."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _write_header(descriptor: int, geometry: Geometry, identity: Identity, counter: int) -> None:
    header = header_bytes(geometry, epoch=identity.epoch, generation=identity.generation, channel=identity.channel)
    os.pwrite(descriptor, header, 0)
    os.pwrite(descriptor, counter.to_bytes(WORD, sys.byteorder), COUNTER_OFFSET)


def unlink_segment(name: str) -> None:
    """Remove the name; existing mappings keep the memory. A missing name is not an error."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


class Segment:
    """A mapped segment whose header has been checked.

    `bytes` is the whole segment as uint8, `words` the same memory as native 8-byte words. `file` is the result of
    fstat(2) when it was mapped.
    """

    def __init__(self, mapped: mmap.mmap, geometry: Geometry, identity: Identity, file: os.stat_result) -> None:
        self._mapped: mmap.mmap | None = mapped
        self.geometry = geometry
        self.identity = identity
        self.file = file
        self.memory = memoryview(mapped)
        self.words = self.memory.cast("Q")
        self.bytes = np.frombuffer(mapped, np.uint8)

    @classmethod
    def open(cls, name: str, *, writable: bool, prefault: bool = True, owners: Container[int] | None = None) -> Segment:
        """Map the named segment; the caller closes it. `prefault` is as `from_descriptor` takes it.

        Raises ServiceUnavailable if the name is gone (the daemon removed it meanwhile), and ForeignService if it does
        not belong to one of these `owners` (None: any user): an owner can shrink it while it is mapped.
        """
        try:
            # No size= on an existing name: posix_ipc would resize the live segment to it.
            shared = posix_ipc.SharedMemory(name, read_only=not writable)
        except posix_ipc.ExistentialError as error:
            raise ServiceUnavailable(
                f"shared memory {name} is gone: the daemon stopped, or this process sees another /dev/shm "
                "(in a container share the host's, or use transport 'sealed')"
            ) from error
        try:
            if owners is not None and (uid := os.fstat(shared.fd).st_uid) not in owners:
                raise ForeignService(
                    f"shared memory {name} belongs to uid {uid}, whose daemon this is not: not mapped",
                    path=name,
                    owner_uid=uid,
                )
            return cls.from_descriptor(shared.fd, writable=writable, prefault=prefault)
        finally:
            shared.close_fd()

    @classmethod
    def from_descriptor(
        cls, descriptor: int, *, writable: bool, prefault: bool = True, sealed: bool = False
    ) -> Segment:
        """Map the segment behind an open file descriptor; the descriptor stays the caller's.

        Without `prefault` the mapping has no pages yet, see the method of that name. `sealed`: another process sent the
        descriptor, so the memory must be sealed.

        Raises ProtocolMismatch for a header of another wire version, or one that contradicts the file, or without seals.
        """
        if sealed and (problem := unsafe_to_map(descriptor, writable=writable)) is not None:
            raise ProtocolMismatch(f"the memory of a channel {problem}; it was not mapped")
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < HEADER.size:
            raise ProtocolMismatch(f"not a segment: {found.st_size} bytes, a header alone has {HEADER.size}")
        header = os.pread(descriptor, HEADER.size, 0)
        magic, version, epoch, generation, channel, slots, metadata_bytes, payload_bytes = HEADER.packed.unpack(header)
        if magic != MAGIC or version != WIRE_VERSION:
            raise ProtocolMismatch(
                f"segment has magic {magic:#x} and wire version {version}, this side {MAGIC:#x} and {WIRE_VERSION}: "
                "install the same shmserve on both sides",
                wire_version=version if magic == MAGIC else None,
            )
        try:
            geometry = Geometry(slots, metadata_bytes, payload_bytes)
        except ValueError as error:
            raise ProtocolMismatch(f"segment header makes no sense: {error}") from error
        if found.st_size < geometry.segment_bytes:
            raise ProtocolMismatch(f"segment of {found.st_size} bytes, its header says {geometry.segment_bytes}")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED
        if prefault:  # the first touch of a page costs 4.4 us in each process, inside a request
            flags |= getattr(mmap, "MAP_POPULATE", 0x8000)
        mapped = mmap.mmap(descriptor, geometry.segment_bytes, flags=flags, prot=protection)
        return cls(mapped, geometry, Identity(epoch, channel, generation), found)

    def written_only_by(self, uids: Container[int]) -> bool:
        """Whether the object belongs to one of these users and its mode lets no other user write to it.

        A request segment has a mode with which its client may write, in either transport, so a request segment of another
        user's daemon never passes for replies.
        """
        return self.file.st_uid in uids and not self.file.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    @property
    def counter_index(self) -> int:
        """Index of the counter in `words`."""
        return COUNTER_OFFSET // WORD

    def prefault(self) -> Iterator[None]:
        """Fault in the mapping, a piece at each step: all at once would block the caller for milliseconds."""
        for start in range(0, self.geometry.segment_bytes, _PIECE_BYTES):
            if self._mapped is None:
                return
            try:
                self._mapped.madvise(_MADV_POPULATE_READ, start, _PIECE_BYTES)
            except OSError as error:
                # A truncated file is not reported here: the reader gets SIGBUS.
                if error.errno == errno.EINVAL:  # before Linux 5.14
                    self.bytes[start : start + _PIECE_BYTES : mmap.PAGESIZE].max()
            yield

    def release_pages(self) -> Iterator[None]:
        """Release the pages, a piece at each step, so that `close` has little to do. They may still be used."""
        for start in range(0, self.geometry.segment_bytes, _PIECE_BYTES):
            if self._mapped is None:
                return
            with contextlib.suppress(OSError):  # a process that keeps its memory locked
                self._mapped.madvise(mmap.MADV_DONTNEED, start, _PIECE_BYTES)
            yield

    def close(self) -> None:
        """Unmap. Arrays that still view the memory keep it mapped until they are gone."""
        mapped, self._mapped = self._mapped, None
        if mapped is None:
            return
        self.words.release()
        self.memory.release()
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            mapped.close()
