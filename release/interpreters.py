"""The CPython interpreters of this machine that wheels are built for, and the reason for each one that is missing."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_ABOUT = """
import os, sys, sysconfig
print(sys.implementation.name, "%d.%d" % sys.version_info[:2], sys.executable)
print(os.path.join(sysconfig.get_path("include"), "Python.h"))
"""


def versions() -> list[str]:
    """Return the Pythons that pyproject.toml names, such as ['3.10', '3.11']."""
    return re.findall(r"Programming Language :: Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text("utf-8"))


def examine(command: str, version: str) -> str | None:
    """Return the executable behind `command`; None unless it is CPython `version` with its headers."""
    try:
        said = subprocess.run([command, "-c", _ABOUT], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # a shim of a version that is not installed
        return None
    about, headers = said.splitlines()
    name, found, executable = about.split(" ", 2)
    return executable if (name, found) == ("cpython", version) and os.path.exists(headers) else None


def find(version: str) -> str | None:
    """Return the executable of CPython `version`, from PATH or pyenv's versions; None where there is none with headers."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"))]
    return next((found for command in candidates if command and (found := examine(command, version))), None)
