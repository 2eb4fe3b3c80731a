"""Runs the GPU's tests or its benchmark with whatever Python here has torch: `make test-gpu bench-gpu`.

Installs nothing and needs no network. `.venv` is used if its torch finds a GPU, else the Python that runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PROBE = """
import importlib.util, json, sys
names = ["torch", "numpy", "click", "posix_ipc", "pytest"] + ([] if sys.version_info >= (3, 11) else ["tomli"])
missing = [name for name in names if importlib.util.find_spec(name) is None]
gpu = None
if "torch" not in missing:
    import torch
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
print(json.dumps([missing, gpu]))
"""
#: What has a stand-in of its own (tests/support/without_packages).
_REPLACED = {"posix_ipc"}
#: Files whose tests run on a GPU; those that need one are marked `gpu`.
_TESTS = (
    "tests/unit/engine/device/test_arena.py",
    "tests/unit/engine/device/test_device_parts.py",
    "tests/integration/device/test_device_serving.py",
    "tests/gpu/test_gpu.py",
)


def probe(python: str) -> tuple[list[str], str | None]:
    """Which packages this Python lacks, and the GPU that its torch finds."""
    found = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return [f"(it does not start: {found.stderr.strip()[-200:]})"], None
    missing, gpu = json.loads(found.stdout.splitlines()[-1])
    return missing, gpu


def chosen() -> tuple[str, list[str], str | None]:
    """The Python to use, what it lacks, and its GPU."""
    own = ROOT / ".venv" / "bin" / "python"
    candidates = [*([str(own)] if own.exists() else []), sys.executable]
    probed = [(python, *probe(python)) for python in candidates]
    return next((found for found in probed if found[2] is not None), probed[-1] if len(probed) == 1 else probed[0])


def main() -> int:
    what, *arguments = sys.argv[1:]
    python, missing, gpu = chosen()
    needed = [name for name in missing if name not in _REPLACED and not (name == "pytest" and what == "bench")]
    if needed:
        print(f"{python} lacks {', '.join(needed)}: install them, or name another Python (make {what}-gpu PYTHON=...)")
        return 2
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    for name in set(missing) & _REPLACED:
        print(f"{python} has no {name}: tests/support/without_packages stands in for it")
        path.insert(1, str(ROOT / "tests" / "support" / "without_packages"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    print(f"{python}: {gpu or 'no GPU'}", flush=True)
    if what == "bench":
        return subprocess.call([python, "-m", "bench.gpu", *arguments], cwd=ROOT, env=environment)
    files = [file for file in _TESTS if (ROOT / file).exists()]
    # With -rs, so that a test that does not run says why.
    plain = subprocess.call([python, "-m", "pytest", "-m", "", "-rs", *files, *arguments], cwd=ROOT, env=environment)
    if gpu is None or plain != 0:
        return plain
    # The service's own tests, with the device in the place of the CPU.
    service = [
        "tests/integration/requests/test_staging.py",
        "tests/integration/requests/test_batching.py",
        "tests/integration/requests/test_growing.py",
        "tests/integration/requests/test_pipelining.py",
    ]
    environment["SHMSERVE_TEST_DEVICE"] = "cuda:0"
    return subprocess.call([python, "-m", "pytest", "-m", "", *service, *arguments], cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main())
