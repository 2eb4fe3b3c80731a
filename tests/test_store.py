"""The store of versions: what it keeps, what it says of it, and that damage is noticed."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.store import (
    ArchiveRefused,
    Limits,
    Progress,
    Store,
    StoredVersion,
    StoreUnavailable,
    VersionDamaged,
    VersionUnknown,
)
from shmserve.errors import ModelPackageError
from shmserve.package_files import content_version
from tests.archives.packages import FILES, content_of, numbered, opened, write_package
from tests.archives.tar_bytes import BASE, member, packed, tar

Open = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Opens the store in tmp_path/models; the one opened before is closed."""
    opened_stores: list[Store] = []

    def open_(**settings: Any) -> Store:
        for store in opened_stores:
            store.close()
        store = Store(tmp_path / "models", **settings)
        opened_stores.append(store)
        store.open()
        return store

    yield open_
    for store in opened_stores:
        store.close()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    gc.collect()  # what earlier tests left to be collected is none of ours
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the lock of a store that its fixture closes later


def add(store: Store, path: Path, name: str | None = None, **settings: Any) -> StoredVersion:
    with opened(path) as descriptor:
        return asyncio.run(store.add(descriptor, name, **settings))


def good(store: Store) -> StoredVersion | None:
    return asyncio.run(store.last_good())


def entries(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "models" / "versions"))


def expected_entries(store: Store) -> set[str]:
    return {name for version in store.versions() for name in (version.digest, version.digest + ".json")}


# Keeping


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
    assert store.current() is None and store.previous() is None


def test_a_package_without_a_name_is_called_by_its_path(open_store: Open, tmp_path: Path) -> None:
    assert add(open_store(), write_package(tmp_path / "arm")).source == str(tmp_path / "arm")


def test_a_directory_a_tar_and_a_tar_with_a_folder_are_the_same_version(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    write_package(tmp_path / "arm")
    subprocess.run(["tar", "-C", tmp_path / "arm", "-cf", tmp_path / "plain.tar", "."], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "folder.tgz", "arm"], check=True)

    versions = {add(store, tmp_path / name).digest for name in ("arm", "plain.tar", "folder.tgz")}

    assert versions == {store.versions()[0].digest}
    assert entries(tmp_path) == expected_entries(store)


