"""Programs that the tests compile, each built once for all workers and all runs, until one of its inputs changes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.folders import REPOSITORY

FOLDER = REPOSITORY / "build/test-programs"
_HEADERS = {".h", ".hpp"}


def _inputs(command: Iterable[str]) -> Iterator[Path]:
    """The compiler, the files that a command names, and the headers beside these files and in the folders of -I."""
    for word in command:
        path = Path(word.removeprefix("-I"))
        if not path.is_absolute():
            continue
        folder = path if path.is_dir() else path.parent
        yield from (file for file in folder.rglob("*") if file.suffix in _HEADERS)
        if path.is_file():
            yield path


def _contents(command: list[str]) -> str:
    digest = hashlib.sha256(repr(command).encode())
    compiler = Path(shutil.which(command[0]) or command[0]).resolve()
    digest.update(f"{compiler} {compiler.stat().st_mtime_ns}".encode())
    for file in sorted({*_inputs(command)}):
        digest.update(f"{file} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})


def built(source: Path, command: list[str], suffix: str = "") -> Path:
    """Return what a compiler's command makes of a source, which the command names; "-o" and the place are added here.

    A source outside of the checkout is compiled beside it, each time.
    """
    if not source.is_relative_to(REPOSITORY):
        program = source.with_suffix(suffix)
        _run([*command, "-o", str(program)])
        return program
    name = hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    folder = FOLDER / f"{source.stem}-{name}"
    program, made, new = folder / (source.stem + suffix), folder / "contents", folder / "new"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        contents = _contents(command)
        if not (program.exists() and made.exists() and made.read_text() == contents):
            _run([*command, "-o", str(new)])
            new.rename(program)  # another run may execute the old one
            made.write_text(contents)
    return program
