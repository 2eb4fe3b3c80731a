"""The choice between the native core and the Python beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


def test_it_is_built_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler here")

    found = subprocess.run(
        [sys.executable, "-c", "import shmserve.backend as backend; print(backend.NATIVE)"],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout == "True\n"


def test_the_native_backend_is_disabled_on_request() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import shmserve.backend as backend; print(backend.NATIVE)"],
        env={"SHMSERVE_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout == "False\n"