def test_identical_content_is_kept_once_with_the_last_note(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    package = write_package(tmp_path / "arm")
    first = add(store, package, "arm", note="one")
    add(store, numbered(tmp_path / "other", 1))
    store.record(first, device="cuda:0")

    again = add(store, package, "arm again", note="two")

    assert again.digest == first.digest and again.path.stat().st_ino == first.path.stat().st_ino
    assert (again.source, again.note, dict(again.facts)) == ("arm again", "two", {"device": "cuda:0"})
    assert store.versions()[0].digest == first.digest
    assert add(store, package).note == "two"


def test_versions_are_found_again_after_a_restart(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    versions = [add(store, numbered(tmp_path / f"m{number}", number), note=str(number)) for number in range(3)]
    store.make_current(versions[0], device="cpu")
    store.make_current(versions[2])
    store.record(versions[2], served=12)
    store.pin(versions[1])
    before = store.versions(), store.current(), store.previous()

    store = open_store()

    assert (store.versions(), store.current(), store.previous()) == before
    assert before[1] is not None and before[1].facts == {"served": 12}
    assert before[2] is not None and before[2].facts == {"device": "cpu"}
    assert store.problems == []
    assert good(store) == store.current()


def test_kept_files_are_read_only(open_store: Open, tmp_path: Path) -> None:
    version = add(open_store(), write_package(tmp_path / "arm"))

    assert {path.stat().st_mode & 0o222 for path in (version.path, *version.path.rglob("*"))} == {0}
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o700


def test_what_the_owner_says_of_a_package_can_refuse_it_by_its_own_name(open_store: Open, tmp_path: Path) -> None:
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


def test_progress_reaches_whoever_adds(open_store: Open, tmp_path: Path) -> None:
    told: list[Progress] = []
    (tmp_path / "arm.tgz").write_bytes(packed(tar(BASE)))

    add(open_store(), tmp_path / "arm.tgz", progress=told.append)

    assert told and told[-1].total_bytes == (tmp_path / "arm.tgz").stat().st_size


def test_whoever_listens_hears_when_all_of_it_is_here_and_may_fail(open_store: Open, tmp_path: Path) -> None:
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


# Current


def test_current_and_previous_follow_one_another(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))

    def now() -> list[str | None]:
        return [version.version if version else None for version in (store.current(), store.previous())]

    store.make_current(one.version)
    assert now() == [one.version, None]
    store.make_current(two)
    assert now() == [two.version, one.version]
    store.make_current(two, device="cuda:0")
    assert now() == [two.version, one.version] and store.get(two).facts == {"device": "cuda:0"}
    store.make_current(one)
    assert now() == [one.version, two.version]


def test_a_version_that_is_not_kept_cannot_be_current(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    store.remove(version)

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


def test_facts_are_added_replaced_and_forgotten(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    store.record(version, device="cpu", served=1)

    store.record(version.version, served=2, device=None)

    assert open_store().get(version).facts == {"served": 2}
    with pytest.raises((TypeError, ValueError)):
        store.record(version, weird=float("nan"))
    with pytest.raises((TypeError, ValueError)):
        store.record(version, weird=object())


# Pruning


def test_the_oldest_go_first_and_current_previous_and_pinned_stay(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=4)
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(4)]
    store.make_current(versions[0])
    store.make_current(versions[1])
    store.pin(versions[2])

    versions += [add(store, numbered(tmp_path / f"m{number}", number)) for number in (4, 5)]

    kept = {store_version.digest for store_version in store.versions()}
    assert kept == {versions[number].digest for number in (0, 1, 2, 5)}
    assert entries(tmp_path) == expected_entries(store)


def test_a_version_whose_files_an_engine_reads_stays(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=3)
    versions = [add(store, numbered(tmp_path / "m0", 0))]
    in_use = {versions[0].version}
    store.in_use = lambda: in_use

    versions += [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(1, 5)]

    assert versions[0].path.is_dir()
    assert {version.digest for version in store.versions()} == {versions[number].digest for number in (0, 3, 4)}
    in_use.clear()
    add(store, numbered(tmp_path / "m5", 5))
    assert not versions[0].path.exists()


def test_what_was_served_goes_after_what_never_was(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=10)
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(5)]
    for version in versions[:3]:
        store.make_current(version)

    assert store.prune(4) == [versions[3]]
    assert [version.digest for version in store.prune(2)] == [versions[4].digest, versions[0].digest]
    assert store.prune(0) == []


def test_current_and_previous_cannot_be_removed(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    store.make_current(version)

    with pytest.raises(ValueError, match="is current or previous: it stays"):
        store.remove(version)

    assert version.path.is_dir()


def test_too_few_versions_to_keep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_versions = 2: 3 or more"):
        Store(tmp_path / "models", keep_versions=2)


# Damage


def _writable(path: Path) -> Path:
    for each in (path, *path.rglob("*")):
        each.chmod(0o700 if each.is_dir() else 0o600)
    return path


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: _flip(path / "weights" / "actor.bin"), "'weights/actor.bin' was changed"),
        (lambda path: (path / "policy.py").unlink(), "'policy.py' is missing"),
        (lambda path: (path / "evil.py").write_bytes(b""), "'evil.py' was added"),
        (lambda path: (path / "evil.py").symlink_to("/etc/passwd"), "'evil.py' is a symbolic link"),
        (lambda path: (path / "policy.py").replace(path / "other.py"), "'other.py' was added"),
        (shutil.rmtree, "cannot be read"),
    ],
)
def test_a_damaged_version_is_told_and_the_one_before_it_is_served(
    damage: Callable[[Path], None], said: str, open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))
    store.make_current(one)
    store.make_current(two)
    damage(_writable(two.path))

    with pytest.raises(VersionDamaged, match=said):
        asyncio.run(store.check(two))
    served = good(store)

    assert served is not None and served.digest == one.digest
    assert any(two.version in problem and said in problem for problem in store.problems)
    assert "served" not in store.get(two).facts


