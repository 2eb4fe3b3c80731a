"""The Debian package: dpkg-buildpackage makes it from this checkout, and it holds what a service needs but PyTorch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from shmserve import __version__
from tests.support.daemon_process import environment
from tests.support.folders import REPOSITORY

ROOT = REPOSITORY


def missing() -> str:
    """What this machine lacks to build it; empty where it lacks nothing."""
    if shutil.which("dpkg-checkbuilddeps") is None:
        return "no dpkg-dev here"
    found = subprocess.run(
        ["dpkg-checkbuilddeps", ROOT / "debian/control"], capture_output=True, text=True, check=False
    )
    return found.stderr.strip()


def test_the_package_is_of_the_release_that_it_holds() -> None:
    first = (ROOT / "debian/changelog").read_text("utf-8").splitlines()[0]

    assert first.startswith(f"shmserve ({__version__}) ")


@pytest.mark.parametrize(("python", "said"), [("/nowhere/python", "there is no Python at /nowhere/python"), (None, "")])
def test_the_programs_run_with_the_python_that_is_named(tmp_path: Path, python: str | None, said: str) -> None:
    (tmp_path / "default").write_text(f"SHMSERVE_PYTHON={python or '/bin/echo'}\n")
    launcher = tmp_path / "shmserve-admin"
    launcher.write_text((ROOT / "debian/launcher").read_text().replace("/etc/default/shmserve", f"{tmp_path}/default"))

    result = subprocess.run(
        ["sh", launcher, "a b", "c"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )

    if python:
        assert (result.returncode, result.stdout) == (78, "") and said in result.stderr
    else:
        assert (result.returncode, result.stdout) == (0, "/usr/lib/shmserve/bin/shmserve-admin a b c\n")


@pytest.mark.parametrize(("setting", "chosen"), [("", ""), ("SHMSERVE_PURE=1\n", "1")], ids=["native", "pure"])
def test_pure_python_is_chosen_in_the_settings_of_the_package(tmp_path: Path, setting: str, chosen: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "SHMSERVE_PURE=$SHMSERVE_PURE"\n')
    python.chmod(0o755)
    (tmp_path / "default").write_text(f"SHMSERVE_PYTHON={python}\n{setting}")
    launcher = tmp_path / "shmserved"
    launcher.write_text((ROOT / "debian/launcher").read_text().replace("/etc/default/shmserve", f"{tmp_path}/default"))

    result = subprocess.run(["sh", launcher], capture_output=True, text=True, timeout=60, env={}, check=True)

    assert result.stdout == f"SHMSERVE_PURE={chosen}\n"


def _check_core(library: Path) -> None:
    """The core is one, for Debian's Python, and a Python of that version runs it with the numpy of this environment."""
    (core,) = library.rglob("*.so")
    suffix = subprocess.run(
        ["/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert core == library / f"shmserve/_core{suffix}"
    if suffix != sysconfig.get_config_var("EXT_SUFFIX"):
        return
    code = """
import numpy
from shmserve.backend import BACKEND, TreeEncoder
from shmserve import ring
print(BACKEND, ring.__file__)
"""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), "PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1", "SHMSERVE_PURE": "0"},
        cwd=library,
        check=False,
    )
    assert (said.stdout, said.stderr) == (f"native {library}/shmserve/ring.py\n", "")


def _check_c_packages(folder: Path) -> None:
    """libshmserve1 has the library, libshmserve-dev what a program is built with: the example compiles and finds no daemon."""
    for package in ("libshmserve1", "libshmserve-dev"):
        (archive,) = folder.glob(f"{package}_{__version__}_*.deb")
        subprocess.run(["dpkg", "-x", archive, folder / "c"], timeout=60, check=True)
    (library,) = (folder / "c/usr/lib").glob("*/libshmserve.so.1")
    for place in ("libshmserve.so", "libshmserve.a", "pkgconfig/shmserve.pc", "cmake/shmserve/shmserveConfig.cmake"):
        assert (library.parent / place).exists(), place
    assert f"libdir=${{prefix}}/lib/{library.parent.name}\n" in (library.parent / "pkgconfig/shmserve.pc").read_text()
    source = folder / "c/usr/share/doc/libshmserve-dev/examples/c_minimal/robot.c"
    program = folder / "robot"
    flags = [f"-I{folder}/c/usr/include", f"-L{library.parent}", "-lshmserve", "-lm"]
    subprocess.run(["gcc", source, *flags, "-o", program], timeout=60, check=True)
    if shutil.which("cmake") is not None:
        prefix = f"-DCMAKE_PREFIX_PATH={folder}/c/usr;{library.parent}"
        build = str(folder / "cmake")
        for arguments in (["-S", str(source.parent), "-B", build, prefix], ["--build", build]):
            subprocess.run(["cmake", *arguments], timeout=120, check=True, stdout=subprocess.DEVNULL)
        program = folder / "cmake/robot"
    variables = {**environment(), "LD_LIBRARY_PATH": str(library.parent), "SHMSERVE_RUNTIME_DIR": str(folder)}
    ended = subprocess.run([program, "nobody"], capture_output=True, text=True, timeout=60, env=variables, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no daemon serves 'nobody'" in ended.stderr


@pytest.mark.long
def test_a_package_is_built_with_the_units_in_place_and_its_programs_run(tmp_path: Path) -> None:
    if lacking := missing():
        pytest.skip(f"dpkg-buildpackage cannot run: {lacking} (apt-get build-dep ./)")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    source, root = tmp_path / "source", tmp_path / "root"
    for name in filter(None, listed.stdout.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    (source / "shmserve/_core.cpython-311-x86_64-linux-gnu.so").touch()  # as `make` leaves it in a checkout
    built = subprocess.run(
        ["dpkg-buildpackage", "-us", "-uc", "-b"], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr

    (package,) = tmp_path.glob(f"shmserve_{__version__}_*.deb")
    subprocess.run(["dpkg", "-x", package, root], timeout=60, check=True)

    for place in (
        "usr/bin/shmserved",
        "usr/bin/shmserve-admin",
        "usr/lib/sysusers.d/shmserve.conf",
        "usr/lib/tmpfiles.d/shmserve.conf",
        "usr/lib/systemd/catalog/shmserve.catalog",
        "usr/share/man/man1/shmserve-admin-update-model.1.gz",
        "usr/share/doc/shmserve/README.Debian",
        "etc/default/shmserve",
    ):
        assert (root / place).is_file(), place
    units = {path.name: path.read_text() for path in (root / "usr/lib/systemd/system").iterdir()}
    assert units.keys() == {path.name for path in (ROOT / "systemd").glob("*.s*") if "@" in path.name}
    for program in re.findall(r"^Exec\w+=(\S*shmserve\S*)", units["shmserved@.service"], re.MULTILINE):
        assert (root / program[1:]).stat().st_mode & 0o111
    completion = (root / "usr/share/bash-completion/completions/shmserve-admin").read_text()
    assert "complete -o nosort -F" in completion
    assert re.search(r"^torch>=", (root / "usr/share/shmserve/requirements.txt").read_text(), re.MULTILINE)
    assert not [path for path in root.rglob("*torch*") if path.is_dir()]
    _check_c_packages(tmp_path)
    library = root / "usr/lib/shmserve"
    _check_core(library)
    for program in ("shmserved", "shmserve-admin"):
        said = subprocess.run(
            [sys.executable, library / "bin" / program, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment(), "PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            check=True,
        )
        assert said.stdout == f"{program}, version {__version__}\n"
