"""Comparison of two builds of one commit, made in different folders: the bytes of the wheels and of the source distribution.

python -m release.reproduce [the options of release.wheels but --out]
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from release.source import ROOT, resolve


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def main() -> None:
    found = []
    commit = ["--commit", resolve("HEAD")]
    with tempfile.TemporaryDirectory(prefix="shmserve-twice-") as name:
        for folder in ("first", "another folder"):
            out, work = Path(name) / folder / "dist", Path(name) / folder / "work"
            work.mkdir(parents=True)
            command = [sys.executable, "-m", "release.wheels", *commit, *sys.argv[1:], "--out", str(out)]
            subprocess.run(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(work)}, check=True)
            found.append(sums(out))
    first, second = found
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if different:
        raise SystemExit("reproduce: these differ between two builds of one commit: " + ", ".join(different))
    print(f"{len(first)} files, the same bytes twice")


if __name__ == "__main__":
    main()
