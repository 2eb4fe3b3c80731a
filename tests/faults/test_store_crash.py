"""kill -9 of a process with a store, at every named step and at any moment: what comes after it is whole."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.daemon import failpoints
from shmserve.daemon.store import Store, StoredVersion, StoreUnavailable
from shmserve.daemon.store.kept_files import SHARED_BYTES
from shmserve.package_files import content_version
from tests.support.archives.packages import numbered, opened, write_package
from tests.support.archives.previous_version import previous
from tests.support.archives.store_process import REFUSED
from tests.support.archives.taking import ingest_here
from tests.support.folders import REPOSITORY
from tests.support.mostly_long import one_of

_ROOT = REPOSITORY
FAILPOINTS = failpoints.STORE


def _is_small_file(name: str) -> bool:
    return name.rpartition(".")[0] in failpoints.SMALL_FILES


def _run(directory: Path, *words: str, armed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.archives.store_process", str(directory), "6", *words],
        cwd=_ROOT,
        env={**os.environ, "SHMSERVE_FAILPOINTS": armed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _add(store: Store, path: Path) -> StoredVersion:
    with opened(path) as descriptor:
        return asyncio.run(store.add(descriptor))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven packages with one file in common, and a store with two versions that were served and four that were not."""
    place = tmp_path_factory.mktemp("template")
    packages = [
        write_package(numbered(place / f"m{number}", number), {"weights/shared.bin": bytes(SHARED_BYTES)})
        for number in range(7)
    ]
    store = Store(place / "models", keep_versions=6, ingest=ingest_here)
    store.open()
    for package in packages[:6]:
        _add(store, package)
    for version in store.versions()[:-3:-1]:
        store.make_current(version)
    store.close()
    return place


@pytest.fixture
def stage(template: Path, tmp_path: Path) -> Stage:
    return Stage(shutil.copytree(template, tmp_path / "stage"))


@pytest.fixture
def disarmed() -> Iterator[None]:
    """For tests that arm failpoints in this process."""
    yield
    failpoints.arm("")


class Stage:
    """A copy of the template in which one package has been signed since it was kept."""

    def __init__(self, place: Path) -> None:
        self.directory = place / "models"
        self.packages = [place / f"m{number}" for number in range(7)]
        self.names = [content_version(package) for package in self.packages]
        write_package(self.packages[2], {"model.sig": b"a signature"})

    def commands(self) -> list[str]:
        """What passes every failpoint: an old package, a new one, current, a fact, and versions that go."""
        return [
            *("add", str(self.packages[2])),
            *("add", str(self.packages[6])),
            *("current", self.names[2]),
            *("record", self.names[2]),
            *("prune", "3"),
        ]

    def check(self) -> None:
        """Whatever happened: it opens, what is served was served before or was to be, and is whole; it goes on."""
        store = Store(self.directory, keep_versions=6, ingest=ingest_here)
        store.open()
        assert store.problems == []
        current, before, good = store.current(), previous(store), asyncio.run(store.last_good())
        assert current is not None and before is not None and good == current
        assert [current.version, before.version] in ([self.names[1], self.names[0]], [self.names[2], self.names[1]])
        for version in store.versions():
            asyncio.run(store.check(version))
        left = {name for version in store.versions() for name in (version.digest, version.digest + ".json")}
        assert set(os.listdir(self.directory / "versions")) == left
        assert set(os.listdir(self.directory)) == {"versions", "current", "lock"}

        again = [_add(store, self.packages[number]) for number in (2, 6)]
        store.make_current(again[-1])
        assert asyncio.run(store.last_good()) == store.get(again[-1])
        store.close()


def test_there_are_enough_failpoints() -> None:
    assert len(FAILPOINTS) >= 40


def test_with_a_failpoint_that_does_nothing_every_command_is_carried_out(stage: Stage) -> None:
    # An armed process refuses a failpoint that is missing in the table.
    done = _run(stage.directory, *stage.commands(), armed="store.received=sleep:0")

    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("open", "added", "added", "current", "recorded", "pruned")
    ]
    assert done.returncode == 0, done.stderr
    stage.check()


