"""How much a package may be, and what receiving one may cost."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class PackageLimits:
    """The defaults let any real policy through and stop what only wants to use up the machine."""

    #: Files and directories.
    members: int = 1024
    #: All files together.
    total_bytes: int = 16 * GIB
    #: What gzip may make of one byte, once it has made `gzip_free_bytes`. Weights give 1 to 2, text 5, zeros 1000.
    gzip_ratio: int = 100
    gzip_free_bytes: int = 16 * MIB
    #: Address space and processor time of the process that reads the package.
    memory_bytes: int = 512 * MIB
    cpu_s: int = 600
    #: From the start of that process to its end.
    wall_s: float = 900.0
    #: What stays free in the state directory, for the small files that say which version is served.
    spare_bytes: int = 1 * MIB
