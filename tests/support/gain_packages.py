"""Model packages of the policy y = k * x, one for each k, and the versions that they become."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from shmserve.package_files import content_version
from tests.support.daemon_process import POLICIES


def gain_package(folder: Path, k: float, **settings: Any) -> Path:
    """A package that multiplies by `k`; the settings are those of tests/support/policies/gain."""
    path = folder / "-".join(["gain", str(k), *settings])
    path.mkdir(parents=True)
    for file in (POLICIES / "gain").iterdir():
        if file.is_file():
            shutil.copy(file, path)
    (path / "settings.json").write_text(json.dumps({"k": k, **settings}))
    return path


def gains(*packages: Path) -> str:
    """Which version must have multiplied by what, for tests/support/robots/gain_load.py."""
    found = {content_version(path): json.loads((path / "settings.json").read_text())["k"] for path in packages}
    return json.dumps(found)
