"""libshmserve as `make libshmserve` builds it, and C programs that are linked with it."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.built_programs import built
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


def _make(folder: Path, *arguments: str, makefile: str = "native/libshmserve.mk") -> None:
    """Build with the objects in a folder; one process at a time, as several workers may come here."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["make", "--silent", "--jobs=2", f"--directory={REPOSITORY}", f"--file={makefile}", f"BUILD={folder}"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([*command, *arguments], check=True, env={"PATH": os.environ["PATH"]}, stdout=subprocess.DEVNULL)


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


@functools.cache
def installed() -> Path:
    """Return the prefix that `make install-libshmserve PREFIX=...` has put the library in."""
    require_compiler()
    prefix = BUILD.with_name("libshmserve-installed")
    _make(BUILD, "install-libshmserve", f"PREFIX={prefix}", makefile="Makefile")
    return prefix


def compile_program(source: Path, *flags: str, checks: str = "") -> Path:
    """Compile a C program, with some of CHECKS or the shared library, which it finds where it was built. A warning is an error."""
    if checks:
        linked = [*CHECKS[checks], str(checked_archive(checks)), "-lrt", "-ldl"]
    else:
        linked = [f"-L{library().parent}", "-lshmserve", f"-Wl,-rpath,{library().parent}"]
    return built(source, ["gcc", *STRICT, *flags, f"-I{INCLUDE}", str(source), *linked, "-lm", "-pthread"])


def compile_traps() -> Path:
    """Compile the library that a program is preloaded with, and that traps allocations, locks and system calls."""
    source = SUPPORT / "c_programs/traps.c"
    return built(source, ["gcc", "-O1", "-Wall", "-shared", "-fPIC", str(source), "-ldl"], ".so")


#: Environment of a program that is compiled with the checks of threads.
THREAD_CHECKS = {"TSAN_OPTIONS": f"suppressions={SUPPORT / 'c_programs' / 'known_to_tsan'}"}
