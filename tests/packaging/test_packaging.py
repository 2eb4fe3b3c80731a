"""What is published: a wheel made from the source distribution, installed where nothing of this checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY

ROOT = REPOSITORY
HAS_COMPILER = shutil.which("cc") is not None or shutil.which("gcc") is not None
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
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source],
        env={**os.environ, "SHMSERVE_PURE": "0" if HAS_COMPILER else "1"},
        capture_output=True,
        check=True,
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


def run(site: Path, code: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Python with the standard library and `site` alone."""
    start = f"import sys; sys.path.insert(0, {str(site)!r}); "
    kept = {name: value for name, value in os.environ.items() if name != "SHMSERVE_PURE"}
    environment = {**kept, **(variables or {})}
    command = [sys.executable, "-I", "-S", "-c", start + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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


def test_the_source_distribution_holds_what_the_package_and_the_c_library_are_built_from(wheel: Path) -> None:
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {member.name.partition("/")[2] for member in files.getmembers() if member.isfile()}

    files_of_git = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    places = {"client": "shmserve/client", "daemon": "shmserve/daemon", "systemd": "shmserve/client/cli/units"}
    expected = {"README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml", "setup.py"}
    for name in files_of_git:
        folder, _, rest = name.partition("/")
        if folder in ("shmserve", "native", *places) and (ROOT / name).is_file():
            expected.add(f"{places.get(folder, folder)}/{rest}")
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info" in name}
    assert names - made == expected, (names - made) ^ expected


def test_the_wheel_has_the_native_core_for_this_python(wheel: Path, installed: Path) -> None:
    if not HAS_COMPILER:
        pytest.skip("no compiler here")

    found = run(
        installed, "import shmserve._core, shmserve.backend as backend; print(backend.BACKEND, shmserve._core.__file__)"
    )

    built = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert found.stdout.split() == ["native", *(str(installed / name) for name in built)]


def installation(
    source: Path, copy: Path, site: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Return the result of pip's installation of the checkout into `site`, without a compiler in PATH."""
    # Copied: what is built lies beside the source.
    shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    (copy / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "SHMSERVE_PURE")}
    environment |= {"PATH": str(copy / "empty"), **variables}
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    offline = ["--no-build-isolation", "--no-index", "--target", str(site), str(copy)]
    return subprocess.run([*install, *offline], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("variables", [{}, {"SHMSERVE_PURE": "0"}, {"CC": "/bin/false"}], ids=str)
def test_without_a_compiler_the_installation_fails_with_the_remedy(
    source: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    pip = installation(source, tmp_path / "source", tmp_path / "site", variables)

    assert pip.returncode != 0
    assert "the native core of shmserve cannot be compiled" in pip.stderr
    assert "Install gcc and the Python headers (apt-get install gcc python3-dev), or set SHMSERVE_PURE=1" in pip.stderr
    assert not (tmp_path / "site/shmserve").exists()


@pytest.fixture(scope="module")
def pure_site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installation that chose pure Python, and its dependencies."""
    folder = tmp_path_factory.mktemp("pure")
    pip = installation(source, folder / "source", folder / "site", {"SHMSERVE_PURE": "1"})
    assert (pip.returncode, pip.stdout, pip.stderr) == (0, "", "")
    link_dependencies(folder / "site")
    return folder / "site"


def test_an_installation_that_chose_pure_python_has_no_extension_and_a_client_works(pure_site: Path) -> None:
    found = run(
        pure_site,
        "import shmserve.backend; from shmserve.client import ShmClient; print(shmserve.backend.BACKEND); "
        "ShmClient('nobody', runtime_dir='/nonexistent', max_retries=0).infer({})",
        {"SHMSERVE_PURE": "1"},
    )

    assert not [*pure_site.rglob("_core*.so")]
    assert found.stdout == "pure\n"
    assert "Warning" not in found.stderr
    assert found.stderr.rstrip().splitlines()[-1].startswith("shmserve.errors.ServiceUnavailable: no daemon serves")


def test_a_program_that_did_not_choose_pure_python_is_warned_once(pure_site: Path) -> None:
    found = run(pure_site, "from shmserve.client import ShmClient; import shmserve.ring, shmserve.backend")

    assert found.returncode == 0
    assert found.stderr.count("RuntimeWarning: shmserve runs in pure Python") == 1
    assert "its native core was not built. Install gcc and the Python headers" in found.stderr
