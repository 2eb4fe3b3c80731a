"""Versions and hashes of the packages that develop, test and build shmserve: release/requirements/*.txt.

uv resolves each input for every Python that pyproject.toml names at once; a line's marker says which of them it is for.

PyTorch and its CUDA libraries are left out, because machines need different builds of them (CPU, a CUDA release, Jetson's
wheel): `make` installs the version of TORCH beside these files. Its other dependencies are in.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "release/requirements"

#: Each file and its input, in uv's words.
FILES = {
    "build.txt": ["release/requirements/build.in"],
    "release.txt": ["release/requirements/release.in"],
    "daemon.txt": ["pyproject.toml", "--extra", "daemon"],
    "openpi.txt": ["release/requirements/openpi.in", "--no-deps"],
    "dev.txt": ["pyproject.toml", "--extra", "dev", "release/requirements/build.in"],
}
_LEFT_OUT = ("torch", "triton", "nvidia-", "cuda-")
_HEADER = """\
# Written by `make lock` (release/lock.py). Install with pip install --require-hashes --no-deps -r; PyTorch is left out.
"""


def oldest_python() -> str:
    """Return the first Python of pyproject.toml's requires-python, such as '3.10'."""
    found = re.search(r'^requires-python = ">=(3\.\d+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit('lock: pyproject.toml has no line requires-python = ">=3.X"')
    return found[1]


def without_torch(resolved: str) -> str:
    """Remove the entries of PyTorch and of the libraries that only its CUDA builds need.

    >>> without_torch("numpy==2 \\\\\\n    --hash=a\\ntorch==2 \\\\\\n    --hash=b\\ntyping==1 \\\\\\n    --hash=c\\n")
    'numpy==2 \\\\\\n    --hash=a\\ntyping==1 \\\\\\n    --hash=c\\n'
    """
    entries = re.split(r"^(?=\w)", resolved, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not entry.startswith(_LEFT_OUT))


def main() -> None:
    torch = sys.argv[1]
    for name, sources in FILES.items():
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", oldest_python(), "--upgrade"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--constraints", "-", *sources]
        resolved = subprocess.run(command, cwd=ROOT, input=f"{torch}\n", capture_output=True, text=True, check=False)
        if resolved.returncode != 0:
            raise SystemExit(f"lock: uv cannot resolve {name}:\n{resolved.stderr}")
        (FOLDER / name).write_text(_HEADER + without_torch(resolved.stdout))


if __name__ == "__main__":
    main()
