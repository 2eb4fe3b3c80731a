"""Ratios within one run, by which it can be compared with another run, even on another machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.results import Document

Figures = dict[str, Any]

WORKLOADS = ("tiny", "vga", "fullhd")
#: The ways that shmserve is compared with; they need no package that a check would have to install.
BESIDE = "unix-socket-pickle5"
WAYS = {"shmserve": "Python, 2 copies, spin", "shmserve-in-place": "Python, 1 copy, spin"}


@dataclass(frozen=True)
class Ratio:
    """Ratio that may be worse by the factor `tolerance`, plus `slack`."""

    name: str
    value: float
    lower_is_better: bool = True
    tolerance: float = 1.25
    slack: float = 0.0

    def worst_allowed(self) -> float:
        """Return the worst value allowed, with this ratio as the reference.

        >>> Ratio("latency", 2.0, tolerance=1.5).worst_allowed(), Ratio("fairness", 1.0, False, 1.25).worst_allowed()
        (3.0, 0.8)
        """
        if self.lower_is_better:
            return self.value * self.tolerance + self.slack
        return self.value / self.tolerance - self.slack

    def regressed(self, now: float) -> bool:
        """Return whether a value of a later run is worse than allowed."""
        return now > self.worst_allowed() if self.lower_is_better else now < self.worst_allowed()


#: The ratios among the figures of bench/scale, with the difference between two runs of the same program.
SCALES: dict[tuple[str, str], Ratio] = {
    ("idle_clients", "ratio"): Ratio("beside 64 idle clients, to alone", 0, slack=0.05),
    ("fairness", "jain"): Ratio("Jain's index of three saturating clients", 0, False, 1.02),
    ("one_beside_eight", "p50"): Ratio("wait beside eight, in service times", 0, slack=0.2),
    ("batching", "one_each"): Ratio("eight clients, to ready batches", 0, False, 1.2),
    ("changing_timestamp", "numbers"): Ratio("numbers change, to nothing changes", 0, tolerance=1.15),
    ("kernel_entries", "client_calls"): Ratio("system calls of the client per request", 0, slack=0.1),
    ("kernel_entries", "daemon_calls"): Ratio("system calls of the daemon per request", 0, slack=0.1),
}


def ratios(document: Document) -> Iterator[Ratio]:
    """Return every ratio of this run."""
    for name in WORKLOADS:
        for way, floor in WAYS.items():
            for other in (BESIDE, floor):
                found = p50_ratio(document, name, way, other)
                if found is not None:
                    yield Ratio(f"{name}: {way}, to {other}", found, tolerance=1.35)
    for (benchmark, key), ratio in SCALES.items():
        value = figure(document, benchmark, key)
        if value is not None:
            yield Ratio(ratio.name, value["value"], ratio.lower_is_better, ratio.tolerance, ratio.slack)


def p50_ratio(document: Document, workload: str, way: str, other: str) -> float | None:
    """Return the median over the rounds of the ratio of both p50 in the same round; None if either has no figures."""
    rows = [row_of(document, workload, name) for name in (way, other)]
    if rows[0] is None or rows[1] is None:
        return None
    pairs = zip(rows[0]["round_p50_us"], rows[1]["round_p50_us"], strict=True)
    ratio: float = statistics.median(one / two for one, two in pairs)
    return ratio


def row_of(document: Document, workload: str, way: str) -> Figures | None:
    """Return the figures of one way with one workload, or None."""
    rows = document.get("closed_loop", {}).get(workload, {}).get("rows", ())
    return next((row for row in rows if row["name"] == way and "failed" not in row), None)


def figure(document: Document, benchmark: str, key: str) -> Figures | None:
    """Return one figure of bench/scale, or None if it was not measured."""
    figures = document.get("scale", {}).get(benchmark, {}).get("figures", ())
    return next((one for one in figures if one["name"] == key), None)
