"""Ratios within one run, by which it can be compared with another run, even on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.distances import distances
from bench.results import Document, figure

WORKLOADS = ("tiny", "vga", "fullhd")
#: The ways that a check measures; they need no package that it would have to install.
WAYS = ("unix-socket-pickle5", "shmserve-pure", "shmserve-max-age", "shmserve", "shmserve-in-place", "in-process")


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
    for distance in distances(document):
        if distance.value is not None and distance.spread is not None:
            yield Ratio(distance.name, distance.value, distance.at_most, distance.spread)
    for (benchmark, key), ratio in SCALES.items():
        value = figure(document, benchmark, key)
        if value is not None:
            yield Ratio(ratio.name, value["value"], ratio.lower_is_better, ratio.tolerance, ratio.slack)
