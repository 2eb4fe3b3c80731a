"""The activity of the last minute, from looks at counters that only grow."""

from __future__ import annotations

import pytest

from shmserve.daemon.ipc.stats import Distribution, Stage
from shmserve.daemon.supervisor.recent_activity import WINDOW_S, Look, RecentLooks


def look(at_s: float, served: int, cpu_s: float | None = None, pid: int = 7) -> Look:
    return Look(at_s, {"served": served}, {Stage.TOTAL: Distribution((served, 0))}, pid, cpu_s)


def test_before_the_first_look_the_activity_is_since_the_start() -> None:
    recent = RecentLooks(100.0).until(look(104.0, 8, 2.0))

    assert (recent.window_s, recent.counters["served"], recent.latency[Stage.TOTAL].total) == (4.0, 8, 8)
    assert recent.engine_cpus is None, "nobody has looked at this engine before"


def test_before_the_first_engine_every_count_is_0() -> None:
    assert RecentLooks(0.0).until(Look(3.0)).counters["served"] == 0


def test_older_requests_than_a_minute_are_left_out() -> None:
    looks = RecentLooks(0.0)
    for number in range(1, 101):
        looks.note(look(5.0 * number, 1000 * number, 4.0 * number))

    recent = looks.until(look(502.0, 100_300, 401.6))

    assert WINDOW_S - 5 <= recent.window_s <= WINDOW_S + 5
    assert (
        recent.counters["served"] == recent.latency[Stage.TOTAL].total == 300 + 1000 * round((recent.window_s - 2) / 5)
    )
    assert recent.engine_cpus == pytest.approx(0.8)


def test_the_processors_of_an_engine_are_of_its_own_time() -> None:
    looks = RecentLooks(0.0)
    looks.note(look(5.0, 10, 50.0, pid=7))
    looks.note(look(10.0, 20, 1.0, pid=8))

    assert looks.until(look(14.0, 30, 3.0, pid=8)).engine_cpus == 0.5
    assert looks.until(look(14.0, 30, 0.1, pid=9)).engine_cpus is None


def test_a_look_at_the_same_moment_divides_by_nothing() -> None:
    looks = RecentLooks(0.0)
    looks.note(look(5.0, 10, 1.0))

    assert looks.until(look(5.0, 10, 1.0)).engine_cpus is None
