"""Requests that kill the engine: who hears of it, who pays for it, and who has to go."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shmserve.client import ClientEvicted, EngineLost
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too


def test_a_client_that_crashes_the_engine_three_times_is_evicted_whatever_was_answered_between(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("stateful", config="ban_s = 4\n")
    # Who is evicted does not come back by itself: a retry would come after a quarter of an hour.
    with daemon.client(timeout=100) as other, daemon.client(timeout=5000, retry_delay=1000) as client:
        assert other.infer({"add": 1}) == {"total": 1}
        for _ in range(2):
            with pytest.raises(EngineLost):
                client.infer({"die": True})
            assert client.infer({"add": 1}) == {"total": 1}, "an answer does not begin the count again"

        with pytest.raises(
            ClientEvicted,
            match="serves this process no more: its requests crashed the engine 3 times within 10 minutes",
        ) as evicted:
            client.infer({"die": True})
        assert (evicted.value.service, evicted.value.retry_after) == (daemon.name, 4.0)

        with pytest.raises(ClientEvicted, match=r"it may attach again in \d s \(ban_s = 4\)") as banned:
            client.infer({"add": 1})
        assert banned.value.retry_after is not None and 0 < banned.value.retry_after <= 4
        assert other.infer({"add": 2}) == {"total": 2}

        def served() -> bool:
            try:
                return bool(client.infer({"add": 1}))
            except ClientEvicted:
                return False

        wait_until("it is let back in", served)
    assert daemon.status()["engine"]["restarts"] == 3
    assert "client 1 is evicted: its requests crashed the engine 3 times" in daemon.log
    assert "the engine is started again in" not in daemon.log, "the others wait for no client's doing"


def test_a_robot_is_served_beside_another_process_that_kills_the_engine_with_every_other_request(
    start_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot]
) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(timeout=100) as robot, ThreadPoolExecutor(1) as pool:
        robot.infer({"do": "echo", "value": -1})
        poisonous = pool.submit(start_robot("poisonous", daemon).finish)
        served = 0
        while not poisonous.done():
            assert robot.infer({"do": "echo", "value": served}) == served
            served += 1

        # None is tried a second time: this robot would wait for one engine more.
        assert poisonous.result() == ["EngineLost", "answered", "EngineLost", "answered", "ClientEvicted"]
        assert daemon.status()["engine"]["restarts"] == 3
        assert robot.infer({"do": "echo", "value": "still"}) == "still"
    assert "the engine is started again in" not in daemon.log


@pytest.mark.long
def test_processes_that_kill_an_engine_one_after_the_other_are_evicted_as_their_user(
    start_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot]
) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(timeout=100) as robot, ThreadPoolExecutor(1) as pool:
        endings: list[str] = []
        while "ClientEvicted" not in endings and len(endings) < 10:
            ended = pool.submit(start_robot("poisonous", daemon, "once").finish)
            while not ended.done():
                assert robot.infer({"do": "echo", "value": 1}) == 1
            endings += ended.result()

        # The first came after nobody's death; the three after it did, as a program does that is started again.
        assert endings == ["EngineLost", "answered"] * 3 + ["ClientEvicted"]
        assert start_robot("poisonous", daemon, "once").finish() == ["ClientEvicted"]
        assert robot.infer({"do": "echo", "value": "still"}) == "still", "it was there before"


@pytest.mark.long
def test_a_request_that_kills_its_batch_the_first_time_dies_alone_the_second_time(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("batched")
    with daemon.client(timeout=100, slots=4) as client, daemon.client(timeout=100) as poisoned:
        row = {"row": 0, "x": np.ones(2, np.float32)}
        held = client.submit({**row, **gate.observation})
        gate.wait_entered()
        waiting = [client.submit({**row, "row": number}) for number in (1, 2)]
        poison = poisoned.submit({**row, "die": True})
        last = client.submit({**row, "row": 3})
        gate.open()

        assert held.result()["batch"] == 1
        assert [pending.result()["row"] for pending in (*waiting, last)] == [1, 2, 3]
        with pytest.raises(EngineLost):
            poison.result()
    assert daemon.status()["engine"]["restarts"] == 2
