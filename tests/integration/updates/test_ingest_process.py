"""The process under limits that takes a package in, and a package that changes meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shmserve.daemon.store import ArchiveRefused, StoreUnavailable
from shmserve.daemon.store.ingest import IngestedPackage, ingest
from shmserve.package_files import content_digest, package_files
from tests.support.archives.hostile import HOSTILE, Hostile
from tests.support.archives.packages import content_of, opened, write_package
from tests.support.archives.taking import Take
from tests.support.archives.tar_bytes import (
    BASE,
    header,
    member,
    tar,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


# The process under limits


@pytest.mark.parametrize("hostile", HOSTILE[::40], ids=str)
def test_the_process_refuses_for_the_same_reason_and_leaves_nothing(
    hostile: Hostile, take_confined: Take, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveRefused, match=hostile.reason):
        take_confined(hostile.build())

    assert os.listdir(tmp_path) == ["sent"]


def test_the_process_receives_the_same_package_as_a_direct_call(
    take: Take, take_confined: Take, tmp_path: Path
) -> None:
    sent = tar(member(b"m/policy.py"), member(b"m/weights/a", b"1" * 5000))
    direct = take(sent)
    direct.staging.rename(tmp_path / "direct")

    confined = take_confined(sent)

    assert (confined.files, confined.path) == (direct.files, direct.path)
    assert content_of(confined.path) == content_of(tmp_path / "direct" / "m")


@pytest.mark.fault("T73")
@pytest.mark.long
def test_a_package_that_takes_too_much_processor_time_is_refused(take_confined: Take, tmp_path: Path) -> None:
    size = 15 << 30  # of nothing, in a file that nobody wants, so that nothing is written either
    with open(tmp_path / "sent", "wb") as file:
        file.write(header(b"__pycache__/x", b"\x80" + size.to_bytes(11, "big")))
        file.truncate(size)

    with pytest.raises(ArchiveRefused, match="more than 1 s of processor time"):
        take_confined(tmp_path / "sent", cpu_s=1)

    assert not (tmp_path / "staging").exists()


@pytest.mark.fault("T73")
def test_a_package_that_takes_too_much_memory_is_refused(take_confined: Take, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="takes more than 1048576 bytes of memory"):
        take_confined(tar(BASE, member(b"weights", bytes(8 << 20))), memory_bytes=1 << 20)

    assert not (tmp_path / "staging").exists()


def test_a_package_that_takes_too_long_is_refused(
    take_confined: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "ingest.in_file=sleep:100")

    with pytest.raises(ArchiveRefused, match=r"took longer than 0\.5 s"):
        take_confined(tar(BASE), wall_s=0.5)

    assert not (tmp_path / "staging").exists()


@pytest.mark.long
@pytest.mark.parametrize("point", ["ingest.before_file", "ingest.in_file", "ingest.before_sync", "ingest.after_sync"])
@pytest.mark.parametrize("action", ["kill", "exit:3"])
def test_a_process_that_dies_leaves_nothing(
    action: str, point: str, take_confined: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", f"{point}={action}")

    with pytest.raises(ArchiveRefused, match="was killed" if action == "kill" else "with exit status 3"):
        take_confined(tar(BASE))

    assert not (tmp_path / "staging").exists()


def test_a_disk_that_fails_is_not_the_fault_of_the_package(
    take_confined: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, remedy in (("ENOSPC", "make room"), ("EIO", "check the state directory")):
        monkeypatch.setenv("SHMSERVE_FAILPOINTS", f"ingest.in_file=raise:{name}")

        with pytest.raises(StoreUnavailable, match=remedy):
            take_confined(tar(BASE))

        assert not (tmp_path / "staging").exists()


def test_the_ingest_process_inherits_only_the_descriptors_passed_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "ingest.before_file=sleep:100")
    (tmp_path / "sent").write_bytes(tar(BASE))
    (tmp_path / "secret").write_bytes(b"")

    async def look() -> tuple[set[str], str]:
        with opened(tmp_path / "sent") as descriptor, opened(tmp_path / "secret") as secret:
            os.set_inheritable(secret, True)
            receiving = asyncio.create_task(ingest(descriptor, tmp_path / "staging"))
            pid = await _ingest_worker_of(tmp_path / "staging", receiving)
            links, limits = _seen_of(pid)
            receiving.cancel()
            await asyncio.wait((receiving,))
            return links, limits

    links, limits = asyncio.run(look())

    stderr = os.readlink("/proc/self/fd/2")
    assert links - {stderr} == {"/memfd:ingest-request (deleted)", str(tmp_path / "sent"), str(tmp_path / "staging")}
    assert re.search(rf"Max address space +{512 << 20} ", limits) and re.search(r"Max core file size +0 ", limits)
    assert re.search(rf"Max file size +{16 << 30} ", limits) and re.search(r"Max open files +64 ", limits)
    assert re.search(r"Max cpu time +600 ", limits)


def test_the_ingest_process_starts_without_modules_that_it_does_not_need() -> None:
    script = "import shmserve.daemon.store.ingest_worker, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()

    assert "shmserve.daemon.store.package_writer" in loaded
    # An operator waits for its start, and these take longer than all the others.
    assert {"asyncio", "socket", "tempfile", "numpy"}.isdisjoint(loaded)


def _seen_of(pid: int) -> tuple[set[str], str]:
    links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {link for link in links if not link.startswith("pipe:")}, Path(f"/proc/{pid}/limits").read_text()


async def _ingest_worker_of(staging: Path, receiving: asyncio.Task[IngestedPackage]) -> int:
    """The process that writes into `staging`, once it has its limits."""
    while not (
        pids := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_ingest_worker(pid, staging)]
    ):
        assert not receiving.done()
        await asyncio.sleep(0.01)
    return pids[0]


def _is_ingest_worker(pid: int, staging: Path) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        return (
            b"shmserve.daemon.store.ingest_worker" in (process / "cmdline").read_bytes().split(b"\0")
            and "Max open files            64 " in (process / "limits").read_text()
            and str(staging) in [os.readlink(link) for link in (process / "fd").iterdir()]
        )
    except OSError:  # it has ended
        return False


def test_cancelling_ends_the_ingest_process_and_removes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_FAILPOINTS", "ingest.in_file=sleep:100@2")
    (tmp_path / "sent").write_bytes(tar(BASE))

    async def cancel() -> int:
        with opened(tmp_path / "sent") as descriptor:
            receiving = asyncio.create_task(ingest(descriptor, tmp_path / "staging"))
            pid = await _ingest_worker_of(tmp_path / "staging", receiving)
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


@pytest.mark.long
def test_the_process_ends_when_the_daemon_is_gone(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys; from pathlib import Path; from shmserve.daemon.store.ingest import ingest\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "asyncio.run(ingest(fd, Path(sys.argv[2]), progress=lambda progress: print('going', flush=True)))"
    )
    (tmp_path / "sent").write_bytes(tar(*(member(b"%d" % number) for number in range(1000))))
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "sent", tmp_path / "staging"],
        env={**os.environ, "SHMSERVE_FAILPOINTS": "ingest.before_file=sleep:0.05"},
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


@pytest.mark.fault("T79")
@pytest.mark.long
def test_a_tar_that_changes_is_refused_or_taken_as_it_was_hashed(tmp_path: Path) -> None:
    contents = [tar(BASE, member(b"weights", bytes([value]) * 200_000)) for value in range(4)]

    def change(path: Path, turn: int) -> None:
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(contents[turn % 4])

    _, refused = _while_writing(tmp_path, tmp_path / "sent", change, 0.0005)

    assert refused


@pytest.mark.long
def test_a_directory_that_changes_is_refused_or_taken_as_it_was_hashed(tmp_path: Path) -> None:
    def change(path: Path, turn: int) -> None:
        write_package(path, {"policy.py": b"%d" % turn * 50_000, "weights.bin": b"%d" % turn * 50_000})

    _, refused = _while_writing(tmp_path, tmp_path / "model", change, 0.0005)

    assert refused


@pytest.mark.long
def test_a_directory_with_changing_files_is_ingested_as_of_one_moment(tmp_path: Path) -> None:
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
    """Ingest again and again while a thread changes `path`; what was taken, and how often it was refused."""
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
                    received = asyncio.run(ingest(descriptor, staging))
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
