"""Tells the steps of a change of model while it goes on."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def open_package(path: Path) -> int:
    """A descriptor of a model package, a directory or a tar; the caller closes it.

    The daemon may be sandboxed: it gets the open package, never a path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model package {path} does not exist") from error
    except PermissionError as error:
        raise PermissionError(f"model package {path} may not be read by uid {os.getuid()}") from error
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        os.close(descriptor)
        raise ValueError(f"model package {path} is neither a directory nor a tar file")
    return descriptor


def follow(replies: Iterator[dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Print each step with the time it took, and return the result."""
    step, began_s = None, 0.0
    for reply in replies:
        if reply["result"] is not None:
            if not quiet:
                _finish(step, reply["elapsed_s"] - began_s)
            result: dict[str, Any] = reply["result"]
            return result
        if reply["step"] != step:
            if not quiet:
                _finish(step, reply["elapsed_s"] - began_s)
                print(f"  {reply['step']:<10}", end="", flush=True)
            step, began_s = reply["step"], reply["elapsed_s"]
    raise ConnectionError("the daemon ended its answer before the change was done")


def _finish(step: str | None, took_s: float) -> None:
    if step is not None:
        print(f"{took_s:8.3f} s", flush=True)


def end_line() -> None:
    """A step that failed ends its line before the error is told."""
    if sys.stdout.isatty():
        print()
