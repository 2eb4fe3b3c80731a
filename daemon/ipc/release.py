"""Release check between a daemon and its engines: the package may be upgraded while the daemon runs.

`python -m shmserve.daemon.ipc.release` prints the release that an engine started now would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import shmserve
from shmserve import __version__
from shmserve.protocol import WIRE_VERSION

#: The error of an engine that its daemon's release did not start.
RELEASE_MISMATCH = "ReleaseMismatch"
#: Release of this process: its version and its wire version. A daemon passes it to the engines that it starts.
OWN = (__version__, str(WIRE_VERSION))
#: Time limit for a process that prints the release, which takes a tenth of a second.
_LIMIT_S = 30.0


@dataclass(frozen=True)
class Installation:
    """Identity of the installed packages that every engine imports: it changes as one of them is installed again."""

    files: tuple[tuple[int, int, int] | None, ...]

    @classmethod
    def present(cls) -> Installation:
        """Return what an engine that is started now would import."""
        return cls(tuple(map(_identity, (shmserve.__file__, _TORCH))))


def _identity(path: str | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if found is not None else None


def _torch_file() -> str | None:
    """Return torch's first file, without importing it."""
    spec = find_spec("torch")
    return spec.origin if spec is not None else None


_TORCH = _torch_file()
#: What this process was started with.
_AT_START = Installation.present()


def mismatch(daemon: Sequence[str], engine: Sequence[str] = OWN) -> str | None:
    """Return why an `engine` cannot run under this `daemon`, for the operator; None if they are of one release.

    >>> mismatch(["0.1.0", "3"], ["0.2.0", "4"])
    'the daemon runs shmserve 0.1.0 (wire version 3), this engine is 0.2.0 (wire version 4): restart the service'
    """
    if [*daemon] == [*engine]:
        return None
    return f"the daemon runs shmserve {_words(daemon)}, this engine is {_words(engine)}: restart the service"


async def installed_mismatch() -> str | None:
    """Return the mismatch of an engine that would be started now, or None, without starting one."""
    if Installation.present() == _AT_START:
        return None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shmserve.daemon.ipc.release",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # as an engine's
        cwd="/",  # before Python 3.11 the working directory leads sys.path
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _LIMIT_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return mismatch(OWN, said.decode("utf-8", "replace").split())


def _words(release: Sequence[str]) -> str:
    if len(release) != 2:
        return "of an unknown release"
    return f"{release[0]} (wire version {release[1]})"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the daemon that asked was killed meanwhile
        os.write(sys.stdout.fileno(), " ".join(OWN).encode())
