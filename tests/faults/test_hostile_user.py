"""Another user's process does its worst by transport `sealed`: the robot beside it does not notice.

SHMSERVE_HOSTILE_SECONDS makes each attack as long as you like.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon_process import Daemon, wait_until
from tests.support.stranger_process import UID, Stranger, let_in, needs_root

SECONDS = float(os.environ.get("SHMSERVE_HOSTILE_SECONDS", "1"))
ATTACKS = ("mutate", "cut_off", "ring", "pass_descriptors", "crowd", "babble", "resize", "flood", "churn")
_CONFIG = f"""
allow_uids = [{UID}]
max_clients = 16
max_clients_per_user = 8
max_bytes_per_user = 67_108_864
ban_s = 0
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("obedient", config=_CONFIG, arguments=("--transport", "sealed")) as daemon:
        let_in(daemon)
        yield daemon


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.fault("T01", "T04", "T12", "T13", "T21", "T62")
@needs_root
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_robot_beside_an_attacker_does_not_notice(daemon: Daemon, attack: str) -> None:
    engine, supervisor = daemon.engine_pid, daemon.pid
    wait_until("nobody is attached", lambda: daemon.status()["clients"] == [])
    with daemon.client() as robot:
        robot.infer({"do": "echo", "value": 0})
        before = descriptors(supervisor), descriptors(engine)
        frame = np.arange(1000)

        with Stranger("attacks", daemon.name, daemon.runtime_dir, attack, SECONDS) as attacker:
            assert attacker.says() == "began"
            number = 0
            while attacker.process.poll() is None:
                number += 1
                assert np.array_equal(robot.infer({"do": "echo", "value": frame + number}), frame + number)
            said = attacker.finish()

        assert number > 0, said
        for _ in range(20):
            assert np.array_equal(robot.infer({"do": "echo", "value": frame}), frame)
        # Fewer: the connection by which this test asked may have been open still.
        wait_until(
            "what the attacker took is given back",
            lambda: descriptors(supervisor) <= before[0] and descriptors(engine) <= before[1],
        )
    assert (daemon.engine_pid, daemon.pid) == (engine, supervisor), said
    assert daemon.status()["engine"]["restarts"] == 0
    assert Path(f"/proc/{supervisor}").exists()
    assert "Traceback" not in daemon.log, daemon.log
    assert "\x1b" not in daemon.log
    assert max(map(len, daemon.log.splitlines())) < 500
