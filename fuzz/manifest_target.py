"""Fuzz target for the reader of model.toml: settings, or ModelPackageError."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from fuzz.target import Target
from shmserve.daemon.packages.manifest import MANIFEST, read_manifest
from shmserve.errors import ModelPackageError

_folders: list[Path] = []


def run(data: bytes) -> None:
    if not _folders:
        # libFuzzer ends its process without exit functions: fuzz/guided.py sets the folder, and removes it.
        if given := os.environ.get("FUZZ_FOLDER"):
            folder = Path(given)
        else:
            folder = Path(tempfile.mkdtemp(prefix="shmserve-fuzz-", dir="/dev/shm"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name in ("policy.py", "model.pt2", "model.pt", "weights.bin", "example.npz"):
            (folder / name).touch()
        _folders.append(folder)
    folder = _folders[0]
    (folder / MANIFEST).write_bytes(data)
    try:
        settings = read_manifest(folder)
    except ModelPackageError:
        return
    assert settings["format"]
    for key in ("weights", "example", "expected"):
        assert key not in settings or (folder / settings[key]).resolve().is_relative_to(folder.resolve())


_CLASS = b"""\
[model]
name = "cartpole-pixels"
format = "python"
entry = "policy:Policy"
style = "openpi"
arguments = {action_horizon = 16, names = ["a", "b"], rate = 0.5, at = 2026-11-22T12:00:00Z}
max_batch = 8
weights = "weights.bin"
read_in_place = true
[warmup]
example = "example.npz"
tolerance = {atol = 1e-5, rtol = 0}
[contract]
rate_hz = 50
action_horizon = 16
[contract.observation]
points = [-1, 3]
state = {units = ["deg", "m"], names = ["pan", "slide"]}
"camera.front" = {frame_size = [480, 640], colour_order = "rgb"}
[metadata]
action_dim = 7
"""
_MODULE = b"""\
[model]
format = "torch-export"
inputs = ["image", "state"]
outputs = ["actions"]
batch_dim = true
max_batch = 4
stateful = false
[warmup]
expected = "example.npz"
allow_nonfinite = true
"""


def seeds() -> list[bytes]:
    return [
        _CLASS,
        _MODULE,
        b"",
        b'[model]\nentry = "policy:Policy"\n',
        b'[metadata]\na = """x"""\n"b.c".d = [[1], {}]\n',
    ]


WORDS = (
    *(
        b"[model]\n",
        b"[warmup]\n",
        b"[metadata]\n",
        b"[[model]]\n",
        b"=",
        b"\n",
        b'"""',
        b"'''",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b"max_batch = ",
        b"0x" + b"f" * 5000,
        b"1e400",
        b"nan",
        b"-inf",
        b"9" * 30,
        b"true",
        b'"../"',
        b'"/etc/passwd"',
        b"\\u0000",
        b"\xff",
    ),
    *(b"[" * 200, b"a." * 200, b"1" * 5000, b"{a=" * 100, b"2026-11-22", b"\\UFFFFFFFF"),
)
TARGET = Target(run, seeds, WORDS)
