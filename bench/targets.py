"""Table of the targets of bench/scale and the measured values: `python -m bench.targets [RESULTS]`.

Round trips have aims as distances to the floors (`distances.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import results
from bench.results import Document, figure
from bench.scale.figure import amount

#: Benchmark, key of its figure, target, whether the target is a maximum, text in the table.
SCALES = (
    ("idle_cpu", "both", 0.5, True, "CPU of an idle daemon and client, share of one processor"),
    ("kernel_entries", "client_calls", 0.05, True, "system calls of a request while spinning, client"),
    ("kernel_entries", "daemon_calls", 0.05, True, "system calls of a request while spinning, daemon"),
    ("changing_timestamp", "numbers", 1.3, True, "a timestamp and a counter change, to nothing changes"),
    ("idle_clients", "ratio", 1.15, True, "a request beside 64 idle clients, to one alone"),
    ("fairness", "jain", 0.99, False, "Jain's index of three saturating clients"),
    ("one_beside_eight", "p99", 2, True, "wait of one request beside eight, in service times, p99"),
    ("batching", "one_each", 0.9, False, "eight clients, one request each, to ready batches of eight"),
    ("batching", "two_each", 0.9, False, "eight clients, two requests each, to ready batches of eight"),
    ("start_up", "import_ms", 30, True, "import shmserve.client, after numpy"),
    ("start_up", "attach_ms", 20, True, "attach"),
    ("start_up", "status_ms", 300, True, "shmserve-admin status"),
    ("update_pause", "p99_ms", 5, True, "pause when the model is replaced, p99"),
    ("update_time", "whole_p50_ms", 700, True, "update of a small package, the whole command"),
    ("engine_deaths", "quiet_p99_ms", 300, True, "wait of four robots at 50 Hz when their engine is killed, p99"),
    ("engine_deaths", "busy_p99_ms", 1000, True, "the same, both processors busy"),
)


@dataclass(frozen=True)
class Target:
    """One line of the table; `reached` is None if this run did not measure it."""

    what: str
    asked: float
    at_most: bool
    unit: str
    reached: float | None
    floor: str = ""

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached <= self.asked if self.at_most else self.reached >= self.asked

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the texts of its cells: figure, target, measured, met, floor."""
        sign = "≤" if self.at_most else "≥"
        asked = f"{sign} {self.asked:g} {self.unit}".rstrip()
        reached = "not measured" if self.reached is None else amount(self.reached, self.unit)
        met = {True: "yes", False: "no", None: ""}[self.met]
        return self.what, asked, reached, met, self.floor


def targets(document: Document) -> Iterator[Target]:
    """Yield every target."""
    for benchmark, key, wanted, at_most, what in SCALES:
        found = figure(document, benchmark, key)
        if found is None:
            yield Target(what, wanted, at_most, "", None)
            continue
        floor = "" if found["floor"] is None else f"{amount(found['floor'], found['unit'])} ({found['floor_what']})"
        yield Target(what, wanted, at_most, found["unit"], found["value"], floor)


def table(document: Document) -> Table:
    shown = Table("figure", "target", "measured", "met", "floor, in the same run", title="Targets")
    for target in targets(document):
        style = {True: None, False: "yellow", None: "dim"}[target.met]
        shown.add_row(*target.cells(), style=style)
    return shown


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else results.path_of(results.REFERENCE)
    Console(width=150, highlight=False).print(table(results.read(path)))


if __name__ == "__main__":
    main()
