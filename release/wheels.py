"""Wheels of a release: manylinux, for each CPython of this machine and each processor that it has a compiler for.

    python -m release.wheels --out dist [--python 3.11] [--machine x86_64] [--machine aarch64]

A source distribution is made from the commit, and each wheel from its files, with the packages of
release/requirements/build.txt. An interpreter or a compiler that is missing is named; a wheel without its core ends the build.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from release.interpreters import find, versions
from release.source import ROOT, build_source, epoch, resolve, unpack
from release.targets import ELF_MACHINE, Target, check_headers

_REQUIREMENTS = ROOT / "release/requirements/build.txt"


def call(command: list[str], what: str, **variables: str) -> str:
    """Run a command; return its output, or end the build with it."""
    ran = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"wheels: {what} failed:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def check_core(wheel: Path, target: Target, version: str) -> None:
    """Raise SystemExit unless the wheel has one extension, the core, for this Python and processor."""
    expected = f"shmserve/_core{target.suffix(version)}"
    with zipfile.ZipFile(wheel) as files:
        built = [name for name in files.namelist() if name.endswith(".so")]
        if built != [expected]:
            raise SystemExit(f"wheels: {wheel.name} must hold {expected}; its extensions are {built or 'none'}")
        machine = int.from_bytes(files.read(expected)[18:20], "little")
    if machine != ELF_MACHINE[target.machine]:
        raise SystemExit(f"wheels: {expected} is for ELF machine {machine}, not for {target.machine}")


def environment(python: str, folder: Path) -> str:
    """Make the environment that builds for one Python; return its interpreter."""
    call([python, "-m", "venv", str(folder)], f"an environment of {python}")
    interpreter = str(folder / "bin/python")
    install = [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "-r",
        str(_REQUIREMENTS),
    ]
    call(install, f"the installation of {_REQUIREMENTS.name}", PIP_DISABLE_PIP_VERSION_CHECK="1")
    return interpreter


def build_wheel(interpreter: str, version: str, target: Target, source: Path, time: int, work: Path) -> Path:
    """Build and check one wheel in the empty folder `work`; return its path."""
    unpacked = unpack(source, work / "source")
    if not target.is_native:
        include = call([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('include'))"], "sysconfig")
        check_headers(target, Path(include.strip()))
    variables = {
        **target.variables(version),
        "SOURCE_DATE_EPOCH": str(time),
        "SHMSERVE_PURE": "0",
        # No debug information, and no folder of this machine in what remains.
        "CFLAGS": shlex.join(["-g0", f"-ffile-prefix-map={unpacked}=."]),
    }
    command = [interpreter, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    call(
        [*command, str(work / "built"), str(unpacked)], f"the wheel of Python {version}, {target.machine},", **variables
    )
    (built,) = (work / "built").glob("*.whl")
    check_core(built, target, version)
    return built


def repair_wheel(built: Path, version: str, target: Target, time: int, out: Path) -> Path:
    """Give a wheel the tag of the oldest manylinux that it runs on, and check it again; return its path in `out`."""
    tools = str(Path(sys.executable).parent)
    repair = [f"{tools}/auditwheel", "repair", "--only-plat", "--wheel-dir", str(built.parent / "repaired"), str(built)]
    call(repair, f"auditwheel on {built.name}", PATH=f"{tools}:{os.environ['PATH']}", SOURCE_DATE_EPOCH=str(time))
    (repaired,) = (built.parent / "repaired").glob("*.whl")
    check_core(repaired, target, version)
    return Path(repaired.replace(out / repaired.name))


def build_all(commit: str, out: Path, wanted: list[str], machines: list[str]) -> list[Path]:
    """Build the source distribution and every wheel that this machine can; return the wheels."""
    targets = []
    for target in map(Target, machines):
        if reason := target.missing():
            print(f"missing: wheels for {target.machine}: {reason}")
        else:
            targets.append(target)
    wheels = []
    with tempfile.TemporaryDirectory(prefix="shmserve-release-") as name:
        work = Path(name)
        source = build_source(commit, out, work)
        print(source.name)
        for version in wanted:
            python = find(version)
            if python is None:
                print(
                    f"missing: wheels for CPython {version}: no python{version} with its headers in PATH or in pyenv's versions"
                )
                continue
            interpreter = environment(python, work / version)
            for target in targets:
                folder = work / f"{version}-{target.machine}"
                folder.mkdir()
                built = build_wheel(interpreter, version, target, source, epoch(commit), folder)
                wheels.append(repair_wheel(built, version, target, epoch(commit), out))
                print(wheels[-1].name)
    return wheels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--python", action="append", choices=versions(), help="a version; all that pyproject.toml names"
    )
    parser.add_argument(
        "--machine", action="append", choices=sorted(ELF_MACHINE), help="a processor; this machine's and aarch64"
    )
    parser.add_argument("--commit", default="HEAD")
    given = parser.parse_args()
    commit = resolve(given.commit)
    given.out.mkdir(parents=True, exist_ok=True)
    stale = [
        path
        for path in given.out.iterdir()
        if re.fullmatch(r"shmserve-.*(\.whl|\.tar\.gz|\.json)|SHA256SUMS", path.name)
    ]
    for path in stale:
        path.unlink()
    machines = given.machine or list(dict.fromkeys([platform.machine(), "aarch64"]))
    if not build_all(commit, given.out, given.python or versions(), machines):
        raise SystemExit("wheels: none was built; the lines above say why")


if __name__ == "__main__":
    main()
