"""Requests of varying sizes beside fixed ones and beside a Unix socket: `python -m bench.varying`.

Each way keeps one server and one client process for each workload of `varying_workloads.py`, and the turns alternate, so
that a ratio is of two turns of the same round. `in-process` is the policy without a server: the part of a round trip
that no transport can save. A workload that a way does not accept is refused, which is a result and not a failure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.peers.client_process import ClientFailed, ClientProcess, ObservationRefused, Turn
from bench.peers.in_process import InProcess
from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders
from bench.peers.peer import Peer, terminate_by_exception
from bench.peers.rows import QUANTILES, Row, short
from bench.peers.shmserve_peer import Shmserve, ShmserveInPlace
from bench.peers.unix_socket_pickle5 import UnixSocketPickle5
from bench.states import QUIET, STATES, Load
from bench.varying_workloads import FIXED, VARYING, asked_of

Figures = dict[str, Any]
WAY, SOCKET, FLOOR = Shmserve.name, UnixSocketPickle5.name, InProcess.name
#: Aims: to the fixed observation, for other lengths and for new structures; the socket's p50 to that of shmserve.
FIXED_AIM, NEW_STRUCTURE_AIM = 1.2, 3.0
SOCKET_AIM, DETECTIONS_SOCKET_AIM = 1.0, 2.0


class _Contestant:
    """One way with one workload: its row, and its client while it works."""

    def __init__(self, peer: Peer, name: str, cleanup: ExitStack, failed: str | None) -> None:
        self.row = Row(peer.name, failed=failed)
        self.refused: str | None = None
        if failed is None:
            self._client = ClientProcess(peer, name)
            cleanup.callback(self._client.close)

    def prepare(self) -> None:
        if self.row.failed is not None:
            return
        try:
            self.row.first_ns = self._client.ready()
        except ObservationRefused as error:
            self.refused = str(error)
        except ClientFailed as error:
            self.row.failed = str(error)

    def turn(self, seconds: float) -> None:
        if self.refused is None and self.row.failed is None:
            try:
                self.row.samples.append(self._client.turn(Turn(seconds))[0])
            except ClientFailed as error:
                self.row.failed = str(error)

    def figures(self) -> Figures:
        if self.refused is not None:
            return {"name": self.row.name, "refused": self.refused}
        figures = self.row.figures()
        if "quantiles_us" in figures:
            figures["p10_us"] = figures["quantiles_us"][QUANTILES.index(10)]
        for key in (
            "quantiles_us",
            "server_cpu_us",
            "idle_server_cpu_share",
        ):  # The servers are shared by all workloads.
            figures.pop(key, None)
        return figures


def ways() -> list[Peer]:
    return [UnixSocketPickle5(), Shmserve(), ShmserveInPlace(), InProcess()]


def measure(
    peers: Sequence[Peer], names: Sequence[str], seconds: float, rounds: int, load: Load | None = None
) -> dict[str, list[Figures]]:
    """Measure each workload with each way, `seconds` for each pair; return the rows of each workload."""
    with ExitStack() as cleanup:
        failures = {peer.name: _start(peer, cleanup) for peer in peers}
        contestants = {
            name: [_Contestant(peer, name, cleanup, failures[peer.name]) for peer in peers] for name in names
        }
        everyone = [contestant for beside in contestants.values() for contestant in beside]
        for contestant in everyone:
            contestant.prepare()
        with load or Load(QUIET):
            for _ in range(rounds):
                for contestant in everyone:
                    contestant.turn(seconds / rounds)
        return {name: [contestant.figures() for contestant in beside] for name, beside in contestants.items()}


def _start(peer: Peer, cleanup: ExitStack) -> str | None:
    """Start a server and return None, or the error of one that does not start."""
    cleanup.callback(peer.stop)
    peer.expect(asked_of(FIXED))
    try:
        peer.start()
    except OSError as error:
        return str(error)
    return None


def row_of(workloads: dict[str, list[Figures]], name: str, way: str) -> Figures | None:
    """Return the figures of one way with one workload, or None if it has none."""
    return next((row for row in workloads.get(name, ()) if row["name"] == way and "p50_us" in row), None)


def ratio(one: Figures | None, other: Figures | None) -> float | None:
    """Return the median over the rounds of the ratio of both p50; None without figures.

    >>> ratio({"round_p50_us": [60.0, 90.0]}, {"round_p50_us": [30.0, 30.0]})
    2.5
    """
    if one is None or other is None:
        return None
    found: float = statistics.median(a / b for a, b in zip(one["round_p50_us"], other["round_p50_us"], strict=True))
    return found


def to_fixed(workloads: dict[str, list[Figures]], name: str, way: str = WAY) -> float | None:
    """Return the ratio of a workload's round trip to that of the fixed observation, by the same way."""
    return ratio(row_of(workloads, name, way), row_of(workloads, FIXED, way))


