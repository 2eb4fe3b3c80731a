"""The directory of the store of versions: its lock, its modes, and what is not a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmserve.daemon.store import Store, StoreUnavailable
from tests.support.archives.packages import write_package
from tests.support.archives.stores import Open, add, entries, expected_entries

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


# The directory


def test_two_daemons_cannot_use_one_directory(open_store: Open, tmp_path: Path) -> None:
    open_store()
    second = Store(tmp_path / "models")

    with pytest.raises(StoreUnavailable, match="is used by another daemon"):
        second.open()
    second.close()


def test_a_closed_store_takes_nothing(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    store.close()
    store.close()

    for attempt in (
        lambda: add(store, tmp_path / "arm"),
        lambda: store.make_current(version),
        lambda: store.set_metadata(version, served=1),
        lambda: store.prune(),
    ):
        with pytest.raises(StoreUnavailable, match="is closed"):
            attempt()
    assert entries(tmp_path) == expected_entries(store)


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")

    with pytest.raises(StoreUnavailable, match="models"):
        Store(tmp_path / "models").open()


def test_a_directory_that_others_could_write_to_is_closed_to_them(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0o777)
    (tmp_path / "models").chmod(0o777)

    open_store()

    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o700


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    try:
        os.chown(tmp_path / "models", 65534, 65534)
    except PermissionError:
        pytest.skip("only root can give a directory away")

    with pytest.raises(StoreUnavailable, match="belongs to uid 65534, this daemon runs as 0"):
        Store(tmp_path / "models").open()
