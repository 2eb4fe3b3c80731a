"""Bad archives and packages through the real admin channel: each is refused by name, and the old model serves on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.varlink import VarlinkError
from tests.support.admin_command import admin, changing, engines_of, refused, rollback, served, staged, update
from tests.support.archives.hostile import HOSTILE, Hostile
from tests.support.daemon_process import Daemon
from tests.support.gain_packages import gain_package
from tests.support.mostly_long import one_of
from tests.support.packages_bad.directories import BAD, Bad


class Served:
    """A daemon, and what it must look like after whatever was refused."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.client: ShmClient = daemon.client()
        #: Seconds that each refusal took.
        self.refused_s: dict[str, float] = {}
        self._before = self._look()

    def _look(self) -> dict[str, Any]:
        found = self.client.infer({"x": np.arange(3), "robot": "r"})
        return {
            "y": found["y"].tolist(),
            "version": served(self.daemon),
            "state": self.daemon.status()["state"],
            "kept": [version["version"] for version in self.daemon.admin("Versions")["versions"]],
            "engines": engines_of(self.daemon.pid),
            "staged": staged(self.daemon),
        }

    def send(self, name: str, package: Path) -> None:
        """An update that is to be refused."""
        began = time.monotonic()
        try:
            update(self.daemon, package)
        finally:
            self.refused_s[name] = time.monotonic() - began

    def check(self) -> None:
        """Nothing has changed, no engine was started, nothing was left."""
        assert self._look() == self._before


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    daemon = Daemon(gain_package(tmp_path_factory.mktemp("packages"), 2))
    try:
        yield Served(daemon.start())
    finally:
        daemon.dismiss()


def test_there_are_enough_bad_archives_and_packages() -> None:
    assert len(HOSTILE) + len(BAD) >= 150


@pytest.mark.parametrize("hostile", one_of(12, HOSTILE), ids=str)
def test_a_hostile_archive_is_refused(hostile: Hostile, serving: Served, tmp_path: Path) -> None:
    path = tmp_path / "model.tar"
    path.write_bytes(hostile.build())

    with pytest.raises(VarlinkError, match="Refused") as raised:
        serving.send(str(hostile), path)

    said = raised.value.parameters
    assert said["reason"] == "package"
    assert any(part in said["message"] for part in hostile.reason.split("|"))
    serving.check()


@pytest.mark.parametrize("bad", one_of(3, BAD), ids=str)
def test_a_bad_package_is_refused(bad: Bad, serving: Served, tmp_path: Path) -> None:
    directory = tmp_path / "sent"
    directory.mkdir()
    package = bad.build(directory)

    with refused("package", bad.reason):
        serving.send(str(bad), package)

    serving.check()


@pytest.mark.long
def test_how_long_a_refusal_takes_is_printed(serving: Served, capsys: pytest.CaptureFixture[str]) -> None:
    slowest = sorted(serving.refused_s, key=lambda name: serving.refused_s[name], reverse=True)
    assert len(slowest) >= 40
    with capsys.disabled():
        named = ", ".join(f"{name!r} {serving.refused_s[name]:.2f} s" for name in slowest[:3])
        print(f"\n{len(slowest)} bad archives and packages refused; the slowest: {named}")


def test_a_message_calls_the_package_by_its_senders_name(serving: Served, tmp_path: Path) -> None:
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift" / "model.toml").write_text("[model]\nentyr = 'x'\n")

    with refused("package", "lift/model.toml: 'entyr' is not a key of [model]; did you mean 'entry'?"):
        update(serving.daemon, tmp_path / "lift")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "directory that is gone", "path only"])
def test_a_descriptor_of_no_package_is_refused(kind: str, serving: Served, tmp_path: Path) -> None:
    ends: tuple[int, ...]
    if kind == "pipe":
        ends = os.pipe()
    elif kind == "device":
        ends = (os.open("/dev/zero", os.O_RDONLY),)
    elif kind == "socket":
        ends = tuple(end.detach() for end in socket.socketpair())
    else:
        directory = tmp_path / "gone"
        directory.mkdir()
        ends = (os.open(directory, os.O_PATH if kind == "path only" else os.O_RDONLY),)
        directory.rmdir()

    try:
        with refused("package"), changing(serving.daemon, "UpdateModel", {"name": "x"}, ends[0]) as replies:
            list(replies)
    finally:
        for end in ends:
            os.close(end)

    serving.check()


def test_an_update_without_a_package_is_refused(serving: Served) -> None:
    with (
        pytest.raises(VarlinkError, match="InvalidParameter"),
        changing(serving.daemon, "UpdateModel", {"name": "x"}) as replies,
    ):
        list(replies)

    serving.check()


@pytest.mark.parametrize("wrong", [{"device": 3}, {"in_place": "yes"}, {"note": ["x"]}, {"name": {}}])
def test_an_option_of_the_wrong_type_is_refused(wrong: dict[str, Any], serving: Served, tmp_path: Path) -> None:
    with pytest.raises(VarlinkError, match="InvalidParameter"):
        update(serving.daemon, gain_package(tmp_path, 3), **wrong)

    serving.check()


def test_a_rollback_to_nothing_and_to_nowhere_is_refused(serving: Served) -> None:
    kept = served(serving.daemon)
    with refused("no_previous", "this is the first one served here"):
        rollback(serving.daemon)
    with refused("unknown_version", "no kept version is named 'beef'", f"kept are {kept}"):
        rollback(serving.daemon, "beef")

    serving.check()


def test_the_command_names_the_refused_package_and_exits_1(serving: Served, tmp_path: Path) -> None:
    (tmp_path / "model.tar").write_bytes(b"hello\n" * 500)

    done = admin(serving.daemon, "update-model", tmp_path / "model.tar")

    assert done.returncode == 1
    assert done.stderr.startswith("shmserve-admin: ") and "send a directory, or a tar of one" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    serving.check()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (os.mkfifo, "is neither a directory nor a tar file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["absent", "FIFO", "loop"],
)
def test_the_command_refuses_a_package_that_it_cannot_open(
    make: Any, said: str, serving: Served, tmp_path: Path
) -> None:
    make(tmp_path / "model")

    done = admin(serving.daemon, "update-model", tmp_path / "model")

    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    serving.check()
