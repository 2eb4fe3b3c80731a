"""docs/how-to/c-client.md: its C++ programs compile, the complete one as the page says, and it moves the robot of examples/minimal."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.c_library import installed
from tests.support.cpp_library import check_cpp, compile_cpp, require
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY
from tests.support.followed_page import snippets, write

PAGE = REPOSITORY / "docs/how-to/c-client.md"
PROGRAMS = [snippet.text for snippet in snippets(PAGE) if snippet.language == "cpp"]


def test_the_complete_program_is_built_and_moves_the_robot(tmp_path: Path, minimal: Daemon) -> None:
    require("g++", "pkg-config")
    prefix = installed()
    variables = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    (program,) = (program for program in PROGRAMS if "int main" in program and "options.robot" not in program)
    (tmp_path / "robot.cpp").write_text(program)
    (command,) = re.findall(r"^ {4}(c\+\+ .*)$", PAGE.read_text(), re.MULTILINE)
    subprocess.run(command, shell=True, cwd=tmp_path, env=variables, check=True)

    paths = {"SHMSERVE_RUNTIME_DIR": str(minimal.runtime_dir), "LD_LIBRARY_PATH": str(prefix / "lib")}
    moved = subprocess.run(
        [tmp_path / "robot"], env={**environment(), **paths}, capture_output=True, text=True, check=True
    )

    assert re.fullmatch(r"0\.(49|50)\d+\n", moved.stdout), moved.stdout + moved.stderr


def test_the_robot_that_states_its_units_does_what_the_page_says(
    tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    (program,) = (program for program in PROGRAMS if "options.robot" in program)
    (tmp_path / "units.cpp").write_text(program)
    for snippet in snippets(REPOSITORY / "docs/how-to/client.md"):
        if snippet.file in ("arm/policy.py", "arm/model.toml"):
            write(snippet, tmp_path)
    daemon = start_daemon(tmp_path / "arm", name="arm")

    said = subprocess.run(
        [compile_cpp(tmp_path / "units.cpp")],
        env={**environment(), "SHMSERVE_RUNTIME_DIR": str(daemon.runtime_dir)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert (
        "mean different things by their numbers" in said
        and "action.actions.units[0] (shoulder_pan): deg -> rad" in said
    )
    assert said.splitlines()[-1].split() == ["0.10", "-0.50", "0.80", "0.00", "0.20", "30.00"]


def test_the_lines_on_action_chunks_compile(tmp_path: Path) -> None:
    (lines,) = (program for program in PROGRAMS if "ChunkOptions" in program)
    (tmp_path / "lines.cpp").write_text(
        "#include <shmserve_action_chunks.hpp>\n"
        "void apply(shmserve::span<const float> action);\n"
        "void play(shmserve::Client client, shmserve::Schema schema, const float *joints);\n"
        f"void play(shmserve::Client client, shmserve::Schema schema, const float *joints)\n{{\n{lines}}}\n"
    )

    check_cpp(tmp_path / "lines.cpp")


def test_the_page_names_every_class_that_the_header_has() -> None:
    header = (REPOSITORY / "native/include/shmserve.hpp").read_text()
    classes = set(re.findall(r"^(?:template <class T> )?class (\w+) {", header, re.MULTILINE))

    assert classes == {"Client", "Schema", "Loan", "Pending", "Reply", "Field"}
    assert classes <= set(re.findall(r"^\| `(\w+)(?:<T>)?` \|", PAGE.read_text(), re.MULTILINE))
