"""Requests that kill the engine: who hears of it, and who has to go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shmserve.client import ClientSentAway, EngineLost
from tests.daemon_process import Daemon, wait_until
from tests.gate import Gate


def test_a_client_whose_requests_crash_the_engine_three_times_in_a_row_is_sent_away(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("stateful", config="sent_away_s = 4\n")
    # Who is sent away does not come back by itself: a retry would come after a quarter of an hour.
    with daemon.client(timeout=100) as other, daemon.client(timeout=5000, retry_delay=1000) as client:
        assert other.infer({"add": 1}) == {"total": 1}
        with pytest.raises(EngineLost):
            client.infer({"die": True})
        assert client.infer({"add": 1}) == {"total": 1}, "its crashes are counted from the beginning"
        for _ in range(2):
            with pytest.raises(EngineLost):
                client.infer({"die": True})

        with pytest.raises(
            ClientSentAway, match="serves this process no more: its requests crashed the engine 3 times"
        ):
            client.infer({"die": True})

        with pytest.raises(ClientSentAway, match=r"it may attach again in \d s \(sent_away_s = 4\)"):
            client.infer({"add": 1})
        assert other.infer({"add": 2}) == {"total": 2}

        def served() -> bool:
            try:
                return bool(client.infer({"add": 1}))
            except ClientSentAway:
                return False

        wait_until("it is let back in", served)
    assert daemon.status()["engine"]["restarts"] == 4
    assert "client 1 is sent away: its requests crashed the engine 3 times in a row" in daemon.log


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
