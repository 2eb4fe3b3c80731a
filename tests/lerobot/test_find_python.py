"""`make test-lerobot` finds a Python, or says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FIND = Path(__file__).parent / "find_python.py"


def found(python: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LEROBOT_PYTHON": python}
    return subprocess.run([sys.executable, FIND], env=environment, capture_output=True, text=True, check=False)


def test_a_python_that_is_not_there_is_named() -> None:
    result = found("/absent/python3.12")

    assert result.returncode == 2 and not result.stdout
    assert "/absent/python3.12: not found" in result.stderr
    assert "make test-lerobot LEROBOT_PYTHON=" in result.stderr


def test_a_python_of_another_version_is_named_with_its_version(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3 9\n")
    python.chmod(0o755)

    assert f"{python}: is Python 3.9" in found(str(python)).stderr


def test_a_python_that_fits_is_printed(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3 12\n")
    python.chmod(0o755)

    assert found(str(python)).stdout.strip() == str(python)