@pytest.mark.fault("T84")
@pytest.mark.parametrize("name", one_of(4, FAILPOINTS))
def test_a_kill_at_any_step_leaves_the_old_state_or_the_new_one(name: str, stage: Stage) -> None:

    killed = _run(stage.directory, *stage.commands(), armed=f"{name}=kill")

    assert f"failpoint {name} reached" in killed.stderr
    assert killed.returncode == (REFUSED if name.startswith("ingest.") else -signal.SIGKILL), killed.stderr
    stage.check()


#: After the rename of one small file, which then is there, whatever the disk says.
WRITTEN = [name for name in FAILPOINTS if name.endswith((".after_rename", ".after_sync")) and _is_small_file(name)]


@pytest.mark.parametrize(
    "name",
    one_of(
        4,
        [
            name
            for name in FAILPOINTS
            if not name.startswith(("ingest.", "prune.", "activated.")) and name not in WRITTEN
        ],
    ),
)
def test_a_full_disk_at_any_step_leaves_the_old_state_or_the_new_one(name: str, stage: Stage) -> None:

    failed = _run(stage.directory, *stage.commands(), armed=f"{name}=raise:ENOSPC@1")

    assert failed.returncode == REFUSED and "make room" in failed.stdout, failed.stderr
    stage.check()


@pytest.mark.parametrize("name", one_of(4, WRITTEN))
def test_a_disk_that_fails_after_the_rename_is_reported_and_the_new_state_holds(name: str, stage: Stage) -> None:

    done = _run(stage.directory, *stage.commands(), armed=f"{name}=raise:EIO")

    assert done.returncode == 0 and "a power cut may restore the previous file" in done.stderr
    stage.check()


@pytest.mark.parametrize("name", [name for name in FAILPOINTS if name.startswith("prune.")])
def test_a_disk_that_fails_while_old_versions_go_is_reported(name: str, stage: Stage) -> None:

    failed = _run(stage.directory, "prune", "3", armed=f"{name}=raise:EIO")

    assert failed.returncode == REFUSED and "check the state directory" in failed.stdout
    stage.check()


@pytest.mark.parametrize("name", ["activated.before_write", "activated.before_sync", "activated.before_rename"])
def test_a_current_that_could_be_written_is_current_even_if_its_record_could_not(name: str, stage: Stage) -> None:

    done = _run(stage.directory, "current", stage.names[2], armed=f"{name}=raise:ENOSPC")

    assert done.returncode == 0 and "its record cannot be updated" in done.stderr
    stage.check()


def test_a_failed_write_leaves_this_process_as_the_disk_is(stage: Stage, disarmed: None) -> None:
    store = Store(stage.directory, keep_versions=6)
    store.open()
    before = store.versions(), store.current(), previous(store)
    for name in ("current.before_write", "current.before_sync", "current.before_rename"):
        failpoints.arm(f"{name}=raise:EIO")
        with pytest.raises(StoreUnavailable, match="check the state directory"):
            store.make_current(stage.names[3])
        assert (store.versions(), store.current(), previous(store)) == before
    failpoints.arm("")

    store.make_current(stage.names[3])

    current = store.current()
    assert current is not None and current.version == stage.names[3]
    store.close()


@pytest.mark.long
def test_a_kill_at_any_moment_leaves_a_version_that_was_made_current(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    packages = [numbered(tmp_path / f"m{number}", number) for number in range(5)]
    generator = random.Random(7)
    last: str | None = None
    for _ in range(12):
        running = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.archives.store_process",
                str(directory),
                "3",
                "forever",
                *map(str, packages),
            ],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with running:
            assert running.stdout is not None
            said = [running.stdout.readline() for _ in range(generator.randint(1, 5))]  # "open", "current VERSION", ...
            time.sleep(generator.uniform(0.0, 0.2))
            running.kill()
            said += running.stdout.readlines()
        last = [last, *(line.split()[1] for line in said if line.startswith("current "))][-1]

        store = Store(directory, keep_versions=3)
        store.open()
        current, good = store.current(), asyncio.run(store.last_good())
        assert good == current and store.problems == []
        if last is not None:  # what it said, or the one after that, of which it had no time to tell
            assert current is not None
            names = [version.version for version in (current, previous(store)) if version is not None]
            assert last in names
            last = current.version
        for version in store.versions():
            asyncio.run(store.check(version))
        assert len(store.versions()) <= 4
        store.close()
    assert last is not None