def test_the_last_good_is_none_when_nothing_served_is_whole(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    assert good(store) is None
    version = add(store, write_package(tmp_path / "arm"))
    add(store, numbered(tmp_path / "tried", 1))
    store.make_current(version)
    _flip(_writable(version.path) / "policy.py")

    assert good(store) is None


def test_a_planted_cache_is_removed_before_it_could_run(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"))
    for directory in (version.path, version.path / "weights"):
        directory.chmod(0o700)
        write_package(directory, {"__pycache__/policy.cpython-311.pyc": b"boo"})

    asyncio.run(store.check(version))

    assert not list(version.path.rglob("__pycache__"))
    assert content_of(version.path) == FILES


def test_sending_a_damaged_version_again_repairs_it(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    package = write_package(tmp_path / "arm")
    version = add(store, package, note="whole")
    store.make_current(version, device="cpu")
    _flip(_writable(version.path) / "policy.py")

    add(store, package)

    assert content_of(version.path) == FILES
    assert good(store) == store.current() == store.get(version)
    assert (store.get(version).note, dict(store.get(version).facts)) == ("whole", {"device": "cpu"})
    assert entries(tmp_path) == expected_entries(store)


def test_a_lost_record_costs_what_was_known_and_not_the_version(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm"), "arm")
    store.make_current(version)
    for content in (None, b"", b"{", b"[]", b'{"format": 2}', b"[" * 100_000, b"\xff"):
        record = tmp_path / "models" / "versions" / f"{version.digest}.json"
        record.unlink() if content is None else record.write_bytes(content)

        store = open_store()

        served = good(store)
        assert served is not None and served.digest == version.digest and served.source == "?"
        assert len(store.problems) == 1 and str(record) in store.problems[0]
        record.write_bytes(b"")


def test_a_lost_current_is_known_from_the_records(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    versions = [add(store, numbered(tmp_path / f"m{number}", number)) for number in range(3)]
    store.make_current(versions[0])
    store.make_current(versions[1])
    for content in (b"", b"{", b"[]", b'{"format": 1, "current": 7, "previous": null}', b'{"format": 9}'):
        (tmp_path / "models" / "current").write_bytes(content)

        store = open_store()

        now = [version.digest if version else None for version in (store.current(), store.previous())]
        assert now == [versions[1].digest, versions[0].digest]
        assert len(store.problems) == 1 and good(store) == store.current()


def test_a_current_that_is_gone_falls_to_the_previous(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))
    store.make_current(one)
    store.make_current(two)
    shutil.rmtree(_writable(two.path))

    store = open_store()

    served = good(store)
    assert store.current() is None and "is not kept here any more" in store.problems[0]
    assert served is not None and served.digest == one.digest
    store.make_current(served)
    assert store.problems == open_store().problems + store.problems


def test_what_does_not_belong_to_the_store_is_left_alone(open_store: Open, tmp_path: Path) -> None:
    open_store()
    versions = tmp_path / "models" / "versions"
    write_package(versions / "mine")
    (versions / ("0" * 64)).symlink_to(tmp_path)

    store = open_store()

    assert store.versions() == [] and (versions / "mine" / "policy.py").exists()


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
        lambda: store.record(version, served=1),
        lambda: store.prune(),
    ):
        with pytest.raises(StoreUnavailable, match="is closed"):
            attempt()
    assert entries(tmp_path) == expected_entries(store)


def test_a_state_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
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


# A full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("packing", ["directory", "tar", "gzip"])
def test_a_full_disk_leaves_the_old_state(packing: str, tiny_disk: Path, tmp_path: Path) -> None:
    store = Store(tiny_disk / "models")
    store.open()
    store.make_current(add(store, write_package(tmp_path / "arm")))
    before = store.versions(), store.current(), sorted((tiny_disk / "models").rglob("*"))
    large = write_package(tmp_path / "large", {"policy.py": b"", "weights.bin": os.urandom(5 << 20)})
    if packing != "directory":
        options = "-czf" if packing == "gzip" else "-cf"
        subprocess.run(["tar", options, tmp_path / "large.tar", "-C", large, "."], check=True)
        large = tmp_path / "large.tar"

    with pytest.raises(StoreUnavailable, match=r"5242880 bytes and the state directory \d+ free; make room"):
        add(store, large)

    assert (store.versions(), store.current(), sorted((tiny_disk / "models").rglob("*"))) == before
    add(store, numbered(tmp_path / "small", 1))
    store.close()


def test_a_disk_that_fills_up_while_a_package_is_written_leaves_the_old_state(tiny_disk: Path, tmp_path: Path) -> None:
    store = Store(tiny_disk / "models", limits=Limits(spare_bytes=-(1 << 40)))  # so that it is tried all the same
    store.open()
    store.make_current(add(store, write_package(tmp_path / "arm")))
    before = store.versions(), store.current(), sorted((tiny_disk / "models").rglob("*"))
    large = write_package(tmp_path / "large", {"policy.py": b"", "weights.bin": os.urandom(5 << 20)})

    with pytest.raises(StoreUnavailable, match="No space left on device; make room"):
        add(store, large)

    assert (store.versions(), store.current(), sorted((tiny_disk / "models").rglob("*"))) == before
    store.close()


def test_a_disk_without_a_byte_left_keeps_current_as_it_was(
    tiny_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tiny_disk / "models")
    store.open()
    one, two = (add(store, numbered(tmp_path / f"m{number}", number)) for number in (1, 2))
    store.make_current(one)
    with open(tiny_disk / "ballast", "wb") as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(bytes(1 << 16))
            ballast.flush()

    with caplog.at_level(logging.CRITICAL):
        for attempt in (lambda: store.make_current(two), lambda: store.record(one, served=1), lambda: store.pin(one)):
            with pytest.raises(StoreUnavailable, match="make room"):
                attempt()
    assert store.current() == store.get(one)
    store.close()

    store.open()
    served = good(store)
    assert served is not None and served.digest == one.digest and store.problems == []
    assert json.loads((tiny_disk / "models" / "current").read_text())["current"] == one.digest
    store.close()
