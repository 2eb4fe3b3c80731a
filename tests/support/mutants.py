"""Planted bugs of the GPU path, and the tests that find them: `python -m tests.support.mutants [NAME ...] [--table]`.

Each bug is planted in a copy of the checkout, in which its tests must then fail. `--table` prints the table of
docs/development/gpu-mutants.md instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.folders import REPOSITORY
from tests.support.planted_bugs import MUTANTS, Mutant

_DEVICE = "daemon/engine/device"


def table() -> str:
    """Return the bugs and their tests as Markdown."""
    lines = ["| | bug | in | found by |", "|---|---|---|---|"]
    lines += [
        f"| {each.name} | {each.bug} | `{each.file}` | `{Path(each.tests).name}::{each.test}` |" for each in MUTANTS
    ]
    return "\n".join(lines)


def found(mutant: Mutant, copy: Path) -> bool:
    """Plant the bug in the copy, and return whether its test fails."""
    path = copy / _DEVICE / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: its place is there {text.count(mutant.old)} times"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-x",
            "-p",
            "no:cacheprovider",
            mutant.tests,
            "-k",
            mutant.test,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    # 1: tests failed. Others are not found, or did not run.
    assert ran.returncode in (0, 1), ran.stdout[-3000:] + ran.stderr[-1000:]
    return ran.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of some of them")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return 0
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    left = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(
            ".venv*", ".git", "build", "__pycache__", ".mypy_cache", ".ruff_cache", "results"
        )
        shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=skipped)
        for mutant in chosen:
            is_found = found(mutant, copy)
            print(f"{mutant.name} {'found' if is_found else 'NOT FOUND'}: {mutant.bug}", flush=True)
            left += [] if is_found else [mutant.name]
    print(f"{len(chosen) - len(left)} of {len(chosen)} found" + (f"; not: {', '.join(left)}" if left else ""))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
