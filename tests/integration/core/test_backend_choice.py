"""Choice between the native core and pure Python at the first import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY

_SUFFIX = ".so"
#: Without the finder of an editable installation, which would find the extension of this checkout.
_NO_EDITABLE = "import sys; sys.meta_path = [each for each in sys.meta_path if 'editable' not in repr(each).lower()]"


def chosen(*, code: str = "", package: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Return the output of a program that prints the backend, and imports `package` in place of the installed one."""
    environment = {name: value for name, value in os.environ.items() if name != "SHMSERVE_PURE"} | variables
    program = f"{_NO_EDITABLE}; {code}import shmserve.backend as backend; print(backend.BACKEND)"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=package if package is not None else REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A folder with this package as it is without an extension."""
    (tmp_path / "shmserve").mkdir()
    for path in (REPOSITORY / "shmserve").iterdir():
        if path.suffix != _SUFFIX:
            (tmp_path / "shmserve" / path.name).symlink_to(path)
    return tmp_path


def test_the_native_core_runs_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler here")

    found = chosen(PATH="")

    assert (found.stdout, found.stderr) == ("native\n", "")


def test_pure_python_runs_on_request() -> None:
    found = chosen(SHMSERVE_PURE="1")

    assert (found.stdout, found.stderr) == ("pure\n", "")


@pytest.mark.parametrize("variables", [{}, {"SHMSERVE_PURE": "0"}, {"SHMSERVE_PURE": ""}], ids=str)
def test_a_missing_extension_is_reported_once_with_the_remedy(unbuilt: Path, variables: dict[str, str]) -> None:
    found = chosen(package=unbuilt, code="import shmserve.ring, shmserve.client; ", **variables)

    assert found.stdout == "pure\n"
    assert found.stderr.count("RuntimeWarning") == 1
    for part in ("core was not built", "apt-get install gcc python3-dev", "set SHMSERVE_PURE=1 to choose pure Python"):
        assert part in found.stderr


def test_an_extension_that_cannot_be_loaded_is_reported_with_the_reason(unbuilt: Path) -> None:
    (unbuilt / f"shmserve/_core{_SUFFIX}").write_bytes(b"not a library")

    found = chosen(package=unbuilt)

    assert found.stdout == "pure\n"
    assert found.stderr.count("RuntimeWarning") == 1
    assert f"cannot be loaded ({unbuilt}/shmserve/_core{_SUFFIX}: " in found.stderr


@pytest.mark.parametrize("extension", [None, b"not a library"], ids=["missing", "broken"])
def test_nothing_is_reported_where_pure_python_was_chosen(unbuilt: Path, extension: bytes | None) -> None:
    if extension is not None:
        (unbuilt / f"shmserve/_core{_SUFFIX}").write_bytes(extension)

    found = chosen(package=unbuilt, SHMSERVE_PURE="1")

    assert (found.stdout, found.stderr) == ("pure\n", "")


@pytest.mark.parametrize("variables", [{}, {"SHMSERVE_PURE": "1"}], ids=str)
def test_pure_python_is_refused_on_a_processor_for_which_it_is_not_checked(
    unbuilt: Path, variables: dict[str, str]
) -> None:
    found = chosen(package=unbuilt, code="import platform; platform.machine = lambda: 'riscv64'; ", **variables)

    assert found.returncode == 1 and found.stdout == ""
    last = found.stderr.rstrip().splitlines()[-1]
    assert last.startswith("shmserve.fence.UnsupportedProcessor: ") and "this processor is riscv64." in last


def test_a_daemon_without_an_extension_warns_once_for_all_its_processes(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['shmserve._core'] = None")
    daemon = Daemon("echo")
    daemon.environment["SHMSERVE_PURE"] = "0"
    daemon.environment["PYTHONPATH"] = str(tmp_path)

    with daemon:
        assert daemon.status()["engine"]["backend"] == "pure"
        assert daemon.log.count("RuntimeWarning") == 1
        assert ", pure backend" in daemon.log


def test_the_native_core_runs_on_any_processor() -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler here")

    found = chosen(code="import platform; platform.machine = lambda: 'riscv64'; import shmserve.record_ring; ")

    assert (found.stdout, found.stderr) == ("native\n", "")
