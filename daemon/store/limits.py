"""Limits for the size of a package and for the resources of its ingest."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class PackageLimits:
    """Limits whose defaults accept any real policy and stop a package that is made to exhaust the machine."""

    #: Number of files and directories.
    members: int = 1024
    #: Bytes of all files together.
    total_bytes: int = 16 * GIB
    #: Most bytes from one byte of gzip, past the first `gzip_free_bytes`. Weights give 1 to 2, text 5, zeros 1000.
    gzip_ratio: int = 100
    gzip_free_bytes: int = 16 * MIB
    #: Address space and CPU time of the ingest worker.
    memory_bytes: int = 512 * MIB
    cpu_s: int = 600
    #: Time from the start of the worker to its end.
    wall_s: float = 900.0
    #: Bytes that stay free in the state directory, for the records of the versions.
    spare_bytes: int = 1 * MIB