def to_socket(workloads: dict[str, list[Figures]], name: str, way: str = WAY) -> float | None:
    """Return the factor by which a way is faster than the socket with the same workload."""
    return ratio(row_of(workloads, name, SOCKET), row_of(workloads, name, way))


#: The tenth part of the round trips that is fastest shows a change also where other programs keep the machine busy.
HEADS = ("p10", "p50", "p99", "to fixed", "socket to it")


def cells(workloads: dict[str, list[Figures]], name: str, row: Figures) -> list[str]:
    """Return the texts of a row, in the order of `HEADS`."""
    if "p50_us" not in row:
        return ["refused" if "refused" in row else "failed", *[""] * (len(HEADS) - 1)]
    way = row["name"]
    fixed, socket = to_fixed(workloads, name, way), to_socket(workloads, name, way)
    return [
        short(row["p10_us"]),
        short(row["p50_us"]),
        short(row["p99_us"]) if row["requests"] >= 100 else "-",
        "" if fixed is None or name == FIXED else f"{fixed:.2f} x",
        "" if socket is None or way in (SOCKET, FLOOR) else f"{socket:.2f} x",
    ]


def table(workloads: dict[str, list[Figures]], title: str = "varying sizes") -> Table:
    shown = Table("workload", "way", title=f"{title}; round trips in microseconds")
    for head in HEADS:
        shown.add_column(head, justify="right")
    for name, rows in workloads.items():
        for index, row in enumerate(rows):
            what = f"{name}: {VARYING[name].what}" if index == 0 else ""
            shown.add_row(what, row["name"], *cells(workloads, name, row), end_section=index == len(rows) - 1)
    shown.caption = Text("\n".join(notes(workloads)))
    return shown


def notes(workloads: dict[str, list[Figures]]) -> list[str]:
    """Return a line for each refusal and failure."""
    return [
        f"{verdict}: {row[verdict]}"
        for rows in workloads.values()
        for row in rows
        for verdict in ("refused", "failed")
        if verdict in row
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    known = {peer.name: peer for peer in ways()}
    parser = argparse.ArgumentParser(
        prog="python -m bench.varying",
        description="Measure varying sizes in under a minute, before and after a change.",
    )
    parser.add_argument("--seconds", type=float, default=0.6, help="for each way and workload; default 0.6")
    parser.add_argument("--rounds", type=int, default=3, help="turns that they are divided into; default 3")
    parser.add_argument("--workloads", default=",".join(VARYING), help="default all; fixed is always measured")
    parser.add_argument("--peers", default=f"{SOCKET},{WAY},{FLOOR}", help=f"of {', '.join(known)}")
    parser.add_argument("--state", choices=STATES, default="quiet", help="state of the machine; default quiet")
    options = parser.parse_args(arguments)
    names, asked = options.workloads.split(","), options.peers.split(",")
    if unknown := [name for name in names if name not in VARYING] + [name for name in asked if name not in known]:
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(VARYING)}, and the ways {', '.join(known)}")
    terminate_by_exception()
    sweep()
    bystanders, load = Bystanders(), Load(STATES[options.state])
    peers = [known[name] for name in known if name in asked]
    workloads = measure(
        peers, [name for name in VARYING if name in (FIXED, *names)], options.seconds, options.rounds, load
    )
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table(workloads, options.state))
    console.print(
        f"{options.state}: the busy programs of the state had {100 * load.share():.0f} % of the processors, other "
        f"programs {100 * bystanders.shares()['other_cpu_share']:.0f} %"
    )
    return int(any("failed" in row for rows in workloads.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
