"""Distances of shmserve to the floors and to other servers, beside their aims: `python -m bench.distances [RESULTS]`.

A distance is a ratio of two figures of the same run and state, so it means the same on another machine. Py2 and Py1 are
bare Python that spins, with two copies and with one (`floors/bare_python.py`): a server can hardly be faster than the
data path alone. A state that was not measured has no figure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import results, varying
from bench.peers.rows import short
from bench.results import Document, Figures, p50_ratio, row_of, rows_of
from bench.scale.figure import amount
from bench.states import QUIET, STATES
from bench.varying_workloads import FIXED, VARYING

STAGED, IN_PLACE = "shmserve", "shmserve-in-place"
PY2, PY1, C_ASLEEP = "Python, 2 copies, spin", "Python, 1 copy, spin", "C, 2 copies, sleep"
FLOOR_OF = {STAGED: ("Py2", PY2), IN_PLACE: ("Py1", PY1)}
SOCKET = varying.SOCKET
#: Way, its name in the table, the aim of its round trip to that of shmserve with a VGA image, in every state.
PEERS = (
    ("flask-pickle", "Flask + pickle", 60),
    ("openpi-websocket", "openpi", 30),
    ("gr00t-zmq-ipc", "GR00T over a Unix socket", 25),
    ("triton-shm", "Triton with shared memory", 30),
    ("torchrl-slots", "TorchRL's shared-memory slots", None),
    ("iceoryx2-event", "iceoryx2 with events", 4),
)
#: How far apart two runs of the same program lie, as a factor.
QUIET_SPREAD, LOADED_SPREAD, TAIL_SPREAD = 1.35, 1.6, 2.0

Aims = Mapping[str, float]


def everywhere(aim: float) -> Aims:
    return dict.fromkeys(STATES, aim)


@dataclass(frozen=True)
class Distance:
    """Ratio in one state; `value` is None if the run has not measured it, `aim` is None if there is none."""

    what: str
    state: str
    value: float | None
    aim: float | None = None
    at_most: bool = True
    floor: str = ""  # The figure that it is a distance to.
    #: Factor by which a later run may be worse; None for a distance that `bench.check` does not measure.
    spread: float | None = None

    @property
    def name(self) -> str:
        return self.what if self.state == QUIET.name else f"{self.what}, {self.state}"

    @property
    def met(self) -> bool | None:
        if self.value is None or self.aim is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim

    def cell(self) -> str:
        """Return the figure and, in brackets, the aim.

        >>> Distance("", "quiet", 1.3, 1.0).cell(), Distance("", "busy", 57, 60, at_most=False).cell()
        ('1.30 (≤ 1)', '57.0 (≥ 60)')
        >>> Distance("", "quiet", None, 1.0).cell(), Distance("", "quiet", 2.0).cell(), Distance("", "busy", None).cell()
        ('- (≤ 1)', '2.00', '')
        """
        aim = "" if self.aim is None else f" ({'≤' if self.at_most else '≥'} {self.aim:g})"
        if self.value is None:
            return f"-{aim}" if aim else ""
        return amount(self.value, "") + aim


def distances(document: Document) -> Iterator[Distance]:
    """Yield every distance, those of the same ratio one after another."""
    yield from _to_floors(document)
    yield from _to_peers(document)
    yield from _of_options(document)
    yield from _of_varying(document)


def _to_floors(document: Document) -> Iterator[Distance]:
    aims: dict[tuple[str, str], Aims] = {
        ("tiny", STAGED): {"quiet": 1.0, "disturbed": 1.2, "busy": 1.5},
        ("vga", STAGED): {"quiet": 0.9, "disturbed": 1.1, "busy": 1.3},
    }
    for workload in ("tiny", "vga", "fullhd"):
        for way, (called, floor) in FLOOR_OF.items():
            what = f"{workload}, p50: {way} to {called}"
            yield from _p50(document, what, workload, way, floor, aims.get((workload, way), {}))
    for state in STATES:
        part = results.part_of(document, state)
        row = row_of(part, "vga", STAGED)
        floors = [found for name in (PY2, C_ASLEEP) if (found := row_of(part, "vga", name))]
        aim = {"quiet": 1.0, "disturbed": 1.2}.get(state)
        yield _tail(f"vga, p99: {STAGED} to the better of Py2 and C asleep", state, row, floors, aim, TAIL_SPREAD)
    for state in STATES:
        part = results.part_of(document, state)
        others = [row for row in rows_of(part, "vga") if is_peer(row["name"])]
        aim = 1.0 if state == "busy" else None
        yield _tail(f"vga, p99: {STAGED} to the best peer", state, row_of(part, "vga", STAGED), others, aim)


def _to_peers(document: Document) -> Iterator[Distance]:
    for other, called, aim in PEERS:
        for way in FLOOR_OF:
            what = f"vga, p50: {called} to {way}"
            aims = {} if aim is None else everywhere(aim)
            yield from _p50(document, what, "vga", other, way, aims, at_most=False, checked=False)
    for workload in ("tiny", "vga", "fullhd"):
        for way in FLOOR_OF:
            what = f"{workload}, p50: pickle-5 over a Unix socket to {way}"
            yield from _p50(document, what, workload, SOCKET, way, {}, at_most=False)


def _of_options(document: Document) -> Iterator[Distance]:
    for workload in ("tiny", "vga"):
        what = f"{workload}, p50: a request with max age to a plain one"
        yield from _p50(document, what, workload, "shmserve-max-age", STAGED, {"quiet": 1.05})
    for workload, aim in (("tiny", 1.5), ("vga", 1.3)):
        what = f"{workload}, p50: the pure backend to the native one"
        yield from _p50(document, what, workload, "shmserve-pure", STAGED, {"quiet": aim})


def _of_varying(document: Document) -> Iterator[Distance]:
    workloads = document.get("varying", {}).get("workloads", {})
    fixed = varying.row_of(workloads, FIXED, STAGED)
    for name, kind in VARYING.items():
        if name != FIXED:
            aim = varying.NEW_STRUCTURE_AIM if kind.new_structure else varying.FIXED_AIM
            ratio = varying.to_fixed(workloads, name)
            what = f"varying {name}, p50: to the fixed observation"
            yield Distance(
                what, QUIET.name, ratio, aim, True, _floor(fixed and {**fixed, "name": FIXED}), LOADED_SPREAD
            )
    for name in VARYING:
        label = name if name == FIXED else f"varying {name}"
        aim = varying.DETECTIONS_SOCKET_AIM if name == "detections" else varying.SOCKET_AIM
        ratio, socket = varying.to_socket(workloads, name), varying.row_of(workloads, name, SOCKET)
        what = f"{label}, p50: pickle-5 over a Unix socket to {STAGED}"
        yield Distance(what, QUIET.name, ratio, aim, False, _floor(socket), LOADED_SPREAD)


def _p50(
    document: Document,
    what: str,
    workload: str,
    way: str,
    other: str,
    aims: Aims,
    *,
    at_most: bool = True,
    checked: bool = True,
) -> Iterator[Distance]:
    """Yield the ratio of two ways in each state."""
    for state in STATES:
        part = results.part_of(document, state)
        spread = QUIET_SPREAD if state == QUIET.name else LOADED_SPREAD
        # The floor, or the peer, is the one that is not shmserve.
        floor = row_of(part, workload, other if at_most else way)
        ratio = p50_ratio(part, workload, way, other)
        yield Distance(what, state, ratio, aims.get(state), at_most, _floor(floor), spread if checked else None)


def _tail(
    what: str, state: str, row: Figures | None, others: list[Figures], aim: float | None, spread: float | None = None
) -> Distance:
    """Return the ratio of p99 to the best p99 of the others."""
    best = min(others, key=lambda other: float(other["p99_us"]), default=None)
    ratio = row["p99_us"] / best["p99_us"] if row and best else None
    return Distance(what, state, ratio, aim, True, _floor(best, "p99_us"), spread)


def _floor(row: Figures | None, key: str = "p50_us") -> str:
    return "" if not row else f"{row['name']}: {short(row[key])} us"


def is_peer(name: str) -> bool:
    """Return whether a row is that of another server: neither shmserve, nor a floor, nor the policy without a server.

    >>> [is_peer(name) for name in ("iceoryx2-event", "shmserve-sealed", "C, 1 copy, spin", "in-process")]
    [True, False, False, False]
    """
    return not name.startswith(("shmserve", "C,", "Python,", "in-process"))


#: The heads of a table's columns.
HEADS = ("distance", *STATES, "to, quiet")


def lines(document: Document) -> list[tuple[str, list[Distance], str]]:
    """Return for each ratio: its text, its distances in the order of the states, and the floor's figure."""
    found: dict[str, dict[str, Distance]] = {}
    for distance in distances(document):
        found.setdefault(distance.what, {})[distance.state] = distance
    return [
        (
            what,
            [states.get(state, Distance(what, state, None)) for state in STATES],
            next((distance.floor for distance in states.values() if distance.floor), ""),
        )
        for what, states in found.items()
    ]


def table(document: Document) -> Table:
    shown = Table(*HEADS, title="Distances, and in brackets the aims; those that miss their aim are yellow")
    for what, states, floor in lines(document):
        cells = [
            f"[yellow]{distance.cell()}[/yellow]" if distance.met is False else distance.cell() for distance in states
        ]
        shown.add_row(what, *cells, floor)
    return shown


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else results.path_of(results.REFERENCE)
    Console(width=None if sys.stdout.isatty() else 170, highlight=False).print(table(results.read(path)))


if __name__ == "__main__":
    main()
