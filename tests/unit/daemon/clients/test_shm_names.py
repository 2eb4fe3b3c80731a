"""NameRegistry of shared-memory objects: unguessable, each service's own, swept without touching another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.daemon.clients.shm_names import NameRegistry
from shmserve.doorbell import create_doorbell, unlink_doorbell
from shmserve.layout import Geometry
from shmserve.segment import Identity, create_segment

SHM = Path("/dev/shm")


@pytest.fixture
def names(tmp_path: Path) -> Iterator[NameRegistry]:
    names = NameRegistry(tmp_path / "arm")
    yield names
    names.sweep()


@pytest.mark.fault("T10")
def test_names_are_never_the_same_and_long_enough_not_to_be_guessed(names: NameRegistry) -> None:
    found = {names.fresh() for _ in range(1000)}

    assert len(found) == 1000
    assert all(name.startswith(f"/{names.prefix}") for name in found)
    assert {len(name.removeprefix(f"/{names.prefix}")) for name in found} == {32}
    # posix_ipc and glibc's "sem." take a name of at most 255 - 4 bytes.
    assert max(map(len, found)) < 200


def test_a_service_sweeps_what_is_its_own_and_nothing_else(names: NameRegistry, tmp_path: Path) -> None:
    neighbour, elsewhere = NameRegistry(tmp_path / "arm2"), NameRegistry(tmp_path / "other" / "arm")
    strangers = [neighbour.fresh(), elsewhere.fresh(), f"/x{names.prefix}x", "/shmserve.test-of-names"]
    for stranger in strangers:
        create_doorbell(stranger)
    (SHM / f"shmserve-{names.prefix}").touch()
    try:
        create_segment(names.fresh(), Geometry(1, 64, 0), Identity(1, 1, 1))
        create_doorbell(names.fresh())

        assert names.sweep() == 2
        assert names.sweep() == 0

        for stranger in strangers:
            assert (SHM / f"sem.{stranger.removeprefix('/')}").exists()
        assert (SHM / f"shmserve-{names.prefix}").exists()
    finally:
        for stranger in strangers:
            unlink_doorbell(stranger)
        (SHM / f"shmserve-{names.prefix}").unlink()


@pytest.mark.fault("T09")
def test_an_object_that_cannot_be_removed_is_left(names: NameRegistry) -> None:
    stuck = SHM / f"{names.prefix}directory"
    stuck.mkdir()
    try:
        create_doorbell(names.fresh())

        assert names.sweep() == 1
        assert stuck.exists()
    finally:
        stuck.rmdir()


def test_the_prefix_belongs_to_the_directory_not_to_how_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    assert NameRegistry(tmp_path / "arm").prefix == NameRegistry(tmp_path / "link" / "arm").prefix
    assert NameRegistry(tmp_path / "arm").prefix != NameRegistry(tmp_path / "head").prefix
