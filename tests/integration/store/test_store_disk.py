"""A store on a disk that is full."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.daemon.store import PackageLimits, Store, StoreUnavailable
from tests.support.archives.packages import numbered, write_package
from tests.support.archives.stores import add, good
from tests.support.tiny_disk import tiny_disk

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with tiny_disk(disk):
        yield disk


@pytest.mark.parametrize("packing", ["directory", "tar", "gzip"])
def test_a_full_disk_leaves_the_old_state(packing: str, disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "models")
    store.open()
    store.make_current(add(store, write_package(tmp_path / "arm")))
    before = store.versions(), store.current(), sorted((disk / "models").rglob("*"))
    large = write_package(tmp_path / "large", {"policy.py": b"", "weights.bin": os.urandom(5 << 20)})
    if packing != "directory":
        options = "-czf" if packing == "gzip" else "-cf"
        subprocess.run(["tar", options, tmp_path / "large.tar", "-C", large, "."], check=True)
        large = tmp_path / "large.tar"

    with pytest.raises(StoreUnavailable, match=r"5242880 bytes and the state directory \d+ free; make room"):
        add(store, large)

    assert (store.versions(), store.current(), sorted((disk / "models").rglob("*"))) == before
    add(store, numbered(tmp_path / "small", 1))
    store.close()


def test_a_disk_that_fills_up_while_a_package_is_written_leaves_the_old_state(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "models", limits=PackageLimits(spare_bytes=-(1 << 40)))  # so that it is tried all the same
    store.open()
    store.make_current(add(store, write_package(tmp_path / "arm")))
    before = store.versions(), store.current(), sorted((disk / "models").rglob("*"))
    large = write_package(tmp_path / "large", {"policy.py": b"", "weights.bin": os.urandom(5 << 20)})

    with pytest.raises(StoreUnavailable, match="No space left on device; make room"):
        add(store, large)

    assert (store.versions(), store.current(), sorted((disk / "models").rglob("*"))) == before
    store.close()


def test_a_package_whose_large_file_is_kept_needs_no_room_for_it(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "models", limits=PackageLimits(spare_bytes=100_000))
    store.open()
    weights = os.urandom(3 << 20)
    one, two = (
        add(store, write_package(tmp_path / name, {"policy.py": name.encode(), "weights.bin": weights}))
        for name in ("one", "two")
    )

    assert [version.size_bytes for version in (one, two)] == [len(weights) + 3] * 2
    with pytest.raises(StoreUnavailable, match="make room"):
        add(store, write_package(tmp_path / "three", {"weights.bin": os.urandom(3 << 20)}))
    store.close()


def test_a_disk_without_a_byte_left_keeps_current_as_it_was(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(disk / "models")
    store.open()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))
    store.make_current(one)
    with open(disk / "ballast", "wb") as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(bytes(1 << 16))
            ballast.flush()

    with caplog.at_level(logging.CRITICAL):
        for attempt in (
            lambda: store.make_current(two),
            lambda: store.set_metadata(one, served=1),
            lambda: store.set_metadata(two, served=1),
        ):
            with pytest.raises(StoreUnavailable, match="make room"):
                attempt()
    assert store.current() == store.get(one)
    store.close()

    store.open()
    served = good(store)
    assert served is not None and served.digest == one.digest and store.problems == []
    assert json.loads((disk / "models" / "current").read_text())["current"] == one.digest
    store.close()
