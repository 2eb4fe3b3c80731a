"""What is published: a wheel made from the source distribution, installed where nothing of this checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY

ROOT = REPOSITORY
#: All that `pip install shmserve` brings: its dependencies, by the files that a client's import needs.
_DEPENDENCIES = ("numpy", "posix_ipc")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's files, without what was built in it."""
    source = tmp_path_factory.mktemp("source") / "shmserve"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            path.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            path.write_bytes((ROOT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: a source distribution of this checkout, and from that the wheel."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source], capture_output=True, check=True
    )
    assert len(list(target.glob("*.tar.gz"))) == 1
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and its dependencies, and no torch."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    link_dependencies(site)
    return site


def link_dependencies(site: Path) -> None:
    for name in _DEPENDENCIES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        (site / source.name).symlink_to(source)
        libraries = source.with_name(f"{name}.libs")
        if libraries.is_dir():  # which numpy's wheel keeps beside it
            (site / libraries.name).symlink_to(libraries)


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python with the standard library and `site` alone."""
    start = f"import sys; sys.path.insert(0, {str(site)!r}); "
    return subprocess.run([sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_once_with_its_types_and_units(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    packages = {name.split("/")[0] for name in names}
    assert packages == {"shmserve", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}
    assert len(names) == len(set(names))
    tracked = subprocess.run(
        ["git", "ls-files", "shmserve/*.py", "client/*.py", "daemon/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    modules = {path if path.startswith("shmserve/") else f"shmserve/{path}" for path in tracked}
    assert {name for name in names if name.endswith(".py")} == modules
    units = {path.relative_to(ROOT / "systemd").as_posix() for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert {f"shmserve/client/cli/units/{unit}" for unit in units} | {"shmserve/py.typed"} <= set(names)


def test_a_client_needs_numpy_and_posix_ipc_alone(installed: Path) -> None:
    found = run(
        installed,
        "from shmserve.client import ShmClient; "
        "import shmserve.client.compat.openpi, shmserve.client.compat.gr00t, shmserve.client.action_chunks; "
        "print(sys.modules['shmserve'].__file__); "
        "ShmClient('nobody', runtime_dir='/nonexistent', max_retries=0).infer({})",
    )

    assert found.stdout.startswith(str(installed))
    assert found.stderr.rstrip().splitlines()[-1].startswith("shmserve.errors.ServiceUnavailable: no daemon serves")


def test_there_is_no_torch_where_that_was_tried(installed: Path) -> None:
    assert "No module named 'torch'" in run(installed, "import torch").stderr


def test_the_source_distribution_holds_the_sources_of_the_native_core(wheel: Path) -> None:
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}

    assert {f"native/python/{path.name}" for path in (ROOT / "native/python").glob("*.[ch]")} | {"setup.py"} <= names


def test_the_wheel_has_the_native_core_for_this_python(wheel: Path, installed: Path) -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler here")

    found = run(installed, "import shmserve.backend as backend; print(backend.NATIVE, backend.core.__file__)")

    built = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert found.stdout.split() == ["True", *(str(installed / name) for name in built)]


def test_without_a_compiler_pip_installs_it_quietly_and_a_client_works(source: Path, tmp_path: Path) -> None:
    # Copied: what is built lies beside the source.
    shutil.copytree(source, tmp_path / "source", symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    offline = ["--no-build-isolation", "--no-index", "--target", str(site), str(tmp_path / "source")]
    pip = subprocess.run(
        [*install, *offline], env={**os.environ, "CC": "/bin/false"}, capture_output=True, text=True, check=False
    )

    assert (pip.returncode, pip.stdout, pip.stderr) == (0, "", "")
    link_dependencies(site)
    found = run(
        site,
        "import shmserve.backend; from shmserve.client import ShmClient; print(shmserve.backend.NATIVE); "
        "ShmClient('nobody', runtime_dir='/nonexistent', max_retries=0).infer({})",
    )
    assert not [*site.rglob("_core*.so")]
    assert found.stdout == "False\n"
    assert found.stderr.rstrip().splitlines()[-1].startswith("shmserve.errors.ServiceUnavailable: no daemon serves")
