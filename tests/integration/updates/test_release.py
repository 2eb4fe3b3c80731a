"""An upgrade of the installed package under a running daemon: nothing of the new release runs under the old one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmserve import __version__
from shmserve.protocol import WIRE_VERSION
from tests.support.admin_command import admin, engines_of, refused, rollback, served, update
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.gain_packages import gain_package

pytestmark = pytest.mark.long

_PACKAGE = REPOSITORY / "shmserve"
_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package, for a daemon that imports it from there."""
    return Path(shutil.copytree(_PACKAGE, tmp_path / "installed" / "shmserve"))


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon], installed: Path, tmp_path: Path) -> Daemon:
    """Of that copy; keeps nothing warm, so that a rollback has to start an engine."""
    daemon = make_daemon(gain_package(tmp_path, 2), config="standby_s = 0\n")
    daemon.environment["PYTHONPATH"] = str(installed.parent)
    return daemon.start()


def upgrade(installed: Path, *, wire: bool = False) -> str:
    """Another release takes the copy's place, or one of another wire version; returns what the daemon says of it."""
    file, before, after = (
        ("protocol.py", f"WIRE_VERSION = {WIRE_VERSION}", f"WIRE_VERSION = {WIRE_VERSION + 1}")
        if wire
        else ("__init__.py", f'"{__version__}"', '"99.1.0"')
    )
    text = (installed / file).read_text()
    assert before in text
    (installed / file).write_text(text.replace(before, after))
    new = f"{__version__} (wire version {WIRE_VERSION + 1})" if wire else f"99.1.0 (wire version {WIRE_VERSION})"
    return (
        f"the daemon runs shmserve {__version__} (wire version {WIRE_VERSION}), this engine is {new}: "
        "restart the service"
    )


@pytest.mark.long
def test_after_an_upgrade_an_update_is_refused_and_the_old_model_serves_on_until_the_restart(
    daemon: Daemon, installed: Path, tmp_path: Path
) -> None:
    old, new = served(daemon), gain_package(tmp_path, 3)
    engines = engines_of(daemon.pid)
    said = upgrade(installed)

    with refused("restart", "start failed: ReleaseMismatch: ", said):
        update(daemon, new)
    with refused("restart", said):
        update(daemon, new, in_place=True)

    assert engines_of(daemon.pid) == engines, "the old one was not stopped for it, and no other one is left"
    assert daemon.status()["problems"] == [said]
    assert f"problem   {said[:40]}" in admin(daemon, "status").stdout
    assert [kept["version"] for kept in daemon.admin("Versions")["versions"]] == [old], "and none was taken in"
    with daemon.client() as client:
        assert client.infer(_X)["k"] == 2

    daemon.stop()
    daemon.start()

    assert (daemon.status()["release"], daemon.status()["problems"]) == ("99.1.0", [])
    update(daemon, new)


def test_an_engine_of_another_wire_version_refuses_to_run(daemon: Daemon, installed: Path, tmp_path: Path) -> None:
    update(daemon, gain_package(tmp_path, 3))
    said = upgrade(installed, wire=True)

    with refused("restart", said):
        rollback(daemon)

    assert f"engine: {said}" in daemon.log
    assert daemon.status()["problems"] == [said]
    assert all(kept["refused"] is None for kept in daemon.admin("Versions")["versions"]), "it is not the model's fault"
    with daemon.client() as client:
        assert client.infer(_X)["k"] == 3


@pytest.mark.long
def test_a_daemon_of_an_upgraded_package_ends_with_its_engine_so_that_it_is_restarted(
    daemon: Daemon, installed: Path
) -> None:
    with daemon.client(max_retries=1000, retry_delay=0.05) as client:
        assert client.infer(_X)["k"] == 2
        said = upgrade(installed)

        os.kill(daemon.engine_pid, signal.SIGKILL)

        assert daemon.wait_end() == 1
        assert f"shmserved: start failed: ReleaseMismatch: {said}" in daemon.log
        daemon.start()
        assert client.infer(_X)["k"] == 2


def test_a_client_killed_during_the_installation_gets_no_message() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        told = subprocess.run(
            [sys.executable, "-m", "shmserve.daemon.ipc.release"], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)

    assert (told.returncode, told.stderr) == (0, b"")
