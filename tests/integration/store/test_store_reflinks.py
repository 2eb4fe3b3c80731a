"""A store on a file system with reflinks, in a process whose mounts end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmserve.daemon.store.kept_files import SHARED_BYTES
from tests.support.archives.packages import write_package
from tests.support.folders import REPOSITORY

#: Smallest XFS that mkfs.xfs makes; the file is sparse.
_DISK_BYTES = 300 << 20
_WEIGHTS_BYTES = 100 * SHARED_BYTES

_COMMON = """
import asyncio, os, shutil, sys, threading
from pathlib import Path
from shmserve.daemon.store import Store, ArchiveRefused

async def add(store, path, **settings):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return await store.add(descriptor, **settings)
    finally:
        os.close(descriptor)

def free(path):
    os.sync()
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize

disk, *packages = map(Path, sys.argv[1:])
store = Store(disk / "models")
store.open()
"""
_KEPT = """
one = asyncio.run(add(store, packages[0]))
before = free(disk)
two = asyncio.run(add(store, packages[1]))
files = [version.path / "weights.bin" for version in (one, two)]
print("written", before - free(disk))
print("one file", os.path.samefile(*files))
print("mode", oct(files[1].stat().st_mode)[-3:])
files[0].chmod(0o600)
with open(files[0], "r+b") as file:
    file.write(b"damage")
asyncio.run(store.check(two))
print("whole after a write to the other")
store.close()
"""
_SENT = """
sent = shutil.copytree(packages[0], disk / "sent")
before = free(disk)
version = asyncio.run(add(store, sent))
print("written", before - free(disk))
print("one file", os.path.samefile(sent / "weights.bin", version.path / "weights.bin"))
with open(sent / "weights.bin", "r+b") as file:
    file.write(b"another model")
asyncio.run(store.check(version))
print("whole after a write to the sent file")

# A sender that writes while its file is taken: refused, or kept as it was hashed.
ended = threading.Event()

def write():
    with open(sent / "weights.bin", "r+b", buffering=0) as file:
        turn = 0
        while not ended.wait(0.001):
            turn += 1
            file.seek(turn * 4096 % 1_000_000)
            file.write(b"%d" % turn)

writer = threading.Thread(target=write)
writer.start()
for turn in range(10):
    try:
        asyncio.run(store.check(asyncio.run(add(store, sent))))
    except ArchiveRefused:
        pass
ended.set()
writer.join()
print("versions", len(store.versions()))
store.close()
"""


def test_a_file_of_a_kept_version_is_shared_by_a_reflink_and_a_write_to_it_stays_in_its_version(tmp_path: Path) -> None:
    said = _on_xfs(tmp_path, _KEPT)

    assert int(said["written"]) < _WEIGHTS_BYTES / 10
    assert (said["one file"], said["mode"]) == ("False", "400")
    assert "whole after a write to the" in said


def test_a_sent_file_on_the_same_file_system_is_taken_by_a_reflink_and_hashed_as_it_is_stored(tmp_path: Path) -> None:
    said = _on_xfs(tmp_path, _SENT)

    assert int(said["written"]) < _WEIGHTS_BYTES / 10
    assert said["one file"] == "False"
    assert "whole after a write to the sent" in said and int(said["versions"]) >= 1


def _on_xfs(tmp_path: Path, script: str) -> dict[str, str]:
    """Run the script on an XFS of its own; return what it printed, by the first words of each line."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(_DISK_BYTES)
    made = shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if made is None:
        pytest.skip("no mkfs.xfs (xfsprogs)")
    subprocess.run([made, "-q", "-m", "reflink=1", image], check=True)
    weights = os.urandom(_WEIGHTS_BYTES)
    packages = [
        write_package(tmp_path / name, {"policy.py": name.encode(), "weights.bin": weights}) for name in ("one", "two")
    ]
    mount = f"mount -o loop '{image}' '{disk}' || exit 77; exec \"$@\""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", _COMMON + script, disk, *packages],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no XFS can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
