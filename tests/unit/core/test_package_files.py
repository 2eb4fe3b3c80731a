"""The content address of a package: what counts, what does not, what no package holds."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from shmserve.package_files import content_version, package_files
from tests.support.archives.packages import FILES, write_package


def test_the_address_is_the_sha256_over_names_and_contents(tmp_path: Path) -> None:
    write_package(tmp_path, {"b.py": b"two", "a/c": b"one"})
    whole = b"a/c\0" + hashlib.sha256(b"one").digest() + b"b.py\0" + hashlib.sha256(b"two").digest()

    assert content_version(tmp_path) == hashlib.sha256(whole).hexdigest()[:16]


def test_a_model_package_has_the_same_address(tmp_path: Path) -> None:
    write_package(tmp_path, {**FILES, "model.sig": b"", "__pycache__/policy.pyc": b""})

    assert ModelPackage.read(tmp_path).version == content_version(tmp_path)


def test_caches_empty_directories_and_the_signature_do_not_count(tmp_path: Path) -> None:
    before = content_version(write_package(tmp_path))

    write_package(tmp_path, {"__pycache__/policy.pyc": b"", "weights/__pycache__/x": b"", "model.sig": b"x"})
    (tmp_path / "empty").mkdir()

    assert content_version(tmp_path) == before


@pytest.mark.parametrize("name", ["policy.py", "weights/model.sig", "weights/empty.bin", "new"])
def test_every_other_byte_counts(name: str, tmp_path: Path) -> None:
    before = content_version(write_package(tmp_path))

    write_package(tmp_path, {name: b"another"})

    assert content_version(tmp_path) != before


def test_modes_and_times_do_not_count(tmp_path: Path) -> None:
    before = content_version(write_package(tmp_path))

    os.utime(tmp_path / "policy.py", (1, 1))
    (tmp_path / "policy.py").chmod(0o700)

    assert content_version(tmp_path) == before


def test_a_package_may_be_reached_through_a_link_but_hold_none(tmp_path: Path) -> None:
    package = write_package(tmp_path / "arm")
    (tmp_path / "latest").symlink_to(package)
    assert content_version(tmp_path / "latest") == content_version(package)

    (package / "weights" / "link").symlink_to("actor.bin")

    with pytest.raises(ModelPackageError, match=r"arm: 'weights/link' is a symbolic link.*cp -rL"):
        content_version(package)


def test_a_link_that_takes_a_files_place_in_the_last_moment_is_not_followed(tmp_path: Path) -> None:
    package = write_package(tmp_path / "arm", {"x": b"plain"})
    (tmp_path / "secret").write_bytes(b"secret")
    ended = threading.Event()

    def exchange() -> None:
        while not ended.is_set():
            (tmp_path / "plain").write_bytes(b"plain")
            os.replace(tmp_path / "plain", package / "x")
            (tmp_path / "link").symlink_to(tmp_path / "secret")
            os.replace(tmp_path / "link", package / "x")

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    found: set[str] = set()
    at_the_last_moment = False  # looked at as a file, opened as a link
    try:
        while not (found and at_the_last_moment):
            try:
                found.update(file.sha256 for file in package_files(package))
            except ModelPackageError as error:
                at_the_last_moment |= "cannot be read: Too many levels of symbolic links" in str(error)
    finally:
        ended.set()
        exchanging.join()

    assert found == {hashlib.sha256(b"plain").hexdigest()}


def test_other_kinds_of_files_are_refused_without_opening_them(tmp_path: Path) -> None:
    package = write_package(tmp_path / "arm")
    os.mkfifo(package / "fifo")
    with pytest.raises(ModelPackageError, match="'fifo' is a FIFO"):
        package_files(package)
    (package / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(package / "s"))
    with pytest.raises(ModelPackageError, match="'s' is a socket"):
        package_files(package)


def test_an_unreadable_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="nothing cannot be read: No such file"):
        package_files(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelPackageError, match="file cannot be read: Not a directory"):
        package_files(tmp_path / "file")


def test_a_name_that_no_archive_may_hold_is_refused_here_too(tmp_path: Path) -> None:
    write_package(tmp_path, {"a\nb": b""})

    with pytest.raises(ModelPackageError, match=r"'a\\nb' has a control or invisible character"):
        package_files(tmp_path)
