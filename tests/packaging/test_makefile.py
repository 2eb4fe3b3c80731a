"""The choice of the backend by the Makefile, on machines with and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY

MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")

#: Targets that print the variable as their commands see it, and whether an installation is due.
_PROBE = """
include Makefile
probe:
\t@echo "pure=$$SHMSERVE_PURE missing=$(NO_CORE)"
probe-twice: probe
\t@$(MAKE) --no-print-directory probe
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile with the probes, beside an empty package, and a folder for programs."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "GNUmakefile").write_text(_PROBE)
    (tmp_path / "shmserve").mkdir()
    (tmp_path / "bin").mkdir()
    return tmp_path


def made(checkout: Path, target: str, variables: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines that `make` prints with nothing but `bin` in PATH."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SHMSERVE_PURE", "CC")}
    environment = {**kept, "PATH": str(checkout / "bin"), **(variables or {})}
    command = [str(MAKE), "--no-print-directory", target, f"PYTHON={sys.executable}"]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize("target", ["probe", "probe-twice"])
def test_without_a_compiler_everything_runs_in_pure_python_and_one_line_reports_it(checkout: Path, target: str) -> None:
    notice, *probes = made(checkout, target)

    assert "SHMSERVE_PURE=1" in notice and "apt-get install gcc python3-dev" in notice
    assert set(probes) == {"pure=1 missing="}


def test_with_a_compiler_the_native_core_is_built(checkout: Path) -> None:
    compiler = checkout / "bin/some-cc"
    compiler.touch(mode=0o755)

    assert made(checkout, "probe", {"CC": "some-cc -pthread"}) == ["pure= missing=.venv/no-core"]


def test_a_native_core_that_was_built_is_used_without_a_compiler(checkout: Path) -> None:
    (checkout / "shmserve/_core.cpython-311-x86_64-linux-gnu.so").touch()

    assert made(checkout, "probe") == ["pure= missing="]


def test_pure_python_can_be_chosen(checkout: Path) -> None:
    assert made(checkout, "probe", {"SHMSERVE_PURE": "1"}) == ["pure=1 missing="]


@pytest.mark.parametrize(("core", "is_due"), [(False, True), (True, False)], ids=["without a core", "with a core"])
def test_an_environment_without_a_native_core_is_made_again_once_there_is_a_compiler(
    checkout: Path, core: bool, is_due: bool
) -> None:
    for name in ("pyproject.toml", "setup.py", "bin/some-cc"):
        (checkout / name).touch(mode=0o755)
    if core:
        (checkout / "shmserve/_core.cpython-311-x86_64-linux-gnu.so").touch()
    (checkout / ".venv").mkdir()
    (checkout / ".venv/installed").touch()

    lines = made(checkout, "demo", {"CC": "some-cc", "MAKEFLAGS": "n"})

    assert any("pip install" in line for line in lines) is is_due


@pytest.mark.parametrize("locked", [False, True], ids=["by default", "LOCKED=1"])
def test_a_lock_that_cannot_be_installed_is_said_and_is_an_error_where_it_must_hold(
    checkout: Path, locked: bool
) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py"):
        (checkout / name).touch()
    pip = checkout / ".venv/bin/pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {checkout}/asked\ncase "$*" in *--require-hashes*) exit 1;; esac\n')
    interpreters = [checkout / "bin/python", checkout / ".venv/bin/python"]
    for interpreter in interpreters:
        interpreter.write_text("#!/bin/sh\n")
    for name in ("touch", "sh"):
        (checkout / "bin" / name).symlink_to(shutil.which(name) or name)
    for program in (pip, *interpreters):
        program.chmod(0o755)

    command = [str(MAKE), ".venv/installed", "PYTHON=python", "SHMSERVE_PURE=1", *(["LOCKED=1"] if locked else [])]
    environment = {"PATH": str(checkout / "bin")}
    ran = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)

    asked = (checkout / "asked").read_text()
    assert "--require-hashes --no-deps -r release/requirements/dev.txt" in asked
    assert (ran.returncode == 0) is not locked, ran.stdout + ran.stderr
    assert ("dev.txt cannot be installed here: pip chooses other versions. LOCKED=1" in ran.stdout) is not locked
    assert ("-e .[dev]" in asked) is not locked
