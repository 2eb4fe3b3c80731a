"""Account of a robot's calls through a link: how many, by whom they were answered, and where the time of each long one went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from chaos.processor_watch import Pauses
from chaos.remote_robot import Call

#: A call may take this much longer than its budget.
SLACK_S = 0.01
_SHOWN = 12


@dataclass(frozen=True)
class Happened:
    """An event of the run, from its begin to its end (CLOCK_MONOTONIC)."""

    what: str
    began_s: float
    ended_s: float


def account(
    calls: list[Call], wrong: list[str], happened: list[Happened], pauses: Pauses, *, budget_s: float
) -> list[str]:
    """Return the lines of the account."""
    times = np.array([call.taken_s for call in calls])
    limit_s = budget_s + SLACK_S
    over = sorted((call for call in calls if call.taken_s > limit_s), key=lambda call: -call.taken_s)
    lost = [_lost(call, pauses) for call in over]
    explained = sum(
        call.taken_s - max(found.values(), default=0.0) <= limit_s for call, found in zip(over, lost, strict=True)
    )
    lines = [
        f"calls: {len(calls)}, answered by {dict(Counter(call.source for call in calls))}",
        f"wrong or failed: {len(wrong)}",
        *(f"  {text}" for text in sorted(set(wrong))[:5]),
        f"p50 {1e3 * np.median(times):.1f} ms, p99 {1e3 * np.percentile(times, 99):.1f} ms, longest {1e3 * times.max():.1f} ms",
        (
            f"longer than budget + {1e3 * SLACK_S:.0f} ms ({1e3 * limit_s:.0f} ms): {len(over)}, of them {explained} while the machine gave "
            "no processor for as long as the call was too long"
        ),
    ]
    for call, found in list(zip(over, lost, strict=True))[:_SHOWN]:
        parts = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in call.parts.items())
        lines.append(f"  {1e3 * call.taken_s:.0f} ms, {_near(call, happened)}: {parts} (ms)")
        if found:
            without = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in found.items())
            lines.append(f"    meanwhile without a processor (ms): {without}")
    return lines


def _lost(call: Call, pauses: Pauses) -> dict[str, float]:
    found = pauses.within(call.began_s, call.began_s + call.taken_s)
    if call.no_processor_s > 1e-3:
        found["the robot"] = call.no_processor_s
    return found


def _near(call: Call, happened: list[Happened]) -> str:
    """Return the event during which the call was made, or the nearest one."""

    def distance_s(event: Happened) -> float:
        return max(event.began_s - call.began_s - call.taken_s, call.began_s - event.ended_s, 0.0)

    if not happened:
        return "no event"
    event = min(happened, key=distance_s)
    if distance_s(event) == 0.0:
        return f"{call.began_s - event.began_s:.2f} s after the begin of: {event.what}"
    side = "after the end of" if call.began_s > event.ended_s else "before"
    return f"{distance_s(event):.2f} s {side}: {event.what}"
