"""What a process pays for the side that it uses: torch is the engine's alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.daemon_process import environment

_STATEMENT = "import json, sys; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after `statement`."""
    found = subprocess.run(
        [sys.executable, "-c", _STATEMENT.format(statement)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment(),
    )
    return {module.partition(".")[0] for module in json.loads(found.stdout)}


#: Of an editable installation's own machinery, and of compiled modules without a package.
_OURS = {"shmserve", "numpy", "posix_ipc"}
_NOT_A_PACKAGE = ("__editable__", "_distutils_hack", "__mp_main__")


def test_the_client_needs_numpy_posix_ipc_and_the_standard_library_alone() -> None:
    foreign = {
        name
        for name in loaded_by("import shmserve.client")
        if name not in sys.stdlib_module_names and not name.startswith(_NOT_A_PACKAGE)
    }

    assert foreign <= _OURS, foreign - _OURS
    assert foreign == _OURS


@pytest.mark.parametrize(
    "module",
    [
        "shmserve",
        "shmserve.client",
        "shmserve.client.admin.cli",
        "shmserve.daemon.main",
        "shmserve.daemon.supervisor",
        "shmserve.daemon.model_package",
        "shmserve.codec",
        "shmserve.channel",
    ],
)
def test_torch_is_the_engines_alone(module: str) -> None:
    loaded = loaded_by(f"import {module}")

    assert "torch" not in loaded
    assert "ml_dtypes" not in loaded


@pytest.mark.parametrize(
    ("module", "other"),
    [("shmserve.client", "shmserve.daemon"), ("shmserve.daemon.main", "shmserve.client")],
)
def test_the_two_sides_never_load_each_other(module: str, other: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print({other!r} in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment(),
    )

    assert found.stdout.strip() == "False"


def test_a_program_that_asks_for_json_does_not_load_what_draws_tables() -> None:
    assert not {"rich", "matplotlib"} & loaded_by("import shmserve.client.admin.cli")
