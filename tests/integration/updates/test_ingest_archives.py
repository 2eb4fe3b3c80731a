"""What a sent package is taken from: archives as other tools write them, and directories."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from shmserve.daemon.store import ArchiveRefused, BytesIngested
from shmserve.daemon.store.ingest import IngestedPackage, ingest
from shmserve.package_files import content_digest, content_version, package_files
from tests.support.archives.packages import FILES, content_of, opened, write_package
from tests.support.archives.taking import Take, ingest_here
from tests.support.archives.tar_bytes import (
    BASE,
    directory,
    member,
    pax,
    record,
    tar,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def _same(received: IngestedPackage, files: dict[str, bytes] = FILES) -> bool:
    listed = {file.name: file.size for file in received.files}
    return (
        content_of(received.path) == files
        and listed == {name: len(content) for name, content in files.items()}
        and received.digest == content_digest(package_files(received.path))
    )


@pytest.mark.parametrize("how", ["model", "."])
@pytest.mark.parametrize("packing", [[], ["--gzip"]], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["gnu", "ustar", "pax"])
def test_an_archive_of_gnu_tar_is_accepted(form: str, packing: list[str], how: str, take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "work" / "model")
    where = model.parent if how == "model" else model
    command = ["tar", f"--format={form}", *packing, "-C", str(where), "-cf", str(tmp_path / "model.tar"), how]
    subprocess.run(command, check=True)

    received = take(tmp_path / "model.tar")

    assert _same(received)
    assert received.path == (tmp_path / "staging" / "model" if how == "model" else tmp_path / "staging")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_of_pythons_tarfile_is_accepted(
    mode: Literal["w", "w:gz"], form: Literal[0, 1, 2], take: Take, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "model.tar", mode, format=form) as archive:
        archive.add(write_package(tmp_path / "model"), arcname="")

    assert _same(take(tmp_path / "model.tar"))


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_and_foreign_names_are_taken(form: str, take: Take, tmp_path: Path) -> None:
    files = {"model.toml": b"", "d" * 120 + "/" + "ü" * 120 + ".py": b"1", "模型/権重.bin": b"2", "a b'\"$*.py": b"3"}
    write_package(tmp_path / "model", files)
    subprocess.run(["tar", f"--format={form}", "-C", tmp_path / "model", "-cf", tmp_path / "m.tar", "."], check=True)

    assert _same(take(tmp_path / "m.tar"), files)


def test_a_tar_with_a_large_record_is_taken(take: Take, tmp_path: Path) -> None:
    write_package(tmp_path / "model")
    subprocess.run(["tar", "-b", "1024", "-C", tmp_path / "model", "-cf", tmp_path / "m.tar", "."], check=True)

    assert _same(take(tmp_path / "m.tar"))


def test_an_archive_of_git_is_accepted(take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "model")
    git = ["git", "-C", str(model), "-c", "user.name=robot", "-c", "user.email=robot@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "model"], check=True)
    subprocess.run([*git, "archive", "-o", str(tmp_path / "m.tar.gz"), "HEAD"], check=True)

    assert _same(take(tmp_path / "m.tar.gz"))


def test_a_directory_is_taken_file_by_file(take: Take, tmp_path: Path) -> None:
    received = take(write_package(tmp_path / "model"))

    assert _same(received)
    assert received.digest == content_digest(package_files(tmp_path / "model"))


def test_one_folder_around_the_package_is_taken_off_and_two_are_not(take: Take, tmp_path: Path) -> None:
    assert take(tar(directory(b"m/"), member(b"m/policy.py"))).path == tmp_path / "staging" / "m"
    subprocess.run(["rm", "-r", tmp_path / "staging"], check=True)
    assert take(tar(member(b"a/b/policy.py"), member(b"a/b/c"))).path == tmp_path / "staging" / "a"


def test_an_archive_with_a_file_next_to_the_folder_keeps_the_folder(take: Take, tmp_path: Path) -> None:
    assert take(tar(member(b"weights/a"), member(b"policy.py"))).path == tmp_path / "staging"


def test_caches_and_empty_directories_are_left_out(take: Take, tmp_path: Path) -> None:
    cached = {"__pycache__/policy.pyc": b"boo", "sub/__pycache__/x.pyc": b"boo"}
    model = write_package(tmp_path / "model", {**FILES, **cached})
    (model / "empty").mkdir()
    subprocess.run(["tar", "-C", model, "-cf", tmp_path / "m.tar", "."], check=True)

    received = take(tmp_path / "m.tar")

    assert _same(received)
    assert received.digest == content_digest(package_files(model))


#: A file in the format that macOS keeps attributes in: magic, version, "Mac OS X".
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(140)
OF_MACOS = {
    "._model.toml": APPLE_DOUBLE,
    "weights/._actor.bin": APPLE_DOUBLE + bytes(1 << 20),
    ".DS_Store": b"\x00\x00\x00\x01Bud1",
    "weights/.DS_Store": b"",
    "__MACOSX/weights/._actor.bin": APPLE_DOUBLE,
}


@pytest.mark.parametrize("packing", [[], ["--gzip"]], ids=["plain", "gzip"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_tar_of_a_folder_made_on_macos_is_that_folder(
    prefix: str, packing: list[str], take: Take, tmp_path: Path
) -> None:
    model = write_package(tmp_path / "work" / "model", {**FILES, **OF_MACOS})
    (model.parent / "._model").write_bytes(APPLE_DOUBLE)
    order = [prefix + "._model", prefix + "model"]
    subprocess.run(["tar", *packing, "-C", model.parent, "-cf", tmp_path / "m.tar", *order], check=True)

    received = take(tmp_path / "m.tar")

    assert _same(received) and received.path == tmp_path / "staging" / "model"
    assert received.digest == content_digest(package_files(model))


def test_attribute_records_of_bsdtar_change_nothing(take: Take) -> None:
    attributes = record("LIBARCHIVE.xattr.com.apple.provenance", b"AQAA"), record("SCHILY.xattr.user.x", b"\n\x00=")
    global_header = pax(record("comment", "made by a Mac"), kind=b"g")
    received = take(
        tar(global_header, pax(*attributes), member(b"m/._a", APPLE_DOUBLE), pax(*attributes), member(b"m/a"))
    )

    assert [file.name for file in received.files] == ["a"]


def test_an_archive_from_macos_is_ingested_without_the_files_that_macos_added(take: Take, tmp_path: Path) -> None:
    received = take(write_package(tmp_path / "model", {**FILES, **OF_MACOS}))

    assert _same(received)
    assert content_digest(package_files(tmp_path / "model")) == received.digest
    assert content_version(tmp_path / "model") != content_version(tmp_path / "model", exact=True)


@pytest.mark.parametrize("how", ["directory", "tar", "gzip"])
def test_a_file_of_the_package_that_only_looks_like_one_of_macos_stays(how: str, take: Take, tmp_path: Path) -> None:
    files = {**FILES, "._settings": b"ours", "._": b"", "weights/._short": b"\x00\x05\x16", "DS_Store": b"x"}
    model = write_package(tmp_path / "model", files)
    subprocess.run(["tar", *(["-z"] * (how == "gzip")), "-C", model, "-cf", tmp_path / "m.tar", "."], check=True)

    assert _same(take(model if how == "directory" else tmp_path / "m.tar"), files)


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "symbolic link to another file of the package"])
def test_the_advice_for_links_leads_to_a_tar_that_is_taken(kind: str, take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "model")
    (tmp_path / "elsewhere").write_bytes(b"far")
    if kind == "hard link":
        os.link(model / "policy.py", model / "again.py")
    else:
        (model / "again.py").symlink_to(model / "policy.py" if "another" in kind else tmp_path / "elsewhere")
    command = ["tar", "-C", str(model), "-cf", str(tmp_path / "m.tar"), "."]
    subprocess.run(command, check=True)
    with pytest.raises(ArchiveRefused, match="pack the files themselves: tar --") as refused:
        take(tmp_path / "m.tar")
    advice = re.findall("--[a-z-]+", str(refused.value))

    subprocess.run(["tar", *advice, *command[1:]], check=True)

    assert _same(take(tmp_path / "m.tar"), {**FILES, "again.py": (model / "again.py").read_bytes()})


def test_a_large_file_is_hashed_and_written_completely_and_in_order(take: Take, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(36 << 20) + b"end"
    model = write_package(tmp_path / "model", {"policy.py": b"", "weights.bin": content})
    subprocess.run(["tar", "-C", model, "-czf", tmp_path / "m.tar", "."], check=True)

    for source in (model, tmp_path / "m.tar"):
        received = take(source)
        by_name = {file.name: file for file in received.files}
        assert by_name["weights.bin"].sha256 == hashlib.sha256(content).hexdigest()
        assert _same(received, {"policy.py": b"", "weights.bin": content})
        subprocess.run(["rm", "-rf", tmp_path / "staging"], check=True)


def test_received_files_belong_to_the_daemon_alone(take: Take, tmp_path: Path) -> None:
    received = take(tar(BASE, member(b"weights/a")))

    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in received.staging.rglob("*")}
    assert modes == {"model.toml": "0o400", "policy.py": "0o400", "a": "0o400", "weights": "0o500"}
    assert oct(received.staging.stat().st_mode & 0o7777) == "0o700"


def test_the_offset_of_the_senders_descriptor_is_neither_used_nor_moved(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(tar(BASE))
    with opened(tmp_path / "sent") as descriptor:
        os.lseek(descriptor, 700, os.SEEK_SET)

        received = asyncio.run(ingest_here(descriptor, tmp_path / "staging"))

        assert len(received.files) == 2 and os.lseek(descriptor, 0, os.SEEK_CUR) == 700


def test_progress_is_reported_and_ends_with_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "ingest.before_file=sleep:0.15")
    (tmp_path / "sent").write_bytes(sent := tar(BASE, member(b"weights", bytes(10_000))))
    told: list[BytesIngested] = []
    with opened(tmp_path / "sent") as descriptor:
        asyncio.run(ingest(descriptor, tmp_path / "staging", progress=told.append))

    assert len(told) >= 3
    assert all(progress.total_bytes == len(sent) for progress in told)
    assert [progress.read_bytes for progress in told] == sorted(progress.read_bytes for progress in told)
