"""What a process pays for the side that it uses: torch is the engine's alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon_process import Daemon, environment

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
        for name in loaded_by("from shmserve.client import *")
        if name not in sys.stdlib_module_names and not name.startswith(_NOT_A_PACKAGE)
    }

    assert foreign <= _OURS, foreign - _OURS
    assert foreign == _OURS


@pytest.mark.fault("T60")
@pytest.mark.parametrize(
    "module",
    [
        "shmserve",
        "shmserve.client",
        "shmserve.client.cli.main",
        "shmserve.daemon.main",
        "shmserve.daemon.supervisor.supervisor",
        "shmserve.daemon.packages.package",
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


def test_an_operator_s_command_loads_what_it_needs_alone(echo: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "loaded.json"
    statement = (
        "import atexit, json, sys; from shmserve.client.cli.main import main; "
        f"atexit.register(lambda: open({str(file)!r}, 'w').write(json.dumps(sorted(sys.modules)))); "
        f"sys.argv = ['shmserve-admin', '--name', {echo.name!r}, '--runtime-dir', {str(echo.runtime_dir)!r}, "
        "'--json', 'status']; main()"
    )
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=60, env=environment(), capture_output=True)

    loaded = set(json.loads(file.read_text()))
    heavy = {
        "asyncio",
        "concurrent.futures",
        "multiprocessing",
        "numpy",
        "posix_ipc",
        "rich",
        "safetensors",
        "tarfile",
        "torch",
    }
    assert not heavy & loaded, heavy & loaded
    assert "shmserve.varlink_connection" in loaded, "the command ran"
    assert {name for name in loaded if name.startswith("shmserve.daemon")} == set()


def test_every_export_of_the_client_package_exists() -> None:
    import shmserve.client

    for name in shmserve.client.__all__:
        assert getattr(shmserve.client, name).__name__ == name
    assert set(shmserve.client.__all__) <= set(dir(shmserve.client))
    with pytest.raises(AttributeError, match="no attribute 'Robot'"):
        shmserve.client.Robot  # noqa: B018


def test_a_program_that_asks_for_json_does_not_load_what_draws_tables() -> None:
    assert not {"rich", "matplotlib"} & loaded_by("import shmserve.client.cli.main")


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("dir(shmserve)", []),
        ("shmserve.RequestTimeout", ["shmserve.client"]),
        ("shmserve.ShmClient", ["shmserve.client", "numpy"]),
    ],
)
def test_the_package_loads_its_client_with_the_first_use_of_a_name(statement: str, loaded: list[str]) -> None:
    program = f"import sys, shmserve; {statement}; print([n for n in ('shmserve.client', 'numpy') if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment()
    )

    assert found.stdout.strip() == str(loaded)
