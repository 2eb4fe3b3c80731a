"""Trial of what was built: each wheel and the source distribution in a bare environment, asked until they answer.

    python -m release.trial dist --torch torch==2.13.0 [--emulated FOLDER]

The daemon runs in an environment with the wheel of the Python that runs this program, and PyTorch. Every wheel of this
machine's processor is installed beside nothing but its dependencies, and its client asks that daemon by both transports.
With `--emulated`, a folder with an unpacked Debian of another processor, the wheels of that one run under qemu and ask the
same daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from release.interpreters import find
from release.source import ROOT
from release.targets import ELF_MACHINE

#: The transports, which are the names of the services, too.
TRANSPORTS = ("named", "sealed")

#: A robot. Its arguments: the folder that shmserve must be in, then the services.
_CLIENT = """
import sys
folder, *services = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
import shmserve._core
from shmserve.backend import BACKEND
from shmserve.client import ShmClient
assert BACKEND == "native", BACKEND
assert shmserve._core.__file__.startswith(folder), shmserve._core.__file__
joints, goal = np.zeros(6, np.float32), np.full(6, 0.5, np.float32)
for service in services:
    with ShmClient(service) as client:
        for _ in range(100):
            action = client.infer({"joints": joints, "goal": goal})["action"]
            np.testing.assert_allclose(action, 0.05, rtol=1e-5)
print("core loaded,", "; ".join(f"100 answers by {service}" for service in services))
"""


def bare(**variables: str) -> dict[str, str]:
    """Return this environment without the variables of Python and shmserve."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SHMSERVE_", "VIRTUAL_ENV"))
    }
    return {**kept, **variables}


def call(*command: object, **variables: str) -> str:
    ran = subprocess.run(
        list(map(str, command)), env=bare(**variables), cwd="/", capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        raise SystemExit(f"trial: {' '.join(map(str, command))[:200]} failed:\n{ran.stdout}{ran.stderr}")
    return ran.stdout.strip()


def installed(version: str, folder: Path, *requirements: str) -> Path:
    """Make an environment with these requirements alone; return the folder of its programs."""
    python = find(version)
    if python is None:
        raise SystemExit(f"trial: no python{version} here; it was there when its wheel was built")
    call(python, "-m", "venv", folder)
    for requirement in requirements:
        call(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement)
    return folder / "bin"


@contextlib.contextmanager
def serving(programs: Path, runtime: Path) -> Iterator[None]:
    """Run a daemon for each transport from one environment, ready to answer."""
    with contextlib.ExitStack() as stack:
        for transport in TRANSPORTS:
            command: list[object] = [
                programs / "shmserved",
                "--name",
                transport,
                "--transport",
                transport,
                "--runtime-dir",
                runtime,
            ]
            command += ["--state-dir", runtime / "state", "--model-path", ROOT / "examples/minimal/model"]
            log = stack.enter_context(open(runtime / f"{transport}.log", "wb"))
            daemon = subprocess.Popen(
                list(map(str, command)), env=bare(), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            ready = [
                programs / "shmserve-admin",
                "--name",
                transport,
                "--runtime-dir",
                runtime,
                "wait-ready",
                "--timeout",
                "300",
            ]
            call(*ready)
        yield


def ask(command: list[object], site: Path, runtime: Path) -> str:
    """Run the robot with an interpreter; return what it says of its answers."""
    return call(*command, "-I", "-c", _CLIENT, site, *TRANSPORTS, SHMSERVE_RUNTIME_DIR=str(runtime))


def python_of(wheel: Path) -> str:
    """Return the Python of a wheel's name.

    >>> python_of(Path("shmserve-0.1.0-cp310-cp310-manylinux_2_34_x86_64.whl"))
    '3.10'
    """
    tag = wheel.name.split("-")[2]
    return f"{tag[2]}.{tag[3:]}"


def emulated(roots: list[Path], wheel: Path, folder: Path, runtime: Path) -> str:
    """Run a wheel of another processor under qemu, with the first unpacked Debian that has its Python."""
    version = python_of(wheel)
    machine = next(machine for machine in ELF_MACHINE if wheel.name.endswith(f"_{machine}.whl"))
    pythons = [(root, root / f"usr/bin/python{version}") for root in roots]
    root, python = next((pair for pair in pythons if pair[1].exists()), (None, None))
    if root is None:
        return f"untried: no --emulated folder has python{version}"
    platforms = [
        f"--platform={name}_{machine}"
        for name in ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    call(*pip, f"--target={folder}", *platforms, f"--python-version={version}", "--implementation=cp", wheel)
    return "client under qemu: " + ask([f"qemu-{machine}-static", "-L", root, python], folder, runtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--torch", default="torch", help="the requirement of PyTorch")
    parser.add_argument(
        "--emulated", type=Path, action="append", default=[], metavar="FOLDER", help="an unpacked Debian for qemu"
    )
    given = parser.parse_args()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    wheels = sorted(given.dist.resolve().glob("shmserve-*.whl"))
    (source,) = given.dist.resolve().glob("shmserve-*.tar.gz")
    native = {python_of(wheel): wheel for wheel in wheels if wheel.name.endswith(f"_{platform.machine()}.whl")}
    if here not in native:
        raise SystemExit(f"trial: {given.dist} has no wheel for Python {here}, which runs this program: make wheels")

    with tempfile.TemporaryDirectory(prefix="shmserve-trial-") as name:
        work = Path(name)
        for title, requirement in (("wheel", native[here]), ("source", source)):
            runtime = work / f"run-{title}"
            runtime.mkdir()
            programs = installed(here, work / title, given.torch, f"{requirement}[daemon]")
            with serving(programs, runtime):
                site = next((work / title / "lib").glob("python3.*/site-packages"))
                print(f"{requirement.name}: daemon and client: {ask([programs / 'python'], site, runtime)}", flush=True)
                if title == "source":
                    continue
                for version, wheel in native.items():
                    environment = work / f"client-{version}"
                    client = installed(version, environment, str(wheel))
                    site = next((environment / "lib").glob("python3.*/site-packages"))
                    print(f"{wheel.name}: client: {ask([client / 'python'], site, runtime)}", flush=True)
                    shutil.rmtree(environment)
                for wheel in (wheel for wheel in wheels if wheel not in native.values()):
                    roots = [root.resolve() for root in given.emulated]
                    print(f"{wheel.name}: {emulated(roots, wheel, work / wheel.stem, runtime)}", flush=True)
            shutil.rmtree(work / title)


if __name__ == "__main__":
    main()
