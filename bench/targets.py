"""Table of the performance targets and the measured values: `python -m bench.targets [RESULTS]`.

The absolute targets were set for a machine with two virtual processors; on other machines the ratios mean more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import results
from bench.peers.rows import short
from bench.ratios import figure, p50_ratio, row_of
from bench.results import Document
from bench.scale.figure import amount

#: Way, the targeted ratio of its round trip to that of shmserve with a VGA image, and its name in the table.
FACTORS = (
    ("flask-pickle", 60, "Flask + pickle"),
    ("openpi-websocket", 30, "openpi"),
    ("gr00t-zmq-ipc", 25, "GR00T over a Unix socket"),
    ("triton-shm", 30, "Triton with shared memory"),
    ("iceoryx2-event", 4, "iceoryx2 from Python, with events"),
)
#: Workload, way, targeted maximum in microseconds.
ROUND_TRIPS = (("tiny", "shmserve", 20), ("vga", "shmserve", 90), ("fullhd", "shmserve-in-place", 450))
#: The same data path in bare Python, and the time (us) by which shmserve may exceed it.
BARE = {"shmserve": "Python, 2 copies, spin", "shmserve-in-place": "Python, 1 copy, spin"}
MORE_THAN_BARE_US = 10
C_FLOOR = {"shmserve": "C, 2 copies, spin", "shmserve-in-place": "C, 1 copy, spin"}

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
    for name, way, asked in ROUND_TRIPS:
        row = row_of(document, name, way)
        floors = [row_of(document, name, floor) for floor in (C_FLOOR[way], BARE[way])]
        floor = ", ".join(f"{floor['name']}: {short(floor['p50_us'])} us" for floor in floors if floor)
        yield Target(f"{name}: {way}, p50", asked, True, "us", row["p50_us"] if row else None, floor)
    for name, way, _ in ROUND_TRIPS:
        row, bare = row_of(document, name, way), row_of(document, name, BARE[way])
        more = row["p50_us"] - bare["p50_us"] if row and bare else None
        yield Target(f"{name}: {way}, more than {BARE[way]}", MORE_THAN_BARE_US, True, "us", more)
    for way in BARE:
        for other, asked, called in FACTORS:
            factor = p50_ratio(document, "vga", other, way)
            row = row_of(document, "vga", other)
            floor = f"{other}: {short(row['p50_us'])} us" if row else ""
            yield Target(f"vga: {called}, to {way}", asked, False, "x", factor, floor)
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
