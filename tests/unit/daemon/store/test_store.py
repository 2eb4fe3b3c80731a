"""The store of versions: what it keeps, and what it says of it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from shmserve.daemon.store import ArchiveRefused, BytesIngested, Store, StoredVersion, StoreUnavailable
from shmserve.daemon.store.directory import StoreDirectory
from shmserve.errors import ModelPackageError
from shmserve.package_files import content_version
from tests.support.archives.packages import FILES, content_of, numbered, opened, write_package
from tests.support.archives.previous_version import previous
from tests.support.archives.stores import Open, add, entries, expected_entries, good
from tests.support.archives.tar_bytes import BASE, member, packed, tar

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_a_package_is_kept_under_its_content_address(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    package = write_package(tmp_path / "arm")

    version = add(store, package, "arm", uid=1000, note="first try")

    assert version.version == content_version(package) == content_version(version.path)
    assert version.path == tmp_path / "models" / "versions" / version.digest
    assert content_of(version.path) == FILES
    assert (version.source, version.uid, version.note) == ("arm", 1000, "first try")
    assert version.size_bytes == sum(map(len, FILES.values()))
    assert entries(tmp_path) == expected_entries(store)
    assert store.current() is None and previous(store) is None


def test_a_package_without_a_name_is_called_by_its_path(open_store: Open, tmp_path: Path) -> None:
    assert add(open_store(), write_package(tmp_path / "arm")).source == str(tmp_path / "arm")


def test_identical_content_is_kept_once_with_the_last_note(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    package = write_package(tmp_path / "arm")
    first = add(store, package, "arm", note="one")
    add(store, numbered(tmp_path / "other", 1))
    store.set_metadata(first, device="cuda:0")

    again = add(store, package, "arm again", note="two")

    assert again.digest == first.digest and again.path.stat().st_ino == first.path.stat().st_ino
    assert (again.source, again.note, dict(again.metadata)) == ("arm again", "two", {"device": "cuda:0"})
    assert store.versions()[0].digest == first.digest
    assert add(store, package).note == "two"


def test_versions_are_found_again_after_a_restart(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    versions = [add(store, numbered(tmp_path / f"m{number}", number), note=str(number)) for number in range(3)]
    store.make_current(versions[0], device="cpu")
    store.make_current(versions[2])
    store.set_metadata(versions[2], served=12)
    before = store.versions(), store.current(), previous(store)

    store = open_store()

    assert (store.versions(), store.current(), previous(store)) == before
    assert before[1] is not None and before[1].metadata == {"served": 12}
    assert before[2] is not None and before[2].metadata == {"device": "cpu"}
    assert store.problems == []
    assert good(store) == store.current()


def test_kept_files_are_read_only(open_store: Open, tmp_path: Path) -> None:
    version = add(open_store(), write_package(tmp_path / "arm"))

    assert {path.stat().st_mode & 0o222 for path in (version.path, *version.path.rglob("*"))} == {0}
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o700


def test_an_examination_can_refuse_a_package_by_the_name_of_its_sender(open_store: Open, tmp_path: Path) -> None:
    def examine(path: Path) -> int:
        if not (path / "model.toml").exists():
            raise ModelPackageError(f"{path} holds no model.toml")
        return 0

    store = open_store(examine=examine)

    with pytest.raises(ModelPackageError, match=r"^arm\.tar holds no model.toml$"):
        add(store, write_package(tmp_path / "arm", {"policy.py": b""}), "arm.tar")

    assert store.versions() == [] and entries(tmp_path) == set()


def test_a_refused_archive_changes_nothing(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.make_current(add(store, write_package(tmp_path / "arm")))
    before = store.versions(), store.current(), entries(tmp_path)
    (tmp_path / "bad.tar").write_bytes(tar(BASE, member(b"../evil.py")))

    with pytest.raises(ArchiveRefused, match="goes up"):
        add(store, tmp_path / "bad.tar")

    assert (store.versions(), store.current(), entries(tmp_path)) == before


def test_the_adder_gets_the_progress(open_store: Open, tmp_path: Path) -> None:
    told: list[BytesIngested] = []
    (tmp_path / "arm.tgz").write_bytes(packed(tar(BASE)))

    add(open_store(), tmp_path / "arm.tgz", progress=told.append)

    assert told and told[-1].total_bytes == (tmp_path / "arm.tgz").stat().st_size


def test_a_listener_is_notified_when_the_package_is_complete_and_may_fail(open_store: Open, tmp_path: Path) -> None:
    order: list[str] = []

    def examine(path: Path) -> int:
        order.append("examined")
        return 0

    store = open_store(examine=examine)
    package = write_package(tmp_path / "arm")

    add(store, package, received=lambda: order.append("received"))
    with pytest.raises(ZeroDivisionError):
        add(store, numbered(tmp_path / "m", 1), progress=lambda progress: print(1 // 0))
    with pytest.raises(ZeroDivisionError):
        add(store, numbered(tmp_path / "m", 1), received=lambda: print(1 // 0))

    assert order == ["received", "examined"]
    assert entries(tmp_path) == expected_entries(store) and len(store.versions()) == 1


@pytest.mark.fault("T83")
def test_twenty_at_once_are_all_kept_and_identical_ones_once(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=20)
    packages = [numbered(tmp_path / f"m{number}", number // 2) for number in range(20)]

    async def all_at_once() -> list[StoredVersion]:
        descriptors = [os.open(package, os.O_RDONLY) for package in packages]
        try:
            return await asyncio.gather(*(store.add(descriptor) for descriptor in descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    versions = asyncio.run(all_at_once())

    assert [version.version for version in versions] == [content_version(package) for package in packages]
    assert len(store.versions()) == 10
    assert entries(tmp_path) == expected_entries(store)


def test_cancelled_adds_leave_nothing_or_a_whole_version(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=20)
    packages = [numbered(tmp_path / f"m{number}", number) for number in range(8)]

    async def cancel_in_the_middle() -> None:
        for number, package in enumerate(packages):
            with opened(package) as descriptor:
                adding = asyncio.create_task(store.add(descriptor))
                await asyncio.wait((adding,), timeout=0.03 * number)
                adding.cancel()
                await asyncio.wait((adding,))

    asyncio.run(cancel_in_the_middle())

    assert entries(tmp_path) == expected_entries(store)
    for version in store.versions():
        asyncio.run(store.check(version))


def test_looking_never_waits_for_a_package_that_is_being_examined(open_store: Open, tmp_path: Path) -> None:
    examined, looked = threading.Event(), threading.Event()

    def examine(path: Path) -> int:
        examined.set()
        assert looked.wait(30)
        return 0

    store = open_store(examine=examine)

    async def look() -> StoredVersion:
        with opened(write_package(tmp_path / "arm")) as descriptor:
            adding = asyncio.create_task(store.add(descriptor))
            while not examined.is_set():
                await asyncio.sleep(0.005)
            assert store.versions() == [] and store.current() is None
            looked.set()
            return await adding

    assert asyncio.run(look()) == store.versions()[0]


def test_closing_waits_until_the_files_of_an_old_version_are_removed(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, go_on, remove_trees = threading.Event(), threading.Event(), StoreDirectory.remove_trees

    def slowly(directory: StoreDirectory, paths: Sequence[Path]) -> None:
        removing.set()
        go_on.wait()
        remove_trees(directory, paths)

    monkeypatch.setattr(StoreDirectory, "remove_trees", slowly)
    store = open_store(keep_versions=3)
    for number in range(3):
        add(store, numbered(tmp_path / f"m{number}", number))

    async def close_meanwhile() -> None:
        with opened(numbered(tmp_path / "m3", 3)) as descriptor:
            await store.add(descriptor)  # does not wait for it
        removing.wait()
        closing = threading.Thread(target=store.close)
        closing.start()
        with pytest.raises(StoreUnavailable, match="used by another daemon"):
            Store(store.directory).open()
        go_on.set()
        closing.join()

    asyncio.run(close_meanwhile())

    assert len(store.versions()) == 3 and entries(tmp_path) == expected_entries(store)


def test_files_that_were_not_removed_before_the_store_was_closed_go_at_its_next_start(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store(keep_versions=3)
    for number in range(3):
        add(store, numbered(tmp_path / f"m{number}", number))
    gone = store._retire_surplus(2, None)[1]
    store.close()

    store._remove(gone)

    assert [path.name for path in gone] == [name for name in entries(tmp_path) if name.startswith("removing-")]
    store.open()
    assert entries(tmp_path) == expected_entries(store)
