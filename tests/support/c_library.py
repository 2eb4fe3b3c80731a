"""libshmserve as `make libshmserve` builds it, and C programs that are linked with it."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY, SUPPORT

BUILD = REPOSITORY / "build/libshmserve"
INCLUDE = REPOSITORY / "native/include"
STRICT = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-pedantic", "-Werror")
#: gcc's checks: of addresses and undefined behaviour, and of threads.
CHECKS = {
    "addresses": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
    "threads": ("-fsanitize=thread",),
}


def require_compiler() -> None:
    """Skip the test where nothing can be compiled."""
    for program in ("gcc", "make", "objcopy"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt-get install gcc make binutils)")


def _make(folder: Path, *arguments: str) -> None:
    """Build into a folder; one process at a time, as several workers may come here."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["make", "--silent", "-f", str(REPOSITORY / "native/libshmserve.mk"), f"BUILD={folder}", *arguments]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]}, stdout=subprocess.DEVNULL)


@functools.cache
def library() -> Path:
    """Return the shared library."""
    require_compiler()
    _make(BUILD)
    return BUILD / "libshmserve.so.1"


@functools.cache
def checked_archive(checks: str) -> Path:
    """Return the static library with these checks."""
    require_compiler()
    folder = BUILD.with_name(f"libshmserve-{checks}")
    _make(folder, f"CFLAGS=-O1 -g {' '.join(CHECKS[checks])}", f"{folder}/libshmserve.a")
    return folder / "libshmserve.a"


def compile_program(source: Path, folder: Path, *flags: str, checks: str = "") -> Path:
    """Compile a C program, with some of CHECKS or the shared library, which it finds where it was built. A warning is an error."""
    program = folder / source.stem
    if checks:
        linked = [*CHECKS[checks], str(checked_archive(checks)), "-lrt", "-ldl"]
    else:
        linked = [f"-L{library().parent}", "-lshmserve", f"-Wl,-rpath,{library().parent}"]
    command = ["gcc", *STRICT, *flags, f"-I{INCLUDE}", str(source), "-o", str(program), *linked, "-lm", "-pthread"]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})
    return program


#: Environment of a program that is compiled with the checks of threads.
THREAD_CHECKS = {"TSAN_OPTIONS": f"suppressions={SUPPORT / 'c_programs' / 'known_to_tsan'}"}
