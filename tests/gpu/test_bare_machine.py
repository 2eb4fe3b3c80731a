"""The substitutes for packages that a bare machine with a GPU lacks have what shmserved uses of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.gpu.on_gpu import PARTS
from tests.support.folders import REPOSITORY

_FOLDER = REPOSITORY / "tests/support/without_packages"


def test_the_daemon_s_command_runs_with_the_substitutes() -> None:
    path = os.pathsep.join([str(_FOLDER / "for_click"), str(_FOLDER / "for_posix_ipc"), str(REPOSITORY)])

    done = subprocess.run(
        [sys.executable, "-m", "shmserve.daemon.main", "--name", "arm", "--device", "cuda:0", "--check-config"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "cuda:0" in done.stdout


#: Runs pytest's collection without the packages that torch, numpy and pytest do not need, but for those with a substitute.
_COLLECT = """
import importlib.metadata as metadata, re, sys

def needed(name, found):
    if name not in found:
        found.add(name)
        for line in metadata.requires(name) or ():
            other = re.match(r"[\\w.-]+", line).group().lower()
            if "extra ==" not in line and metadata_of(other):
                needed(other, found)
    return found

def metadata_of(name):
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None

there = {re.sub("[-_.]+", "-", name).lower() for each in ("torch", "numpy", "pytest") for name in needed(each, set())}
for module, packages in metadata.packages_distributions().items():
    if module not in ("click", "posix_ipc", "shmserve", *sys.stdlib_module_names) and not {re.sub("[-_.]+", "-", name).lower() for name in packages} & there:
        sys.modules[module] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("part", PARTS)
def test_the_tests_of_each_part_are_found_without_other_packages(part: str) -> None:
    path = os.pathsep.join([str(_FOLDER / "for_click"), str(_FOLDER / "for_posix_ipc"), str(REPOSITORY)])

    done = subprocess.run(
        [sys.executable, "-c", _COLLECT, *PARTS[part]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        check=False,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
