"""Prints a Python that LeRobot accepts (3.12 or 3.13), or says what is missing: for `make test-lerobot`.

It tries LEROBOT_PYTHON alone if that is set, else the Pythons on PATH and those of pyenv and uv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST, NEWEST = (3, 12), (3, 13)
#: Modules of the standard library that a Python built without their headers lacks, and that LeRobot's packages import.
_MODULES = ("ctypes", "lzma", "sqlite3", "ssl", "venv")
_PROBE = f"import sys, {', '.join(_MODULES)}; print(*sys.version_info[:2])"


def candidates() -> Iterator[str]:
    """Yield the Pythons to try, the preferred ones first."""
    if chosen := os.environ.get("LEROBOT_PYTHON"):
        yield chosen
        return
    yield from ("python3.12", "python3.13", "python3")
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    roots.append(Path.home() / ".local" / "share" / "uv" / "python")
    for root in roots:
        for minor in range(OLDEST[1], NEWEST[1] + 1):
            yield from map(str, sorted(root.glob(f"*3.{minor}*/bin/python3"), reverse=True))


def problem_of(python: str) -> str | None:
    """Return why LeRobot cannot run with this Python, None if it can."""
    if shutil.which(python) is None:
        return "not found"
    probed = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probed.returncode != 0:
        return (probed.stderr.strip().splitlines() or ["it does not start"])[-1]
    major, minor = map(int, probed.stdout.split())
    return None if OLDEST <= (major, minor) <= NEWEST else f"is Python {major}.{minor}"


def main() -> int:
    problems = []
    for python in candidates():
        problem = problem_of(python)
        if problem is None:
            print(shutil.which(python))
            return 0
        problems.append(f"  {python}: {problem}")
    print("LeRobot 0.6 needs Python 3.12 or 3.13, and none was found:", *problems, sep="\n", file=sys.stderr)
    print("Install one, or name it: make test-lerobot LEROBOT_PYTHON=/path/to/python3.12", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
