"""Source distribution of a commit, with the same bytes wherever it is made.

The files, their times and the time of the archive are those of the commit: SOURCE_DATE_EPOCH, or the commit's own time.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def resolve(commit: str) -> str:
    """Return the number of a commit: its name may come to mean another one while a build runs."""
    return git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()


def epoch(commit: str) -> int:
    """Return the time that every file of the release gets (seconds since 1970)."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct", commit))


def reproducible(archive: bytes, time: int) -> bytes:
    """Return a tar.gz with the same files by name, which says nothing of the machine and user that packed it."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as given,
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=time) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in sorted(given.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            made.addfile(member, given.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def build_source(commit: str, folder: Path, work: Path) -> Path:
    """Make the source distribution of a commit in `folder`; `work` is an empty folder."""
    if git("status", "--porcelain", "--untracked-files=no"):
        print("Changes that are not committed are left out of the release.")
    checkout = work / "checkout"
    checkout.mkdir()
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as files:
        files.extractall(checkout)
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(work / "sdist"),
        str(checkout),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise SystemExit(f"release: the source distribution cannot be built:\n{built.stdout}{built.stderr}")
    (archive,) = (work / "sdist").glob("*.tar.gz")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / archive.name
    made.write_bytes(reproducible(archive.read_bytes(), epoch(commit)))
    return made


def unpack(source: Path, folder: Path) -> Path:
    """Unpack a source distribution into `folder`; return the folder of its files."""
    with tarfile.open(source) as files:
        files.extractall(folder)
    (unpacked,) = folder.iterdir()
    return unpacked
