"""Unpacks the tar of a model package as a daemon would that is sent one: in its own limited process, member by member."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from shmserve.errors import ModelPackageError


def unpack(tar: Path, folder: Path) -> Path:
    """The package's directory, below the new `folder`; raises ModelPackageError, or OSError."""
    folder.mkdir(mode=0o700)
    with open(tar, "rb") as source:
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "shmserve.daemon.store.intake", str(source.fileno()), str(target), "{}"],
                pass_fds=(source.fileno(), target),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                check=False,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                cwd="/",  # before Python 3.11 the working directory leads sys.path
            )
        finally:
            os.close(target)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    last = events[-1] if events else {}
    if last.get("event") != "done":
        reason = last.get("reason", f"the process that reads it ended with status {done.returncode}")
        raise ModelPackageError(f"model package {tar}: {reason}")
    return folder / str(last["root"])
