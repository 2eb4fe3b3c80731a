"""The store of versions: damage is noticed, told and repaired."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shmserve.daemon.store import VersionDamaged
from tests.support.archives.packages import FILES, content_of, numbered, write_package
from tests.support.archives.previous_version import previous
from tests.support.archives.stores import Open, add, entries, expected_entries, good

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


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
    assert "served" not in store.get(two).metadata


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


def test_a_check_that_is_cancelled_stops_reading(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    version = add(store, write_package(tmp_path / "arm", {f"{number}.bin": b"weights" for number in range(8)}))
    seen = list[int]()

    async def cancel() -> None:
        loop, go_on = asyncio.get_running_loop(), threading.Event()

        def read(done: int) -> None:
            seen.append(done)
            loop.call_soon_threadsafe(checking.cancel)
            loop.call_soon_threadsafe(loop.call_later, 0.05, go_on.set)
            go_on.wait()

        checking = asyncio.ensure_future(store.check(version, read))
        with pytest.raises(asyncio.CancelledError):
            await checking

    asyncio.run(cancel())

    assert len(seen) == 1


def test_sending_a_damaged_version_again_repairs_it(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    package = write_package(tmp_path / "arm")
    version = add(store, package, note="whole")
    store.make_current(version, device="cpu")
    _flip(_writable(version.path) / "policy.py")

    add(store, package)

    assert content_of(version.path) == FILES
    assert good(store) == store.current() == store.get(version)
    assert (store.get(version).note, dict(store.get(version).metadata)) == ("whole", {"device": "cpu"})
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

        now = [version.digest if version else None for version in (store.current(), previous(store))]
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
    assert store.current() is None and "is no longer kept here" in store.problems[0]
    assert served is not None and served.digest == one.digest
    store.make_current(served)
    assert store.problems == open_store().problems + store.problems


def test_foreign_files_in_the_store_are_left_alone(open_store: Open, tmp_path: Path) -> None:
    open_store()
    versions = tmp_path / "models" / "versions"
    write_package(versions / "mine")
    (versions / ("0" * 64)).symlink_to(tmp_path)

    store = open_store()

    assert store.versions() == [] and (versions / "mine" / "policy.py").exists()
