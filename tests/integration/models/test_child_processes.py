"""Programs and processes that a policy starts: nothing of the engine's own set-up is theirs, and they can be ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shmserve.client import ShmClient
from shmserve.daemon.host.descriptors import keep_room
from tests.support.daemon_process import POLICIES, Daemon, environment


@pytest.fixture(scope="module")
def parent() -> Iterator[Daemon]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))  # which the daemon raises for itself
    try:
        with Daemon("parent") as daemon:
            yield daemon
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def client(parent: Daemon) -> Iterator[ShmClient]:
    with parent.client(timeout=120) as client:
        yield client


def test_children_of_every_kind_end_on_request(parent: Daemon, client: ShmClient) -> None:
    engine = parent.engine_pid
    found = client.infer({"do": "end"})

    terminated = -signal.SIGTERM
    assert found == {
        "terminate": terminated,
        "interrupt": -signal.SIGINT,
        "group": terminated,
        "shell": 128 + signal.SIGTERM,
        "posix_spawn": terminated,
        "fork": terminated,
        "spawn": terminated,
        "pool": [0, 1, 4],
        "executor": [0, 1, 4],
        "loader": [[0, 1, 2, 3], [4, 5, 6, 7]],
    }
    assert parent.engine_pid == engine


def test_a_program_of_the_package_runs_in_the_environment_of_a_shell(parent: Daemon, client: ShmClient) -> None:
    found = client.infer({"do": "script"})

    assert found["error"] == ""
    assert differences(json.loads(found["out"]), from_a_shell(parent)) == {}


def test_a_forked_child_finds_it_as_well(parent: Daemon, client: ShmClient) -> None:
    found = client.infer({"do": "fork"})

    assert differences(json.loads(json.dumps(found)), from_a_shell(parent)) == {}


def test_a_policy_module_finds_the_arguments_umask_and_directory_of_a_script(parent: Daemon, client: ShmClient) -> None:
    found = client.infer({"do": "itself"})

    (path,) = {found["path"], *(argument.rpartition("/")[0] for argument in found["arguments"])}
    assert found["arguments"] == [f"{path}/policy.py"]
    assert found["umask"] == from_a_shell(parent)["umask"] and found["directory"] == str(parent.folder)


def from_a_shell(daemon: Daemon) -> Any:
    done = subprocess.run(
        [sys.executable, POLICIES / "parent" / "surroundings.py"],
        capture_output=True,
        text=True,
        env={**environment(), **daemon.spare, **daemon.environment},
        check=True,
    )
    return json.loads(done.stdout)


def differences(found: Any, wanted: Any) -> dict[str, Any]:
    flat = [{**facts.pop("environment"), **facts.pop("limits"), **facts} for facts in (found, wanted)]
    names = {name for name in {*flat[0], *flat[1]} if not name.startswith("PYTEST_")}
    return {name: [facts.get(name) for facts in flat] for name in names if flat[0].get(name) != flat[1].get(name)}


def test_an_engine_raises_its_limit_of_descriptors_when_it_comes_near_to_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    held: list[int] = []
    try:
        keep_room()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 512)
        while not held or held[-1] < 400:
            held.append(os.open(os.devnull, os.O_RDONLY))
        keep_room()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 1536)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
