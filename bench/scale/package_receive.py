"""Time until the store has a new package: `python -m bench.scale.package_receive`, in a minute.

It writes up to 5 GB into the temporary directory (TMPDIR), and its floors there as well: a figure for one disk says
nothing about another. `--seconds` is the number of rounds. A whole update of a small package: `bench.scale.update_time`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.peers.leftovers import my_prefix
from shmserve.daemon.store import PackageLimits, Store

from .figure import Figure, NotMeasured, main

TITLE = "Receiving a package"
LARGE_BYTES = 1_200_000_000
ROOM_BYTES = 5 * LARGE_BYTES
_PIECE_BYTES = 1 << 20


def measure(seconds: float) -> list[Figure]:
    """Measure packages that differ in each round, each turn right after its floor."""
    rounds = max(2, round(seconds))
    with tempfile.TemporaryDirectory(prefix=my_prefix()) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < ROOM_BYTES:
            raise NotMeasured(f"{folder.parent} has {free / 1e9:.0f} GB free, {ROOM_BYTES / 1e9:.0f} are needed")
        return [*_small(folder, 4 * rounds), *_large(folder, rounds)]


def _small(folder: Path, rounds: int) -> list[Figure]:
    store = _store(folder / "small-store")
    package = folder / "small"
    package.mkdir()
    (package / "model.toml").write_text('[model]\nname = "small"\n')
    took: dict[str, list[float]] = {"add": [], "floor": [], "process": []}
    for number in range(rounds + 1):
        (package / "policy.py").write_text(f"# {number}\n" * 500)
        took["floor"].append(_timed(lambda: _write_synced(package / "policy.py", folder / "copy")))
        took["process"].append(_timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)))
        took["add"].append(_timed(lambda: _add(store, package)))
    store.close()
    return [
        Figure(
            "small_ms", "a package of a few KB: receive and check", _ms(took["add"]), "ms",
            _ms(took["process"]), "python -c pass",
        ),
        Figure("small_write_ms", "of which its bytes: written and synced", _ms(took["floor"]), "ms"),
    ]  # fmt: skip


def _large(folder: Path, rounds: int) -> list[Figure]:
    store = _store(folder / "store")
    package = folder / "large"
    package.mkdir()
    weights, copy = package / "weights.bin", folder / "copy"
    took: dict[str, list[float]] = {name: [] for name in ("new", "write", "again", "read")}
    for number in range(rounds):
        _fill(weights)
        (package / "policy.py").write_text(f"# {number}\n")
        took["write"].append(_timed(lambda: _write_synced(weights, copy)))
        copy.unlink()
        took["new"].append(_timed(lambda: _add(store, package)))
        (package / "policy.py").write_text(f"# {number}, changed\n")
        took["read"].append(_timed(lambda: _hash(weights)))
        took["again"].append(_timed(lambda: _add(store, package)))
        store.prune(0)
    store.close()
    size = f"{LARGE_BYTES / 1e9:.1f} GB"
    return [
        Figure(
            "large_s", f"a package of {size}", _s(took["new"]), "s", _s(took["write"]), "written in 1 MiB pieces, synced"
        ),
        Figure(
            "changed_s", f"a package of {size} of which the store has all but policy.py", _s(took["again"]), "s",
            _s(took["read"]), "read and hashed by one thread",
        ),
    ]  # fmt: skip


def _store(directory: Path) -> Store:
    store = Store(directory / "service" / "models", keep_versions=3, limits=PackageLimits())
    store.open()
    return store


def _add(store: Store, package: Path) -> None:
    descriptor = os.open(package, os.O_RDONLY)
    try:
        asyncio.run(store.add(descriptor))
    finally:
        os.close(descriptor)


def _fill(path: Path) -> None:
    block = os.urandom(64 << 20)
    with open(path, "wb") as file:
        file.writelines(block[: min(len(block), LARGE_BYTES - start)] for start in range(0, LARGE_BYTES, len(block)))
        file.flush()
        os.fsync(file.fileno())


def _write_synced(source: Path, target: Path) -> None:
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as written:
        while piece := read.read(_PIECE_BYTES):
            written.write(piece)
        os.fsync(written.fileno())


def _hash(path: Path) -> None:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ms(times: list[float]) -> float:
    """Return the median in ms, without the first turn, which compiles modules."""
    return 1e3 * float(np.median(times[1:]))


def _s(times: list[float]) -> float:
    return float(np.median(times))


if __name__ == "__main__":
    main(TITLE, measure)
