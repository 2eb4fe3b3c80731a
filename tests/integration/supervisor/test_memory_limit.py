"""A daemon whose control group has a memory limit (MemoryMax=, docker run --memory)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from shmserve.client import EngineLost, ServiceUnavailable
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.memory_group import MemoryGroup, NoMemoryGroup

MIB = 1 << 20


@pytest.fixture
def start_limited(make_daemon: Callable[..., Daemon]) -> Iterator[Callable[..., tuple[Daemon, MemoryGroup]]]:
    """Starts a daemon, and from then on what it and its engines take is limited."""
    groups: list[MemoryGroup] = []

    def start(limit_bytes: int, **settings: object) -> tuple[Daemon, MemoryGroup]:
        group = MemoryGroup(limit_bytes)
        try:
            groups.append(group.__enter__())
        except NoMemoryGroup as error:
            pytest.skip(str(error))
        daemon = make_daemon("obedient", **settings).start()
        for pid in (daemon.pid, daemon.engine_pid):
            group.add(pid)
        return daemon, group

    yield start
    for group in groups:
        group.__exit__(None, None, None)


@pytest.mark.fault("T65")
@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
def test_a_channel_above_the_memory_limit_is_refused_and_the_kernel_kills_no_process(
    start_limited: Callable[..., tuple[Daemon, MemoryGroup]], transport: str
) -> None:
    daemon, group = start_limited(64 * MIB, arguments=("--transport", transport))
    pids = daemon.pid, daemon.engine_pid
    with daemon.client(max_retries=0) as client:
        assert client.infer({"do": "echo", "value": 1}) == 1

        said = r"bytes of shared memory are needed and of the daemon's memory limit, 67108864 bytes, \d+ are free"
        with pytest.raises(ServiceUnavailable, match=f"{said}.*MemoryMax= of the unit, docker run --memory"):
            client.infer({"do": "echo", "value": np.zeros(80 * MIB, np.uint8)})

        assert client.infer({"do": "echo", "value": np.zeros(MIB, np.uint8)}).size == MIB
    assert (daemon.pid, daemon.engine_pid) == pids
    assert group.kills() == 0


@pytest.mark.fault("T66")
@pytest.mark.long
def test_the_kernel_kills_the_engine_that_takes_too_much_and_the_next_one_serves(
    start_limited: Callable[..., tuple[Daemon, MemoryGroup]],
) -> None:
    daemon, group = start_limited(500 * MIB)
    supervisor, engine = daemon.pid, daemon.engine_pid
    with daemon.client(timeout=100) as client, daemon.client(timeout=100) as neighbour:
        assert neighbour.infer({"do": "echo", "value": 1}) == 1

        with pytest.raises(EngineLost):
            client.infer({"do": "take_memory", "bytes": 800 * MIB})

        assert neighbour.infer({"do": "echo", "value": 2}) == 2
        assert client.infer({"do": "echo", "value": 3}) == 3
    assert daemon.pid == supervisor and daemon.engine_pid != engine
    assert group.kills() == 2, "it is tried once more"
    assert "killed by SIGKILL" in daemon.log


@pytest.mark.fault("T66")
def test_the_unit_outlives_an_engine_that_the_kernel_killed() -> None:
    unit = REPOSITORY / "systemd" / "shmserved@.service"
    settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if line.startswith("OOM"))

    assert settings["OOMPolicy"] == "continue"  # the default ends the whole service with its engine
    assert int(settings["OOMScoreAdjust"]) < 0
