"""The imports that reading a package takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A package that lacks nothing but a manifest and a model."""
    path = tmp_path / "lift"
    path.mkdir()
    for name in ("example.npz", "expected.npz", "weights.safetensors"):
        (path / name).write_bytes(b"not looked at here")
    return path


def test_a_package_is_read_without_torch_and_without_its_code(directory: Path) -> None:
    (directory / "policy.py").write_text("raise SystemExit('the code of the package ran')")
    program = (
        "import sys; from pathlib import Path; from shmserve.daemon.packages.package import ModelPackage; "
        "print(ModelPackage.read(Path(sys.argv[1])).format, 'torch' in sys.modules)"
    )

    output = subprocess.run(
        [sys.executable, "-c", program, directory], capture_output=True, text=True, check=True, timeout=60
    )

    assert output.stdout.split() == ["python", "False"]
