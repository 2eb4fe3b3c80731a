"""A tar that was packed by tar, as an update and a start take it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shmserve.client.cli.update import open_package
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError


@pytest.mark.parametrize("packing", ["-cf", "-czf"])
def test_an_update_accepts_a_tar_and_a_start_explains_how_to_use_it(packing: str, tmp_path: Path) -> None:
    (tmp_path / "policy.py").touch()
    subprocess.run(["tar", packing, tmp_path / "x", "-C", tmp_path, "policy.py"], check=True)

    os.close(open_package(tmp_path / "x"))
    with pytest.raises(ModelPackageError, match=r"is a tar: unpack it .* update-model"):
        ModelPackage.read(tmp_path / "x")
