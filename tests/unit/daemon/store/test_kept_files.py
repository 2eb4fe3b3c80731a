"""A file that a kept version has already: shared with it, if it has the same bytes now, and written otherwise."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.daemon.store import ArchiveRefused, PackageLimits, Store, StoredVersion, StoreUnavailable, package_writer
from shmserve.daemon.store.kept_files import SHARED_BYTES, KeptFile, KeptFiles
from shmserve.daemon.store.overlapped_copy import OVERLAPPED_BYTES
from tests.support.archives.packages import content_of, write_package
from tests.support.archives.stores import Open, add
from tests.support.archives.tar_bytes import member, packed, tar

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

_WEIGHTS = os.urandom(SHARED_BYTES + 100)
_LARGE = os.urandom(1000) * (OVERLAPPED_BYTES // 1000 + 1)


@pytest.fixture(autouse=True)
def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is shared by a hard link, wherever the tests run; tests/integration/store/test_store_reflinks.py has the others."""
    monkeypatch.setattr(package_writer, "reflink", lambda source, target: False)


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


@pytest.fixture
def first(store: Store, tmp_path: Path) -> StoredVersion:
    return add(store, _package(tmp_path, "first", _WEIGHTS))


def _package(tmp_path: Path, name: str, weights: bytes, file: str = "weights.bin") -> Path:
    return write_package(tmp_path / name, {"policy.py": name.encode(), file: weights})


def _are_shared(one: StoredVersion, other: StoredVersion, name: str = "weights.bin") -> bool:
    return os.path.samefile(one.path / name, other.path / name)


def _check_whole(store: Store, *versions: StoredVersion) -> None:
    for version in versions:
        asyncio.run(store.check(version))


