"""What can be sent besides archives: directories with what no package holds, descriptors of any kind."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from shmserve.daemon.store import ArchiveRefused
from tests.support.archives.packages import write_package
from tests.support.archives.taking import Take, ingest_here
from tests.support.archives.tar_bytes import (
    BASE,
    tar,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_a_link_in_a_directory_is_refused_with_a_remedy(take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "model")
    (model / "weights" / "link.bin").symlink_to("/etc/passwd")

    with pytest.raises(ArchiveRefused, match=r"'weights/link.bin' is a symbolic link.*cp -rL"):
        take(model)

    assert not (tmp_path / "staging").exists()


def test_a_linked_directory_is_not_entered(take: Take, tmp_path: Path) -> None:
    write_package(tmp_path / "secret")
    (write_package(tmp_path / "model") / "sub").symlink_to(tmp_path / "secret")

    with pytest.raises(ArchiveRefused, match="'sub' is a symbolic link"):
        take(tmp_path / "model")


def test_a_fifo_a_socket_and_a_device_in_a_directory_are_refused(take: Take, tmp_path: Path) -> None:
    for kind in ("FIFO", "socket"):
        model = write_package(tmp_path / kind)
        if kind == "FIFO":
            os.mkfifo(model / "x")
        else:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(model / "x"))
        with pytest.raises(ArchiveRefused, match=f"'x' is a {kind}"):
            take(model)


def test_a_directory_with_too_many_files_is_refused(take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "model", {f"{number}": b"" for number in range(1025)})

    with pytest.raises(ArchiveRefused, match="more than 1024 files"):
        take(model)


def test_a_directory_of_more_bytes_than_allowed_is_refused_before_it_is_copied(take: Take, tmp_path: Path) -> None:
    with open(write_package(tmp_path / "model") / "sparse", "wb") as file:
        file.truncate(1 << 42)

    with pytest.raises(ArchiveRefused, match="'sparse' has 4398046511104 bytes"):
        take(tmp_path / "model")


def test_a_bad_name_in_a_directory_is_refused(take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "model")
    (model / "a\nb").write_bytes(b"")

    with pytest.raises(ArchiveRefused, match="control or invisible"):
        take(model)


def test_an_empty_directory_is_refused(take: Take, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    with pytest.raises(ArchiveRefused, match="the package contains no files"):
        take(tmp_path / "model")


def test_a_file_that_the_daemon_may_not_read_is_named(take: Take, tmp_path: Path) -> None:
    (write_package(tmp_path / "model") / "policy.py").chmod(0)
    if os.access(tmp_path / "model" / "policy.py", os.R_OK):
        pytest.skip("root may read every file")

    with pytest.raises(ArchiveRefused, match=r"'policy.py' cannot be read: Permission denied"):
        take(tmp_path / "model")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "path", "write only"])
def test_a_descriptor_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(tar(BASE))
    others: list[int] = []
    match kind:
        case "pipe":
            descriptor, other = os.pipe()
            others.append(other)
        case "socket":
            descriptor, other = (end.detach() for end in socket.socketpair())
            others.append(other)
        case "device":
            descriptor = os.open("/dev/zero", os.O_RDONLY)
        case "path":
            descriptor = os.open(tmp_path / "sent", os.O_PATH)
        case _:
            descriptor = os.open(tmp_path / "sent", os.O_WRONLY)
    try:
        with pytest.raises(ArchiveRefused, match=r"neither a directory nor a regular file|cannot be read"):
            asyncio.run(ingest_here(descriptor, tmp_path / "staging"))
    finally:
        for each in (descriptor, *others):
            os.close(each)

    assert not (tmp_path / "staging").exists()
