"""Limit of a load: what was busy while clients asked a service, and why an asked rate was not reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .quantities import memory, percent

#: A rate is reached with this share of its requests; what was busy for this share of the time is the limit.
_REACHED = 0.98
_BUSY = 0.9


@dataclass(frozen=True)
class Look:
    """Engine and machine at one moment (time.monotonic() seconds)."""

    at_s: float
    engine: Mapping[str, Any] | None
    #: Time for which the processors had nothing to do, all together; None where the kernel does not say.
    idle_s: float | None
    processors: int

    @staticmethod
    def of(at_s: float, status: Mapping[str, Any], stat: str, ticks_per_s: int) -> Look:
        """Return the look for a status of the service and a text of /proc/stat.

        >>> Look.of(0.0, {"engine": None}, "cpu 100 0 10 400 20 0 0 0\\ncpu0 100 0 10 400 20 0 0 0\\nintr 7\\n", 100)
        Look(at_s=0.0, engine=None, idle_s=4.2, processors=1)
        """
        lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
        idle_s = sum(map(int, lines[0][4:6])) / ticks_per_s if lines else None
        return Look(at_s, status["engine"], idle_s, max(1, len(lines) - 1))


@dataclass(frozen=True)
class Use:
    """Averages over a load; a share is of the time, processors may be more than one."""

    #: None of an engine that was replaced meanwhile.
    engine_busy_share: float | None
    engine_cpus: float | None
    engine_resident_bytes: int | None
    #: Processors that the busiest client used.
    client_cpus: float
    machine_idle_share: float | None
    processors: int

    @staticmethod
    def between(before: Look, after: Look, client_cpus: float) -> Use:
        seconds = max(after.at_s - before.at_s, 1e-9)
        then, now = before.engine or {}, after.engine or {}
        busy = cpus = idle = None
        if now and now["pid"] == then.get("pid"):
            busy = (now["busy_s"] - then["busy_s"]) / seconds
            if now["cpu_s"] is not None and then["cpu_s"] is not None:
                cpus = (now["cpu_s"] - then["cpu_s"]) / seconds
        if before.idle_s is not None and after.idle_s is not None:
            idle = min(1.0, max(0.0, (after.idle_s - before.idle_s) / seconds / after.processors))
        return Use(busy, cpus, now.get("resident_bytes"), client_cpus, idle, after.processors)

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def use_text(use: Mapping[str, Any]) -> str:
    """Return the use in a line.

    >>> use = {"engine_busy_share": 0.7, "engine_cpus": 0.9, "engine_resident_bytes": 412 << 20, "client_cpus": 0.3}
    >>> use_text({**use, "machine_idle_share": 0.1, "processors": 2})
    'engine busy 70 %, 0.90 processors, 412 MiB; busiest client 0.30 processors; machine idle 10 % of 2 processors'
    """
    words = "engine replaced meanwhile"
    if use["engine_busy_share"] is not None:
        words = f"engine busy {percent(use['engine_busy_share'])}"
        if use["engine_cpus"] is not None:
            words += f", {use['engine_cpus']:.2f} processors"
        if use["engine_resident_bytes"] is not None:
            words += f", {memory(use['engine_resident_bytes'])}"
    words += f"; busiest client {use['client_cpus']:.2f} processors"
    if use["machine_idle_share"] is not None:
        words += f"; machine idle {percent(use['machine_idle_share'])} of {use['processors']} processors"
    return words


def shortfall(result: Mapping[str, Any]) -> str | None:
    """Return why the asked rate was not reached, and by how much; None if it was, or none was asked.

    >>> use = {"engine_busy_share": 0.97, "client_cpus": 0.1, "machine_idle_share": 0.4, "processors": 2}
    >>> load = {"clients": 4, "rate_hz": 50, "seconds": 10.0, "requests": 1810, "per_second": 181.0, "errors": {}}
    >>> shortfall({**load, "use": use, "latency_us": {"p50": 61_000.0}, "round_trip_us": {"p50": 19_000.0}})
    'asked 200 a second, answered 181 (90 %): the engine was busy 97 % of the time'
    >>> shortfall({**load, "requests": 1996, "per_second": 199.6}) is None
    True
    """
    if not result["rate_hz"]:
        return None
    asked = result["clients"] * result["rate_hz"]
    expected = asked * result["seconds"]
    # The last request of each client may be due when the time is over.
    if result["requests"] >= min(expected * _REACHED, expected - result["clients"]):
        return None
    share = result["requests"] / expected
    idle = result["use"]["machine_idle_share"]
    machine = (
        f"; the {result['use']['processors']} processors of the machine were busy"
        if idle is not None and idle < 1 - _BUSY
        else ""
    )
    return f"asked {asked:g} a second, answered {result['per_second']:g} ({percent(share)}): {_reason(result)}{machine}"


def _reason(result: Mapping[str, Any]) -> str:
    use, failed = result["use"], sum(result["errors"].values())
    if failed > result["requests"]:
        return f"{failed:,} requests ended with an error"
    if use["engine_busy_share"] is None:
        return "the engine was replaced meanwhile"
    if use["engine_busy_share"] >= _BUSY:
        return f"the engine was busy {percent(use['engine_busy_share'])} of the time"
    if use["client_cpus"] >= _BUSY:
        return f"the clients were busy: one used {use['client_cpus']:.2f} processors, so ask less with each of more clients"
    round_trip, period_ms = result["round_trip_us"], 1000 / result["rate_hz"]
    if round_trip is not None and round_trip["mean"] / 1000 > period_ms:
        return (
            f"a round trip took {round_trip['mean'] / 1000:.1f} ms on average, and a client sends the next request after the "
            f"answer, so one client reaches {1e6 / round_trip['mean']:.0f} a second: ask less with each of more clients"
        )
    if failed:
        return f"{failed:,} requests ended with an error"
    return "neither the engine nor the clients were busy; single requests took long (max)"
