"""The limit of a load: why an asked rate was not reached, from what the engine, the clients and the machine did."""

from __future__ import annotations

from typing import Any

import pytest

from shmserve.client.cli.load_limit import Look, Use, shortfall


def look(at_s: float, idle_s: float, **engine: Any) -> Look:
    return Look(at_s, {"pid": 7, "resident_bytes": 1, **engine} if engine else None, idle_s, 4)


def result(**found: Any) -> dict[str, Any]:
    use = Use(0.5, 0.5, 1, 0.5, 0.5, 4).to_json() | {key: found.pop(key) for key in list(found) if key in USE}
    load = {"clients": 2, "rate_hz": 50.0, "seconds": 10.0, "requests": 500, "per_second": 50.0, "errors": {}}
    return {**load, "round_trip_us": {"mean": 900.0}, "use": use, **found}


USE = ("engine_busy_share", "client_cpus", "machine_idle_share")


def test_the_use_is_of_the_time_between_two_looks() -> None:
    use = Use.between(look(10.0, 100.0, busy_s=2.0, cpu_s=5.0), look(20.0, 110.0, busy_s=11.0, cpu_s=17.0), 0.25)

    assert use == Use(0.9, 1.2, 1, 0.25, 0.25, 4)


@pytest.mark.parametrize("after", [look(2.0, 1.0), look(2.0, 1.0, busy_s=0.1, cpu_s=0.1, pid=8)])
def test_an_engine_that_was_replaced_has_no_use(after: Look) -> None:
    use = Use.between(look(1.0, 0.0, busy_s=2.0, cpu_s=5.0), after, 0.1)

    assert (use.engine_busy_share, use.engine_cpus) == (None, None)
    assert "the engine was replaced meanwhile" in (shortfall({**result(), "use": use.to_json()}) or "")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"engine_busy_share": 0.95}, "the engine was busy 95 % of the time"),
        ({"client_cpus": 0.95}, "the clients were busy: one used 0.95 processors"),
        ({"round_trip_us": {"mean": 40_000.0}}, "so one client reaches 25 a second"),
        ({"errors": {"RequestTimeout": 501}}, "501 requests ended with an error"),
        ({"errors": {"RequestTimeout": 20}}, "20 requests ended with an error"),
        ({}, "neither the engine nor the clients were busy"),
        ({"machine_idle_share": 0.02}, "; the 4 processors of the machine were busy"),
    ],
)
def test_a_rate_that_was_not_reached_has_a_reason(found: dict[str, Any], reason: str) -> None:
    text = shortfall(result(**found)) or ""

    assert text.startswith("asked 100 a second, answered 50 (50 %): ")
    assert reason in text


@pytest.mark.parametrize(
    "found",
    [
        {"requests": 985},
        {"rate_hz": None, "requests": 3},
        {"rate_hz": 1.0, "seconds": 3.0, "requests": 4},  # of the last request of each client the time may be over
    ],
)
def test_a_rate_that_was_reached_needs_no_words(found: dict[str, Any]) -> None:
    assert shortfall(result(**found)) is None
