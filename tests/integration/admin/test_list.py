"""shmserve-admin list: daemons that run, that were killed, and those of other users."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin_command import COMMAND
from tests.support.daemon_process import Daemon, environment
from tests.support.stranger_process import UID, needs_root


def listed(tmp_path: Path, *arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    """What it prints, where no other directory of this machine is a usual one."""
    set_here = {"TMPDIR": tmp_path, "XDG_RUNTIME_DIR": tmp_path / "run", "XDG_CONFIG_HOME": tmp_path, **variables}
    return subprocess.run(
        [COMMAND, "list", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **{name: str(value) for name, value in set_here.items()}},
        check=True,
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with Daemon("echo", name="arm") as daemon:
        yield daemon


def test_running_killed_and_absent_daemons_are_told_apart(running: Daemon, tmp_path: Path) -> None:
    killed = Daemon("echo")
    killed.runtime_dir, killed.service_dir = running.runtime_dir, running.runtime_dir / killed.name
    with killed:
        killed.kill9()
        found = json.loads(listed(tmp_path, "--json", SHMSERVE_RUNTIME_DIR=running.runtime_dir).stdout)
        text = listed(tmp_path, "--runtime-dir", running.runtime_dir).stdout

    services = {service["name"]: service for service in found if service["directory"].startswith(str(running.folder))}
    assert services.keys() == {"arm", killed.name}
    assert (services["arm"]["state"], services["arm"]["pid"]) == ("ready", running.pid)
    assert services["arm"]["uid"] == os.getuid() and services["arm"]["model"]["name"] == "echo"
    assert services["arm"]["since_s"] > 1_600_000_000
    assert (services[killed.name]["state"], services[killed.name]["pid"]) == ("stale", None)
    assert f"{killed.name}: stale: left by a daemon that ended: rm -r {killed.service_dir}\n" in text
    assert "ready" in text.splitlines()[1]
    assert "no services in" in listed(tmp_path, "--runtime-dir", tmp_path / "nowhere").stdout


@needs_root
def test_the_daemon_of_another_user_is_shown_and_not_asked(running: Daemon, tmp_path: Path) -> None:
    theirs = tmp_path / f"shmserve-{UID}"
    theirs.symlink_to(running.runtime_dir)  # the link is a stranger's, and so is all that it leads to
    os.chown(theirs, UID, UID, follow_symlinks=False)

    found = json.loads(listed(tmp_path, "--json").stdout)

    (service,) = (each for each in found if each["directory"] == str(theirs / "arm"))
    assert (service["state"], service["pid"], service["model"]) == ("running", running.pid, None)
    assert "another user's, not asked" in service["note"]
