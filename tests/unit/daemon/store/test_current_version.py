"""The store of versions: which is current, which are known, which go first."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmserve.daemon.store import Store, VersionUnknown
from tests.support.archives.packages import numbered, write_package
from tests.support.archives.previous_version import previous
from tests.support.archives.stores import Open, add, entries, expected_entries

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


# Current


def test_current_and_previous_follow_one_another(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))

    def now() -> list[str | None]:
        return [version.version if version else None for version in (store.current(), previous(store))]

    store.make_current(one.version)
    assert now() == [one.version, None]
    store.make_current(two)
    assert now() == [two.version, one.version]
    store.make_current(two, device="cuda:0")
    assert now() == [two.version, one.version] and store.get(two).metadata == {"device": "cuda:0"}
    store.make_current(one)
    assert now() == [one.version, two.version]


def test_a_version_that_is_not_kept_cannot_be_current(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=3)
    version = add(store, write_package(tmp_path / "arm"))
    for number in range(3):
        add(store, numbered(tmp_path / f"m{number}", number))
    assert not version.path.exists()

    for attempt in (version, version.version, "0123"):
        with pytest.raises(VersionUnknown):
            store.make_current(attempt)
    assert store.current() is None and not (tmp_path / "models" / "current").exists()


def test_a_prefix_names_a_version_if_only_one_begins_so(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=20)
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(17)]  # 16 first digits
    firsts = [version.digest[0] for version in versions]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)

    assert store.resolve(versions[3].version.upper()) == versions[3]
    assert store.resolve(versions[3].digest) == versions[3]
    with pytest.raises(VersionUnknown, match=f"'{shared}' is the beginning of {firsts.count(shared)} versions: "):
        store.resolve(shared)
    for nothing in ("", "xyz", "\x1b"):
        with pytest.raises(VersionUnknown, match="no kept version is named"):
            store.resolve(nothing)


def test_metadata_is_added_replaced_and_removed(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    store.set_metadata(version, device="cpu", served=1)

    store.set_metadata(version.version, served=2, device=None)

    assert open_store().get(version).metadata == {"served": 2}
    with pytest.raises((TypeError, ValueError)):
        store.set_metadata(version, weird=float("nan"))
    with pytest.raises((TypeError, ValueError)):
        store.set_metadata(version, weird=object())


# Pruning


def test_the_oldest_go_first_and_current_and_previous_stay(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=4)
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(4)]
    store.make_current(versions[0])
    store.make_current(versions[1])

    versions += [add(store, numbered(tmp_path / f"m{number}", number)) for number in (4, 5)]

    kept = {store_version.digest for store_version in store.versions()}
    assert kept == {versions[number].digest for number in (0, 1, 4, 5)}
    assert entries(tmp_path) == expected_entries(store)


def test_a_version_whose_files_an_engine_reads_stays(open_store: Open, tmp_path: Path) -> None:
    in_use: set[str] = set()
    store = open_store(keep_versions=3, in_use=lambda: in_use)
    versions = [add(store, numbered(tmp_path / "m0", 0))]
    in_use.add(versions[0].version)

    versions += [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(1, 5)]

    assert versions[0].path.is_dir()
    assert {version.digest for version in store.versions()} == {versions[number].digest for number in (0, 3, 4)}
    in_use.clear()
    add(store, numbered(tmp_path / "m5", 5))
    assert not versions[0].path.exists()


def test_versions_that_served_are_pruned_after_those_that_never_did(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=10)
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(5)]
    for version in versions[:3]:
        store.make_current(version)

    assert store.prune(4) == [versions[3]]
    assert [version.digest for version in store.prune(2)] == [versions[4].digest, versions[0].digest]
    assert store.prune(0) == []


def test_current_and_previous_are_never_pruned(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))
    store.make_current(one)
    store.make_current(two)

    assert store.prune(0) == []

    assert one.path.is_dir() and two.path.is_dir()


def test_too_few_versions_to_keep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_versions = 2: 3 or more"):
        Store(tmp_path / "models", keep_versions=2)
