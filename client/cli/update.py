"""Progress of a change of model, step by step."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shmserve.package_advice import advice_for_file, advice_for_url, is_url, looks_like_tar

from .wait_ready import amount

#: First bytes of zip, xz, zstd and bzip2: the daemon names the format.
_PACKED = (b"PK\x03\x04", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh")
#: Between two numbers in output that is not a terminal.
_REPORT_INTERVAL_S = 5.0


def open_package(path: Path) -> int:
    """Open a model package, a directory or a tar; the caller closes the descriptor.

    The daemon may be sandboxed: it gets the open package, never a path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        advice = f": {advice_for_url()}" if is_url(path) else ""
        raise FileNotFoundError(f"model package {path} does not exist{advice}") from error
    except PermissionError as error:
        raise PermissionError(f"model package {path} may not be read by uid {os.getuid()}") from error
    kind = os.fstat(descriptor).st_mode
    fault = None if stat.S_ISDIR(kind) else _file_fault(path, descriptor if stat.S_ISREG(kind) else None)
    if fault is not None:
        os.close(descriptor)
        raise ValueError(f"model package {path} {fault}")
    return descriptor


def _file_fault(path: Path, descriptor: int | None) -> str | None:
    """Return why the first bytes are not a tar's; None: the daemon checks further."""
    advice = None
    if descriptor is not None:
        start = os.pread(descriptor, 512, 0)
        advice = advice_for_file(path.name, start)
        if looks_like_tar(start) or path.suffix == ".tar" or (advice is None and start.startswith(_PACKED)):
            return None
    return f"is neither a directory nor a tar file{f': it is {advice}' if advice else ''}"


def name_of(path: Path) -> str:
    """Return the package's name for `versions`, also for '.' and 'model/..'."""
    return path.resolve().name or str(path)


def follow(
    replies: Iterator[dict[str, Any]], *, quiet: bool, report_interval_s: float = _REPORT_INTERVAL_S
) -> dict[str, Any]:
    """Print each step with its duration; return the result, with the steps: name, seconds, and bytes where it had some."""
    steps = _Steps(quiet, report_interval_s)
    try:
        for reply in replies:
            if reply["result"] is not None:
                steps.end(reply["elapsed_s"])
                return {**reply["result"], "steps": steps.ended}
            steps.go_on(reply["step"], reply["elapsed_s"])
            steps.tell(reply["detail"])
    except BaseException:
        steps.break_off()
        raise
    raise ConnectionError("the daemon ended its answer before the change was done")


class _Steps:
    """Prints one line for each step; the line ends with the step."""

    def __init__(self, quiet: bool, report_interval_s: float) -> None:
        self._quiet = quiet
        self._report_interval_s = report_interval_s
        self._step: str | None = None
        self._began_s = 0.0
        self._bytes = 0
        self._told = False
        self._told_s = time.monotonic()
        self.ended: list[dict[str, Any]] = []

    def go_on(self, step: str, elapsed_s: float) -> None:
        if step == self._step:
            return
        self.end(elapsed_s)
        self._step, self._began_s, self._bytes = step, elapsed_s, 0
        if not self._quiet:
            print(f"  {step:<10}", end="", flush=True)

    def tell(self, detail: dict[str, Any]) -> None:
        """Print how much of the package has arrived: in place on a terminal, elsewhere a percentage now and then."""
        done, of = detail.get("bytes"), detail.get("of")
        self._bytes = done or self._bytes
        if self._step is None or self._quiet or not done:
            return
        percent = f" {min(100, 100 * done // of)} %" if of else ""
        if sys.stdout.isatty():
            print(f"\r  {self._step:<10}{amount(done, of)}{percent}", end="\x1b[K", flush=True)
            self._told = True
        elif percent and time.monotonic() - self._told_s >= self._report_interval_s:
            print(percent, end="", flush=True)
            self._told_s = time.monotonic()

    def end(self, elapsed_s: float) -> None:
        if self._told and self._step is not None:
            print(f"\r  {self._step:<10}", end="\x1b[K")
        self._told = False
        if self._step is not None:
            seconds = round(elapsed_s - self._began_s, 4)
            self.ended.append(
                {"step": self._step, "seconds": seconds} | ({"bytes": self._bytes} if self._bytes else {})
            )
            if not self._quiet:
                print(f"{seconds:8.3f} s", flush=True)
        self._step = None

    def break_off(self) -> None:
        """End the line, for the error that follows."""
        if self._step is not None and not self._quiet:
            print(flush=True)