def _changed(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _damage(path: Path, position: int) -> None:
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(bytes([path.read_bytes()[position] ^ 1]))
    path.chmod(0o400)


@pytest.mark.parametrize("packing", ["directory", "tar", "gzip"])
def test_a_file_of_a_kept_version_is_shared_and_not_written(
    packing: str, store: Store, first: StoredVersion, tmp_path: Path
) -> None:
    sent = _package(tmp_path, "second", _WEIGHTS)
    if packing != "directory":
        content = tar(member(b"policy.py", b"second"), member(b"weights.bin", _WEIGHTS))
        sent = tmp_path / "sent"
        sent.write_bytes(packed(content) if packing == "gzip" else content)

    second = add(store, sent)

    assert second.digest != first.digest and _are_shared(first, second)
    assert content_of(second.path) == {"policy.py": b"second", "weights.bin": _WEIGHTS}
    assert not os.path.samefile(first.path / "policy.py", second.path / "policy.py")
    _check_whole(store, first, second)


def test_a_file_is_shared_whatever_its_name_is(store: Store, first: StoredVersion, tmp_path: Path) -> None:
    second = add(store, _package(tmp_path, "second", _WEIGHTS, "actor/new.bin"))

    assert os.path.samefile(first.path / "weights.bin", second.path / "actor" / "new.bin")
    assert oct((second.path / "actor" / "new.bin").stat().st_mode)[-3:] == "400"
    _check_whole(store, second)


def test_a_small_file_is_a_copy_of_its_own(store: Store, tmp_path: Path) -> None:
    small = _WEIGHTS[: SHARED_BYTES - 1]

    first, second = (add(store, _package(tmp_path, name, small)) for name in ("first", "second"))

    assert not _are_shared(first, second)


@pytest.mark.parametrize("content", [_WEIGHTS, _LARGE], ids=["written by one thread", "written by several"])
@pytest.mark.parametrize("position", [0, len(_WEIGHTS) // 2, -1], ids=["first", "middle", "last"])
def test_a_file_that_differs_in_one_byte_is_written(
    position: int, content: bytes, store: Store, tmp_path: Path
) -> None:
    position %= len(content)
    first = add(store, _package(tmp_path, "first", content))

    second = add(store, _package(tmp_path, "second", _changed(content, position)))

    assert (second.path / "weights.bin").read_bytes() == _changed(content, position)
    assert (first.path / "weights.bin").read_bytes() == content
    _check_whole(store, first, second)


def test_of_several_kept_files_of_one_size_the_same_one_is_shared(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep_versions=10)
    contents = [_LARGE, _changed(_LARGE, len(_LARGE) - 1), _changed(_LARGE, 0), _changed(_LARGE, 2 << 20)]
    versions = [add(store, _package(tmp_path, f"m{number}", content)) for number, content in enumerate(contents)]

    for number, content in enumerate(contents):
        again = add(store, _package(tmp_path, f"again-{number}", content))
        assert [_are_shared(again, version) for version in versions].index(True) == number
        _check_whole(store, again)


@pytest.mark.parametrize("position", [0, len(_WEIGHTS) - 1], ids=["first", "last"])
def test_a_damaged_file_is_not_shared(position: int, store: Store, first: StoredVersion, tmp_path: Path) -> None:
    _damage(first.path / "weights.bin", position)

    second = add(store, _package(tmp_path, "second", _WEIGHTS))

    assert not _are_shared(first, second)
    _check_whole(store, second)


def test_damage_that_is_sent_is_not_taken_for_the_recorded_file(
    store: Store, first: StoredVersion, tmp_path: Path
) -> None:
    _damage(first.path / "weights.bin", 5)

    second = add(store, _package(tmp_path, "second", _changed(_WEIGHTS, 5)))

    assert not _are_shared(first, second)
    assert (second.path / "weights.bin").read_bytes() == _changed(_WEIGHTS, 5)
    _check_whole(store, second)


def test_sending_a_version_again_repairs_it_beside_one_that_shared_its_file(
    store: Store, first: StoredVersion, tmp_path: Path
) -> None:
    second = add(store, _package(tmp_path, "second", _WEIGHTS))
    _damage(first.path / "weights.bin", 5)

    repaired = [add(store, tmp_path / name) for name in ("first", "second")]

    _check_whole(store, *repaired)
    assert [version.digest for version in repaired] == [first.digest, second.digest]
    assert _are_shared(repaired[0], repaired[1])


@pytest.mark.parametrize("fault", ["writable", "symbolic link", "removed"])
def test_a_kept_file_that_is_not_as_the_store_wrote_it_is_not_shared(
    fault: str, store: Store, first: StoredVersion, tmp_path: Path
) -> None:
    kept = first.path / "weights.bin"
    if fault == "writable":
        kept.chmod(0o600)
    else:
        first.path.chmod(0o700)
        kept.unlink()
        if fault == "symbolic link":
            kept.symlink_to(tmp_path / "first" / "weights.bin")

    second = add(store, _package(tmp_path, "second", _WEIGHTS))

    assert not kept.exists() or not _are_shared(first, second)
    assert not (second.path / "weights.bin").is_symlink()
    _check_whole(store, second)


def test_a_version_is_whole_after_the_removal_of_the_one_that_its_file_came_from(
    store: Store, first: StoredVersion, tmp_path: Path
) -> None:
    second = add(store, _package(tmp_path, "second", _WEIGHTS))
    store.make_current(second)
    others = [add(store, _package(tmp_path, f"m{number}", b"%d" % number)) for number in range(5)]

    assert first.digest not in {version.digest for version in store.versions()} and not first.path.exists()
    _check_whole(store, second, others[-1])


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.ENOENT], ids=errno.errorcode.get)
def test_a_file_that_cannot_have_a_further_link_is_written(
    number: int, store: Store, first: StoredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)

    second = add(store, _package(tmp_path, "second", _WEIGHTS))

    assert not _are_shared(first, second)
    _check_whole(store, first, second)


def test_a_disk_that_fails_while_a_file_is_shared_leaves_the_old_state(
    store: Store, first: StoredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fail)

    with pytest.raises(StoreUnavailable, match="make room"):
        add(store, _package(tmp_path, "second", _WEIGHTS))

    assert store.versions() == [first]
    assert len(os.listdir(first.path.parent)) == 2


def test_shared_bytes_count_against_the_limit_of_a_package(open_store: Open, tmp_path: Path) -> None:
    store = open_store(limits=PackageLimits(total_bytes=2 * len(_WEIGHTS)))
    first = add(store, _package(tmp_path, "first", _WEIGHTS))
    sent = write_package(tmp_path / "second", {f"{name}.bin": _WEIGHTS for name in "abc"})

    with pytest.raises(ArchiveRefused, match="a package has at most"):
        add(store, sent)

    assert store.versions() == [first]


def test_the_progress_counts_shared_bytes(store: Store, first: StoredVersion, tmp_path: Path) -> None:
    sent, seen = _package(tmp_path, "second", _WEIGHTS), list[tuple[int, int | None]]()

    add(store, sent, progress=lambda progress: seen.append((progress.read_bytes, progress.total_bytes)))

    assert seen[-1] == (len(_WEIGHTS) + len("second"),) * 2


def test_a_kept_file_that_changes_after_it_was_compared_is_no_part_of_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(_WEIGHTS)
    path.chmod(0o400)
    kept = KeptFiles([KeptFile(str(path), len(_WEIGHTS), "")])

    def received() -> Iterator[bytes]:
        yield _WEIGHTS[:1000]
        yield _WEIGHTS[1000:-1] + b"x"

    with kept.compared(len(_WEIGHTS), received()) as comparison:
        assert comparison is not None and not comparison.is_same and comparison.same_bytes == 1000
        _damage(path, 5)
        with pytest.raises(OSError, match="was changed while it was compared"):
            list(comparison.received())


@pytest.mark.parametrize("sent", [_WEIGHTS[:-1], _WEIGHTS + b"x", b""], ids=["shorter", "longer", "empty"])
def test_a_file_of_another_length_than_announced_is_not_the_kept_one(sent: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(_WEIGHTS)
    path.chmod(0o400)
    sha256 = hashlib.sha256(_WEIGHTS).hexdigest()

    with KeptFiles([KeptFile(str(path), len(_WEIGHTS), sha256)]).compared(len(_WEIGHTS), [sent]) as comparison:
        assert comparison is not None and not comparison.is_same
        assert b"".join(map(bytes, comparison.received())) == sent
