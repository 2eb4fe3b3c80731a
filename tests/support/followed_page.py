"""A page of the documentation as a reader follows it: its files written, its shell snippets run in their order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support import watchdog
from tests.support.daemon_process import environment

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+\.(?:py|toml))\n")
_LIMIT_S = 120.0


class Snippet(NamedTuple):
    """One fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the first line says it is."""
        first = _FILE.match(self.text)
        return first[1] if first else None


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page that name a language, in their order."""
    return [Snippet(*found) for found in _BLOCK.findall(page.read_text("utf-8"))]


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder for a page to be followed in, with a short name: the path of a Unix socket has room for 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="shmserve-page-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def follow(page: list[Snippet], folder: Path) -> list[str]:
    """Write every named file and run every `sh` snippet there; what each run printed."""
    outputs = []
    for snippet in page:
        write(snippet, folder)
        if snippet.language == "sh":
            outputs.append(run(snippet.text, folder))
    return outputs


def write(snippet: Snippet, folder: Path) -> None:
    """Write the snippet's file, if it is one."""
    if snippet.file is not None:
        (folder / snippet.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / snippet.file).write_text(snippet.text)


def run(script: str, folder: Path) -> str:
    """What a shell prints that runs the script in `folder` and stops at its first error; nothing of it is left.

    First what goes to standard output, then errors and logs: a daemon's line must not stand in the middle of a program's.
    """
    settings = {
        **environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHMSERVE_RUNTIME_DIR": str(folder / "r"),
        "SHMSERVE_STATE_DIR": str(folder / "s"),
        "COLUMNS": "200",
    }
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=settings,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    watchdog.watch(shell)
    try:
        output, errors = shell.communicate(timeout=_LIMIT_S)
    finally:
        watchdog.reap(shell)
    assert shell.returncode == 0, f"{script}\n{output}\n{errors}"
    return output + errors
