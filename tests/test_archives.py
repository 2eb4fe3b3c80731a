"""What a sent package is taken from, what is refused and why; each through the real process under limits."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.daemon.store import ArchiveRefused, Limits, Progress, StoreUnavailable
from shmserve.daemon.store.receive import Received, receive
from shmserve.daemon.store.tar_reader import TarReader
from shmserve.package_files import content_digest, name_fault, package_files, shown
from tests.archives.hostile import HOSTILE, Hostile
from tests.archives.packages import FILES, content_of, opened, write_package
from tests.archives.tar_bytes import (
    BASE,
    END,
    GNU,
    MANIFEST,
    POLICY,
    directory,
    header,
    long_name,
    member,
    packed,
    pax,
    record,
    tar,
)

Take = Callable[..., Received]


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """Receives what is at a path, or these bytes, into tmp_path/staging."""

    def take(source: Path | bytes, **limits: Any) -> Received:
        if isinstance(source, bytes):
            (tmp_path / "sent").write_bytes(source)
            source = tmp_path / "sent"
        with opened(source) as descriptor:
            return asyncio.run(receive(descriptor, tmp_path / "staging", Limits(**limits)))

    return take


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    gc.collect()  # what earlier tests left to be collected is none of ours
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


# What is refused


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_hostile_archive_is_refused_and_leaves_nothing(hostile: Hostile, take: Take, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=hostile.reason) as refusal:
        take(hostile.build())

    assert os.listdir(tmp_path) == ["sent"]
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


def test_the_corpus_is_large_and_no_case_is_there_twice() -> None:
    assert len({hostile.build() for hostile in HOSTILE}) == len(HOSTILE) >= 100


def test_a_long_name_is_shown_in_part(take: Take) -> None:
    with pytest.raises(ArchiveRefused) as refusal:
        take(tar(member(b"\x1b" * 90 + b"END")))

    assert "\x1b" not in str(refusal.value) and "END" not in str(refusal.value)
    assert all(len(quoted) <= 64 for quoted in re.findall(r"'.*'|'.*\.\.\.", str(refusal.value)))


def test_a_package_of_more_bytes_than_allowed_is_refused_before_it_is_written(take: Take) -> None:
    with pytest.raises(ArchiveRefused, match="'weights' has 2000 bytes and the files before it 1000"):
        take(tar(member(b"one", b"1" * 1000), member(b"weights", b"2" * 2000)), total_bytes=2500)


def test_a_file_larger_than_any_package_is_refused_at_once(take: Take, tmp_path: Path) -> None:
    with open(tmp_path / "sent.tar", "wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(ArchiveRefused, match="the archive has 1099511627776 bytes"):
        take(tmp_path / "sent.tar")


def test_what_compresses_well_is_taken_while_it_is_small(take: Take) -> None:
    content = bytes(15 << 20)

    assert take(packed(tar(BASE, member(b"zeros", content)))).files[-1].size == len(content)


# What is taken


def _same(received: Received, files: dict[str, bytes] = FILES) -> bool:
    listed = {file.name: file.size for file in received.files}
    return (
        content_of(received.path) == files
        and listed == {name: len(content) for name, content in files.items()}
        and received.digest == content_digest(package_files(received.path))
    )


@pytest.mark.parametrize("how", ["model", "."])
@pytest.mark.parametrize("packing", [[], ["--gzip"]], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["gnu", "ustar", "pax"])
def test_what_gnu_tar_writes_is_taken(form: str, packing: list[str], how: str, take: Take, tmp_path: Path) -> None:
    model = write_package(tmp_path / "work" / "model")
    where = model.parent if how == "model" else model
    command = ["tar", f"--format={form}", *packing, "-C", str(where), "-cf", str(tmp_path / "model.tar"), how]
    subprocess.run(command, check=True)

    received = take(tmp_path / "model.tar")

    assert _same(received)
    assert received.path == (tmp_path / "staging" / "model" if how == "model" else tmp_path / "staging")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_pythons_tarfile_writes_is_taken(
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


def test_what_git_archive_writes_is_taken(take: Take, tmp_path: Path) -> None:
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


def test_a_file_beside_the_folder_keeps_the_folder(take: Take, tmp_path: Path) -> None:
    assert take(tar(member(b"weights/a"), member(b"policy.py"))).path == tmp_path / "staging"


def test_caches_and_empty_directories_are_left_out(take: Take, tmp_path: Path) -> None:
    cached = {"__pycache__/policy.pyc": b"boo", "sub/__pycache__/x.pyc": b"boo"}
    model = write_package(tmp_path / "model", {**FILES, **cached})
    (model / "empty").mkdir()
    subprocess.run(["tar", "-C", model, "-cf", tmp_path / "m.tar", "."], check=True)

    received = take(tmp_path / "m.tar")

    assert _same(received)
    assert received.digest == content_digest(package_files(model))


def test_received_files_belong_to_the_daemon_alone(take: Take, tmp_path: Path) -> None:
    received = take(tar(BASE, member(b"weights/a")))

    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in received.staging.rglob("*")}
    assert modes == {"model.toml": "0o400", "policy.py": "0o400", "a": "0o400", "weights": "0o500"}
    assert oct(received.staging.stat().st_mode & 0o7777) == "0o700"


def test_the_offset_of_the_senders_descriptor_is_neither_used_nor_moved(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(tar(BASE))
    with opened(tmp_path / "sent") as descriptor:
        os.lseek(descriptor, 700, os.SEEK_SET)

        received = asyncio.run(receive(descriptor, tmp_path / "staging"))

        assert len(received.files) == 2 and os.lseek(descriptor, 0, os.SEEK_CUR) == 700


def test_progress_is_told_and_ends_with_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "intake.before_file=sleep:0.15")
    (tmp_path / "sent").write_bytes(sent := tar(BASE, member(b"weights", bytes(10_000))))
    told: list[Progress] = []
    with opened(tmp_path / "sent") as descriptor:
        asyncio.run(receive(descriptor, tmp_path / "staging", progress=told.append))

    assert len(told) >= 3
    assert all(progress.total_bytes == len(sent) for progress in told)
    assert [progress.read_bytes for progress in told] == sorted(progress.read_bytes for progress in told)


# What can be sent besides


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

    with pytest.raises(ArchiveRefused, match="no file in it"):
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
            asyncio.run(receive(descriptor, tmp_path / "staging"))
    finally:
        for each in (descriptor, *others):
            os.close(each)

    assert not (tmp_path / "staging").exists()


# The process under limits


def test_a_package_that_takes_too_much_processor_time_is_refused(take: Take, tmp_path: Path) -> None:
    size = 15 << 30  # of nothing, in a file that nobody wants, so that nothing is written either
    with open(tmp_path / "sent", "wb") as file:
        file.write(header(b"__pycache__/x", b"\x80" + size.to_bytes(11, "big")))
        file.truncate(size)

    with pytest.raises(ArchiveRefused, match="more than 1 s of processor time"):
        take(tmp_path / "sent", cpu_s=1)

    assert not (tmp_path / "staging").exists()


def test_a_package_that_takes_too_much_memory_is_refused(take: Take, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="takes more than 1048576 bytes of memory"):
        take(tar(BASE, member(b"weights", bytes(8 << 20))), memory_bytes=1 << 20)

    assert not (tmp_path / "staging").exists()


def test_a_package_that_takes_too_long_is_refused(take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "intake.in_file=sleep:100")

    with pytest.raises(ArchiveRefused, match=r"took longer than 0\.5 s"):
        take(tar(BASE), wall_s=0.5)

    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("point", ["intake.before_file", "intake.in_file", "intake.before_sync", "intake.after_sync"])
@pytest.mark.parametrize("action", ["kill", "exit:3"])
def test_a_process_that_dies_leaves_nothing(
    action: str, point: str, take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", f"{point}={action}")

    with pytest.raises(ArchiveRefused, match="was killed" if action == "kill" else "with exit status 3"):
        take(tar(BASE))

    assert not (tmp_path / "staging").exists()


def test_a_disk_that_fails_is_no_fault_of_the_package(
    take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, remedy in (("ENOSPC", "make room"), ("EIO", "see to the state directory")):
        monkeypatch.setenv("SHMSERVE_FAILPOINTS", f"intake.in_file=raise:{name}")

        with pytest.raises(StoreUnavailable, match=remedy):
            take(tar(BASE))

        assert not (tmp_path / "staging").exists()


def test_the_process_inherits_only_what_it_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "intake.before_file=sleep:100")
    (tmp_path / "sent").write_bytes(tar(BASE))
    (tmp_path / "secret").write_bytes(b"")

    async def look() -> tuple[set[str], str]:
        with opened(tmp_path / "sent") as descriptor, opened(tmp_path / "secret") as secret:
            os.set_inheritable(secret, True)
            receiving = asyncio.create_task(receive(descriptor, tmp_path / "staging"))
            pid = await _intake_of(tmp_path / "staging", receiving)
            links, limits = _seen_of(pid)
            receiving.cancel()
            await asyncio.wait((receiving,))
            return links, limits

    links, limits = asyncio.run(look())

    stderr = os.readlink("/proc/self/fd/2")
    assert links - {stderr} == {"/dev/null", str(tmp_path / "sent"), str(tmp_path / "staging")} - {stderr}
    assert re.search(rf"Max address space +{512 << 20} ", limits) and re.search(r"Max core file size +0 ", limits)
    assert re.search(rf"Max file size +{16 << 30} ", limits) and re.search(r"Max open files +64 ", limits)
    assert re.search(r"Max cpu time +600 ", limits)


def _seen_of(pid: int) -> tuple[set[str], str]:
    links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {link for link in links if not link.startswith("pipe:")}, Path(f"/proc/{pid}/limits").read_text()


async def _intake_of(staging: Path, receiving: asyncio.Task[Received]) -> int:
    """The process that writes into `staging`, once it has its limits."""
    while not (pids := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_intake(pid, staging)]):
        assert not receiving.done()
        await asyncio.sleep(0.01)
    return pids[0]


def _is_intake(pid: int, staging: Path) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        return (
            b"shmserve.daemon.store.intake" in (process / "cmdline").read_bytes().split(b"\0")
            and "Max open files            64 " in (process / "limits").read_text()
            and str(staging) in [os.readlink(link) for link in (process / "fd").iterdir()]
        )
    except OSError:  # it has ended
        return False


def test_cancelling_ends_the_process_and_removes_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "intake.in_file=sleep:100@2")
    (tmp_path / "sent").write_bytes(tar(BASE))

    async def cancel() -> int:
        with opened(tmp_path / "sent") as descriptor:
            receiving = asyncio.create_task(receive(descriptor, tmp_path / "staging"))
            pid = await _intake_of(tmp_path / "staging", receiving)
            while not (tmp_path / "staging" / "policy.py").exists():
                await asyncio.sleep(0.01)
            for _ in range(3):  # once more while it tidies up
                receiving.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await receiving
            return pid

    pid = asyncio.run(cancel())

    assert not (tmp_path / "staging").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_ends_when_the_daemon_is_gone(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys; from pathlib import Path; from shmserve.daemon.store.receive import receive\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "asyncio.run(receive(fd, Path(sys.argv[2]), progress=lambda progress: print('going', flush=True)))"
    )
    (tmp_path / "sent").write_bytes(tar(*(member(b"%d" % number) for number in range(1000))))
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "sent", tmp_path / "staging"],
        env={**os.environ, "SHMSERVE_FAILPOINTS": "intake.before_file=sleep:0.05"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

        assert len(children) == 1
        while Path(f"/proc/{children[0]}/exe").exists():  # the watchdog of the tests ends this if it must
            time.sleep(0.01)


# A source that changes


def test_a_tar_that_changes_is_refused_or_taken_as_it_was_hashed(tmp_path: Path) -> None:
    contents = [tar(BASE, member(b"weights", bytes([value]) * 200_000)) for value in range(4)]

    def change(path: Path, turn: int) -> None:
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(contents[turn % 4])

    _, refused = _while_writing(tmp_path, tmp_path / "sent", change, 0.0005)

    assert refused


def test_a_directory_that_changes_is_refused_or_taken_as_it_was_hashed(tmp_path: Path) -> None:
    def change(path: Path, turn: int) -> None:
        write_package(path, {"policy.py": b"%d" % turn * 50_000, "weights.bin": b"%d" % turn * 50_000})

    _, refused = _while_writing(tmp_path, tmp_path / "model", change, 0.0005)

    assert refused


def test_a_directory_whose_files_are_replaced_is_taken_as_it_was_at_one_moment(tmp_path: Path) -> None:
    def change(path: Path, turn: int) -> None:
        path.mkdir(exist_ok=True)
        for name in ("a.bin", "b.bin"):
            fresh = tmp_path / "fresh"
            fresh.write_bytes(b"%d" % turn)
            fresh.replace(path / name)

    taken, _ = _while_writing(tmp_path, tmp_path / "model", change, 0.02)

    assert taken
    assert all(int(files["a.bin"]) - int(files["b.bin"]) in (0, 1) for files in taken)


def _while_writing(
    tmp_path: Path, path: Path, change: Callable[[Path, int], None], period_s: float
) -> tuple[list[dict[str, bytes]], int]:
    """Receive again and again while a thread changes `path`; what was taken, and how often it was refused."""
    change(path, 0)
    ended = threading.Event()

    def write() -> None:
        turn = 0
        while not ended.wait(period_s):
            change(path, turn := turn + 1)

    writer = threading.Thread(target=write)
    writer.start()
    taken, refused = [], 0
    try:
        for number in range(12):
            staging = tmp_path / f"staging-{number}"
            try:
                with opened(path) as descriptor:
                    received = asyncio.run(receive(descriptor, staging))
            except ArchiveRefused:
                refused += 1
                assert not staging.exists()
            else:
                assert received.digest == content_digest(package_files(received.path))
                taken.append(content_of(received.path))
    finally:
        ended.set()
        writer.join()
    return taken, refused


# Names and headers, without the process


class _Bytes:
    """A source that gives what it has in pieces of any size."""

    def __init__(self, content: bytes, piece: int = 1 << 20) -> None:
        self._content = memoryview(content)
        self._piece = piece

    def read(self, count: int) -> bytes:
        count = min(count, self._piece)
        data, self._content = bytes(self._content[:count]), self._content[count:]
        return data


def _read(content: bytes, piece: int = 1 << 20) -> dict[str, bytes]:
    reader = TarReader(_Bytes(content, piece), members=1024)
    return {header.name: b"".join(reader.chunks()) for header in reader if not header.is_directory}


@given(st.text(max_size=40) | st.text("./\\a\0", max_size=12) | st.binary(max_size=40).map(os.fsdecode))
@settings(max_examples=500, deadline=None)
def test_a_name_without_fault_stays_below_its_directory(name: str) -> None:
    if name_fault(name) is None:
        assert os.path.normpath(name) == name
        assert not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
        assert os.path.join("/root", name).startswith("/root/")
        assert name.encode().decode() == name
    assert shown(name).isprintable() and len(shown(name)) <= 64


@given(st.binary(min_size=1, max_size=90).filter(lambda raw: b"\0" not in raw))
@settings(max_examples=500, deadline=None)
def test_a_member_is_refused_or_keeps_its_name(raw: bytes) -> None:
    try:
        files = _read(tar(member(raw, b"content")))
    except ArchiveRefused:
        return
    assert files == {raw.decode().removeprefix("./"): b"content"}


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_tar_with_damage_is_refused_or_read_and_nothing_else_happens(data: st.DataObject) -> None:
    whole = tar(
        BASE,
        pax(record("mtime", "1.5"), record("path", "sub/long.bin")),
        member(b"x", b"1" * 600),
        long_name(b"n" * 150 + b"\0"),
        member(b"n", b"2", magic=GNU),
        directory(b"d/"),
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for block in range(0, len(damaged), 512):  # with checksums that fit, or hardly any damage would be looked at
        total = sum(damaged[block : block + 148]) + 256 + sum(damaged[block + 156 : block + 512])
        if damaged[block + 257 : block + 262] == b"ustar" and data.draw(st.booleans()):
            damaged[block + 148 : block + 156] = b"%06o\0 " % total
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))

    try:
        files = _read(bytes(damaged[:cut]))
    except ArchiveRefused as refusal:
        assert str(refusal).isprintable()
    else:
        assert all(name_fault(name) is None for name in files)


@pytest.mark.parametrize("piece", [1, 7, 511, 513])
def test_a_source_may_give_its_bytes_in_any_pieces(piece: int) -> None:
    whole = tar(pax(record("path", "a/b")), member(b"x", b"1" * 1000), BASE)

    assert _read(whole, piece) == {"a/b": b"1" * 1000, "model.toml": MANIFEST, "policy.py": POLICY}


@pytest.mark.parametrize("kind", ["base-256", "pax"])
def test_a_file_of_more_than_8_gib_is_read_whole(kind: str) -> None:
    size = 9 << 30
    base_256 = header(b"big", b"\x80" + size.to_bytes(11, "big"))
    first = base_256 if kind == "base-256" else pax(record("size", f"{size}")) + header(b"big", 0)
    chunk = bytes(1 << 20)

    class Large:
        """`first`, then `size` bytes that are never all in memory, then the end."""

        position = 0

        def read(self, count: int) -> bytes:
            zeros_from, end_from = len(first), len(first) + size
            if self.position < zeros_from:
                data = first[self.position :][:count]
            elif self.position < end_from:
                data = chunk[: min(count, end_from - self.position)]
            else:
                data = END[self.position - end_from :][:count]
            self.position += len(data)
            return data

    reader = TarReader(Large(), members=4)

    assert [(header.name, sum(map(len, reader.chunks()))) for header in reader] == [("big", size)]


def test_names_as_other_tools_write_them_are_read() -> None:
    prefix = tar(member(b"c.py", b"1", prefix=b"a/b"))
    gnu_times = tar(member(b"c.py", b"1", prefix=b"14700000000\0", magic=GNU))  # GNU keeps times there
    full = tar(member(b"n" * 100, b"1"))
    vendor = tar(pax(record("LIBARCHIVE.xattr.com.apple", "x"), record("SCHILY.ino", "7")), member(b"x", b"1"))

    assert [_read(each) for each in (prefix, gnu_times, full, vendor)] == [
        {"a/b/c.py": b"1"},
        {"c.py": b"1"},
        {"n" * 100: b"1"},
        {"x": b"1"},
    ]


def test_random_bytes_are_no_archive(take: Take) -> None:
    generator = random.Random(1)
    for magic in (b"", b"\x1f\x8b\x08\0", b"ustar"):
        with pytest.raises(ArchiveRefused):
            take(magic + generator.randbytes(10_000))
        time.sleep(0)
