"""C++ programs that are linked with libshmserve; every warning is an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.c_library import CHECKS, INCLUDE, checked_archive, library

#: Those that the header is compiled with, where they are installed.
COMPILERS = ("g++", "clang++")
STANDARDS = ("c++17", "c++20", "c++23")
STRICT = ("-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror")
_PACKAGES = {"g++": "g++", "clang++": "clang", "make": "make", "cmake": "cmake", "pkg-config": "pkg-config"}


def require(*programs: str) -> None:
    """Skip the test where one of these programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt-get install {_PACKAGES[program]})")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})


def compile_cpp(
    source: Path, folder: Path, *flags: str, compiler: str = "g++", standard: str = "c++17", checks: str = ""
) -> Path:
    """Compile and link a program, and further sources among the flags, with some of CHECKS or the shared library, which it finds where it was built."""
    require(compiler)
    program = folder / source.stem
    if checks:
        linked = [*CHECKS[checks], str(checked_archive(checks)), "-lrt", "-ldl", "-lm"]
    else:
        linked = [f"-L{library().parent}", "-lshmserve", f"-Wl,-rpath,{library().parent}"]
    command = [compiler, f"-std={standard}", *STRICT, *flags, f"-I{INCLUDE}", str(source), "-o", str(program)]
    _run([*command, *linked, "-pthread"])
    return program


def compile_object(source: Path, folder: Path, *flags: str, compiler: str = "g++", standard: str = "c++17") -> None:
    """Compile without linking."""
    require(compiler)
    to = folder / "object.o"
    _run([compiler, f"-std={standard}", *STRICT, *flags, f"-I{INCLUDE}", "-c", str(source), "-o", str(to)])
