"""Members of the service's group look at it and change nothing, whatever else they try."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.support.daemon_process import Daemon
from tests.support.gain_packages import gain_package
from tests.support.stranger_process import UID, Stranger, let_in, needs_root

pytestmark = needs_root
#: The daemon of the tests runs as root, so the group that it serves is root's.
GROUP = 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    package = gain_package(tmp_path_factory.mktemp("package"), 2)
    with Daemon(package, config="group_clients = true\n") as daemon:
        let_in(daemon)
        yield daemon


def said(daemon: Daemon, commands: list[list[str]], groups: tuple[int, ...] = (GROUP,)) -> list[tuple[int, str, str]]:
    where = ["--name", daemon.name, "--runtime-dir", str(daemon.runtime_dir)]
    words = [[*where, *command] for command in commands]
    with Stranger("commands", UID, json.dumps(groups), json.dumps(words)) as stranger:
        found: list[tuple[int, str, str]] = [tuple(each) for each in json.loads(stranger.finish().splitlines()[-1])]
    return found


def test_a_member_of_the_group_looks_at_everything_but_the_programs_of_other_users(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.infer({"x": np.arange(3), "robot": "r"})
        looked = said(
            daemon,
            [["status", "--json"], ["clients", "--json"], ["versions", "--json"], ["config", "--json"], ["metrics"]],
        )

    assert [(status, errors) for status, _, errors in looked] == [(0, "")] * 5
    status, clients, versions, settings = (json.loads(output) for _, output, _ in looked[:4])
    assert (status["state"], status["pid"]) == ("ready", daemon.pid)
    assert len(versions) == 1 and settings["settings"]
    for found in (status["clients"], clients):
        assert [(each["uid"], each["pid"], each["program"]) for each in found] == [(os.getuid(), 0, "")]
    assert set(re.findall(r'program="(.*?)"', looked[4][1])) == {""}


@pytest.mark.fault("T70")
def test_every_command_that_changes_something_is_refused_with_the_remedy(daemon: Daemon) -> None:
    assert daemon.package is not None
    package = shutil.copytree(daemon.package, daemon.folder / "readable")
    package.chmod(0o755)
    changes = [["update-model", str(package)], ["rollback"], ["drain"], ["reload"], ["record", "--out", "/dev/null"]]
    names = ["UpdateModel", "Rollback", "Drain", "Reload", "Record"]

    refused = said(daemon, changes)

    for (status, output, errors), name in zip(refused, names, strict=True):
        assert (status, output) == (1, ""), (name, errors)
        assert f"uid {UID} may look at this service and not operate it ({name}): run as the daemon's user" in errors
        assert "or have the setting admin_uids name this user" in errors
    assert daemon.status()["state"] == "ready"
    assert f"refusing UpdateModel to uid {UID}, pid " in daemon.log


def test_a_user_outside_the_group_cannot_connect(daemon: Daemon) -> None:
    [(status, _, errors)] = said(daemon, [["status"]], groups=())

    assert status == 1
    assert "may not be opened by uid" in errors and "usermod -aG shmserve USER" in errors


def test_a_member_of_the_group_asks_with_zeros_in_the_shape_of_the_example(daemon: Daemon) -> None:
    [(status, output, errors)] = said(daemon, [["infer", "--json"]])

    assert (status, errors) == (0, "")
    assert "zeros" in json.loads(output)["observation"]["source"], output


def test_lookers_take_no_connection_of_the_operators(daemon: Daemon) -> None:
    with ExitStack() as crowd:
        users = [
            crowd.enter_context(Stranger("crowds", daemon.admin_socket, UID + number, json.dumps([GROUP]), 20))
            for number in range(3)
        ]
        answered = [int(user.says()) for user in users]

        assert max(answered) <= 16
        assert sum(answered) == 32, "all that lookers may have"
        assert daemon.status()["state"] == "ready"
