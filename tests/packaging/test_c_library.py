"""libshmserve as a user installs it: found by pkg-config and by CMake, and with the symbols of its header alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.c_library import INCLUDE, STRICT, installed, require_compiler
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY

EXAMPLE = REPOSITORY / "examples/c_minimal"


@pytest.fixture(scope="session")
def prefix() -> Path:
    return installed()


def declared() -> set[str]:
    """The functions of the header."""
    return set(re.findall(r"^[\w ].*?\b\*?(shmserve_\w+)\(", (INCLUDE / "shmserve.h").read_text(), re.MULTILINE))


def symbols(file: Path, *options: str) -> set[str]:
    said = subprocess.run(["nm", "--defined-only", *options, file], capture_output=True, text=True, check=True).stdout
    return {name.partition("@")[0] for kind, name in re.findall(r" ([A-Z]) (\S+)", said) if kind != "A"}


def test_the_libraries_have_the_functions_of_the_header_and_no_other_symbol(prefix: Path) -> None:
    assert len(declared()) == 30
    assert symbols(prefix / "lib/libshmserve.so", "-D") == declared()
    assert symbols(prefix / "lib/libshmserve.a") == declared()


def test_the_shared_library_needs_the_c_library_alone(prefix: Path) -> None:
    said = subprocess.run(["objdump", "-p", prefix / "lib/libshmserve.so"], capture_output=True, text=True, check=True)

    assert "SONAME               libshmserve.so.1\n" in said.stdout
    needed = {name for name in re.findall(r"NEEDED +(\S+)", said.stdout) if not name.startswith("ld-linux")}
    assert needed <= {"libc.so.6", "libm.so.6", "librt.so.1", "libpthread.so.0", "libdl.so.2"}


def test_the_header_is_c11_and_cpp17_without_a_warning(tmp_path: Path) -> None:
    require_compiler()
    (tmp_path / "only.c").write_text("#include <shmserve.h>\nint main(void) { return shmserve_abi(); }\n")
    subprocess.run(["gcc", *STRICT, f"-I{INCLUDE}", "-c", "only.c"], cwd=tmp_path, check=True)
    if shutil.which("g++") is None:
        pytest.skip("no g++ here (apt-get install g++)")
    strict = ["-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
    subprocess.run(["g++", *strict, "-x", "c++", "-c", "only.c"], cwd=tmp_path, check=True)


def moves(program: Path, prefix: Path, daemon: Daemon) -> str:
    variables = {"SHMSERVE_RUNTIME_DIR": str(daemon.runtime_dir), "LD_LIBRARY_PATH": str(prefix / "lib")}
    said = subprocess.run([program], env={**environment(), **variables}, capture_output=True, text=True, check=True)
    return said.stdout


def test_the_example_is_built_with_pkg_config(prefix: Path, tmp_path: Path, minimal: Daemon) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config here (apt-get install pkg-config)")
    variables = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    command = f"gcc {EXAMPLE}/robot.c $(pkg-config --cflags --libs shmserve) -lm -o robot"
    subprocess.run(command, shell=True, cwd=tmp_path, env=variables, check=True)

    assert moves(tmp_path / "robot", prefix, minimal) == "the goal is missed by 0.0000\n"


@pytest.mark.parametrize("target", ["shmserve::shmserve", "shmserve::static"])
def test_the_example_is_built_with_cmake(prefix: Path, tmp_path: Path, minimal: Daemon, target: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here (apt-get install cmake)")
    for file in EXAMPLE.iterdir():
        text = file.read_text()
        (tmp_path / file.name).write_text(text.replace("shmserve::shmserve", target))
    for arguments in (["-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}"], ["--build", "build"]):
        subprocess.run(["cmake", *arguments], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    assert moves(tmp_path / "build/robot", prefix, minimal) == "the goal is missed by 0.0000\n"


def test_the_program_of_the_guide_compiles_and_moves(prefix: Path, tmp_path: Path, minimal: Daemon) -> None:
    page = (REPOSITORY / "docs/how-to/c-client.md").read_text()
    (program,) = (block for block in re.findall(r"```c\n(.*?)```", page, re.DOTALL) if "int main" in block)
    (tmp_path / "robot.c").write_text(program)
    command = ["gcc", *STRICT, f"-I{prefix}/include", "robot.c", f"-L{prefix}/lib", "-lshmserve", "-o", "robot"]
    subprocess.run(command, cwd=tmp_path, check=True)

    assert re.fullmatch(r"0\.(49|50)\d+\n", moves(tmp_path / "robot", prefix, minimal))
