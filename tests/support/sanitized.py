"""Tests and fuzzing of the native core with gcc's checks of addresses and undefined behaviour.

    python tests/support/sanitized.py [--inputs 400000]

The extension is built in a folder of its own and imported in place of the checkout's; what the checks find ends the run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
#: Tests of a real daemon whose engine, and whose clients, run with the checks.
_DAEMON_TESTS = (
    "integration/requests/test_growing.py",
    "integration/requests/test_exact_values.py",
    "integration/requests/test_pipelining.py",
    "faults/test_hostile_client.py",
)
_TESTS = (
    "native_and_pure",
    "native_misuse",
    "native_fast_path",
    "native_leaks",
    "module_state",
    "wire",
    "waiting",
    "backends",
    "fast_path",
    "codec",
    "ring",
    "metadata",
    "metadata_damage",
    "metadata_hostile",
    "payload_sizes",
    "changing_sizes",
)
_TARGETS = ("metadata", "slot", "segment", "channel")
_CHECKS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
_FLAGS = f"-O1 -g -fno-omit-frame-pointer {_CHECKS}"
#: What makes every Python that is started take the extension in that folder.
_SITE = """
import importlib.util, resource, sys

# A daemon reads packages within a limit of addresses, and the checks alone take terabytes.
_set = resource.setrlimit
resource.setrlimit = lambda what, limits: None if what == resource.RLIMIT_AS else _set(what, limits)

class Sanitized:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "shmserve._core":
            return importlib.util.spec_from_file_location(name, {extension!r})

sys.meta_path.insert(0, Sanitized)
"""
_IS_TAKEN = (
    "from shmserve import _core as core, backend; "
    "maps = open('/proc/self/maps').read(); "
    "assert backend.Slots is core.Slots and core.__file__ == {extension!r} and 'libasan' in maps, core"
)


def _library(name: str) -> str:
    """Where gcc has it."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"gcc has no {name} here (apt-get install gcc g++)")
    return str(Path(found).resolve())


def _build(folder: Path) -> Path:
    setup = [sys.executable, "setup.py", "--quiet", "build_ext"]
    flags = {**os.environ, "CC": "gcc", "CFLAGS": _FLAGS, "LDFLAGS": _CHECKS}
    places = ["--build-lib", str(folder / "built"), "--build-temp", str(folder / "objects")]
    subprocess.run([*setup, *places], cwd=_ROOT, env=flags, check=True)
    (extension,) = (folder / "built/shmserve").glob("_core*.so")
    return extension


def _environment(folder: Path) -> Mapping[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        # Python's own allocator takes large pieces and cuts them up, which hides an overrun.
        "PYTHONMALLOC": "malloc",
        # First of all libraries; with the one whose exceptions it catches on their way.
        "LD_PRELOAD": f"{_library('libasan.so')} {_library('libstdc++.so.6')}",
        # CPython keeps much until it ends, and torch more: what the core keeps is tests/unit/native/test_native_leaks.py's affair.
        # What is freed is held back for a while, which fuzz/replay.py would take for growth: a little is enough here.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=2",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=400_000, help="as fuzz.replay has it; a quarter is these targets'"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shmserve-sanitized-") as name:
        folder = Path(name)
        extension = str(_build(folder))
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(_SITE.format(extension=extension))
        environment = _environment(folder)
        tests = [str(path) for name in _TESTS for path in sorted((_ROOT / "tests").rglob(f"test_{name}.py"))]
        daemon_tests = [str(_ROOT / "tests" / name) for name in _DAEMON_TESTS]
        targets = [argument for name in _TARGETS for argument in ("--target", name)]
        # The checks write to the real standard error, which pytest would keep to itself.
        for command in (
            ["-c", _IS_TAKEN.format(extension=extension)],
            ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *tests],
            ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *daemon_tests],
            ["-m", "fuzz.core_fuzz"],
            ["-m", "fuzz.replay", "--inputs", str(arguments.inputs), *targets],
        ):
            ran = subprocess.run([sys.executable, *command], cwd=_ROOT, env=environment, check=False)
            if ran.returncode:
                raise SystemExit(ran.returncode)


if __name__ == "__main__":
    main()
