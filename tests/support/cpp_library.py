"""C++ programs that are linked with libshmserve; every warning is an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.built_programs import built
from tests.support.c_library import CHECKS, INCLUDE, checked_archive, library

#: Those that the header is compiled with, where they are installed.
COMPILERS = ("g++", "clang++")
#: The last is C++23, by the name that older compilers know as well.
STANDARDS = ("c++17", "c++20", "c++2b")
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror")
_PACKAGES = {"g++": "g++", "clang++": "clang", "make": "make", "cmake": "cmake", "pkg-config": "pkg-config"}


def require(*programs: str) -> None:
    """Skip the test where one of these programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt-get install {_PACKAGES[program]})")


def compile_cpp(source: Path, *flags: str, compiler: str = "g++", standard: str = "c++17", checks: str = "") -> Path:
    """Compile and link a program, and further sources among the flags, with some of CHECKS or the shared library, which it finds where it was built."""
    require(compiler)
    if checks:
        # gcc needs twice as long with -O1.
        compiled = ["-O0", "-g", *CHECKS[checks]]
        linked = [str(checked_archive(checks)), "-lrt", "-ldl", "-lm"]
    else:
        compiled = ["-O1"]
        linked = [f"-L{library().parent}", "-lshmserve", f"-Wl,-rpath,{library().parent}"]
    sources = [f"-I{INCLUDE}", *flags, str(source)]
    command = [compiler, f"-std={standard}", *STRICT, *compiled, *sources, *linked, "-pthread"]
    return built(source, command)


def check_cpp(source: Path, *flags: str, compiler: str = "g++", standard: str = "c++17") -> None:
    """Compile a source without making anything of it; a warning is an error."""
    require(compiler)
    command = [compiler, f"-std={standard}", *STRICT, "-fsyntax-only", *flags, f"-I{INCLUDE}", str(source)]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})
