"""Round trips at the rates of robots: `python -m bench.rates`.

A client sends one request at each beat of an absolute clock and sleeps in between, so both sides are asleep and cold when
a request begins: the closed loop of `bench.run` measures the opposite. The ways take turns in short blocks (A B C A B C),
and every server stays alive meanwhile, asleep, so that a slow moment of the machine affects all of them. The first beats
of a block do not count. A ratio is the median over the rounds, each of two blocks of the same round.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import results
from bench.floors.asleep_python import AsleepPython
from bench.floors.floor import CFloor, floors
from bench.peers.all_peers import all_peers
from bench.peers.asking import Sample
from bench.peers.client_process import ClientFailed, ClientProcess, Turn
from bench.peers.cpu_time import of_trees
from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders, facts
from bench.peers.peer import Peer, terminate_by_exception
from bench.peers.rows import short
from bench.peers.shmserve_at_rate import ShmserveAtRate, ShmserveExpect, ShmserveNoWakeAhead, ShmserveWarm
from bench.peers.shmserve_peer import Shmserve
from bench.peers.unix_socket_pickle5 import UnixSocketPickle5
from bench.results import Document, Figures
from bench.scale.kernel_entries import children
from bench.workloads import BUILDERS, workload

RATES = (10.0, 50.0, 200.0, 1000.0)
WORKLOADS = ("tiny", "vga")
PERCENTILES = (50.0, 99.0, 99.9)
PY2, C, SOCKET = AsleepPython.name, "C, 2 copies, sleep", UnixSocketPickle5.name
#: The name of a run without --name, and of the run that docs/explanation/benchmarks.md shows.
LATEST, KEPT = "latest-rates", "rates"


def own_ways() -> list[Peer]:
    """Make the ways of every run, not started, except the floor in C."""
    ours = [Shmserve(), ShmserveAtRate(), ShmserveWarm(), ShmserveExpect(), ShmserveNoWakeAhead()]
    return [*ours, UnixSocketPickle5(), AsleepPython()]


def other_ways() -> list[Peer]:
    """Make the other ways of `bench.run`, not started."""
    own = {peer.name for peer in own_ways()}
    return [peer for peer in all_peers() if peer.name not in own]


@dataclass
class Turns:
    """Blocks of one way at one rate."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    server_ns: int = 0
    engine_ns: int | None = None  # None without an engine.
    wall_ns: int = 0
    failed: str | None = None

    def figures(self) -> Figures:
        """Return the figures in microseconds; percentiles are of all blocks together, shares are of one processor."""
        if self.failed is not None or not self.samples:
            return {"name": self.name, "failed": self.failed or "never had a turn"}
        us = np.concatenate([sample.latency_ns for sample in self.samples]) / 1e3
        found: Figures = {"name": self.name, "requests": len(us)}
        found |= {f"p{percentile:g}_us": float(np.percentile(us, percentile)) for percentile in PERCENTILES}
        found["max_us"] = float(us.max())
        found["round_p50_us"] = [float(np.median(sample.latency_ns)) / 1e3 for sample in self.samples]
        found["missed"] = sum(sample.missed for sample in self.samples)
        elapsed = sum(sample.elapsed_ns for sample in self.samples)
        if elapsed:
            found["client_cpu_share"] = sum(sample.client_process_ns for sample in self.samples) / elapsed
        if self.wall_ns and self.server_ns:
            found["server_cpu_share"] = self.server_ns / self.wall_ns
        if self.wall_ns and self.engine_ns is not None:
            found["engine_cpu_share"] = self.engine_ns / self.wall_ns
        return found


class Server:
    """Started peer, which serves one client at a time."""

    def __init__(self, peer: Peer, workload_name: str, cleanup: ExitStack) -> None:
        self.peer = peer
        self._workload_name = workload_name
        self.failed: str | None = None
        try:
            cleanup.callback(peer.stop)
            peer.expect(workload(workload_name))
            peer.start()
        except (ClientFailed, OSError) as error:
            self.failed = str(error)
        self._engines = [engine for pid in peer.server_pids() for engine in children(pid)]

    def client(self, rate_hz: float, cleanup: ExitStack) -> ClientProcess | None:
        """Start a client for this rate, which is not ready yet."""
        if self.failed is not None:
            return None
        if isinstance(self.peer, ShmserveAtRate):
            self.peer.rate_hz = rate_hz
        client = ClientProcess(self.peer, self._workload_name)
        cleanup.callback(client.close)
        return client

    def turn(self, client: ClientProcess, seconds: float, rate_hz: float, into: Turns) -> None:
        began, server, engine = time.monotonic_ns(), *self._used()
        sample, _ = client.turn(Turn(seconds, rate_hz, paced=True))
        into.samples.append(sample)
        wall_ns, server_now, engine_now = time.monotonic_ns() - began, *self._used()
        into.wall_ns += wall_ns
        into.server_ns += server_now - server
        if isinstance(self.peer, Shmserve):
            into.engine_ns = (into.engine_ns or 0) + engine_now - engine

    def used_ns(self) -> int:
        """Return the processor time of all its processes."""
        return self._used()[0]

    def _used(self) -> tuple[int, int]:
        return of_trees(self.peer.server_pids()), of_trees(self._engines)


def measure(
    peers: Sequence[Peer],
    beside: Sequence[CFloor],
    name: str,
    rates: Sequence[float],
    seconds: float,
    rounds: int,
    done: Callable[[float, dict[str, Any]], None] = lambda *_: None,
) -> dict[str, Any]:
    """Measure all ways with one workload at each rate, by the text of the rate; `done` gets each rate's part."""
    asked, found = workload(name), {}
    with ExitStack() as servers:
        started = [Server(peer, name, servers) for peer in peers]
        for rate_hz in rates:
            bystanders, began = Bystanders(), time.monotonic_ns()
            used = [server.used_ns() for server in started]
            turns = [Turns(server.peer.name, failed=server.failed) for server in started]
            floor_turns = [Turns(floor.name) for floor in beside]
            with ExitStack() as cleanup:
                clients = [server.client(rate_hz, cleanup) for server in started]
                ways = list(zip(started, clients, turns, strict=True))
                for _, client, into in ways:
                    with _failure(into):
                        if client is not None:
                            client.ready()
                for _ in range(rounds):
                    for server, client, into in ways:
                        with _failure(into):
                            if client is not None and into.failed is None:
                                server.turn(client, seconds / rounds, rate_hz, into)
                    for floor, into in zip(beside, floor_turns, strict=True):
                        into.samples.append(floor.paced(asked, seconds / rounds, rate_hz))
            part = {"rows": [into.figures() for into in (*turns, *floor_turns)]}
            # The servers live on, so the kernel does not count them as children of this process yet.
            own = sum(server.used_ns() - before for server, before in zip(started, used, strict=True))
            shares, wall_ns = bystanders.shares(), (time.monotonic_ns() - began) * (os.cpu_count() or 1)
            shares["other_cpu_share"] = max(0.0, shares["other_cpu_share"] - own / wall_ns)
            found[f"{rate_hz:g}"] = part | shares
            done(rate_hz, found[f"{rate_hz:g}"])
    return found


@contextmanager
def _failure(into: Turns) -> Iterator[None]:
    """Make the failure of a client that of its way."""
    try:
        yield
    except (ClientFailed, OSError) as error:
        into.failed = str(error)


def row_of(rows: Sequence[Figures], name: str) -> Figures | None:
    """Return the figures of one way, or None if it has none."""
    return next((row for row in rows if row["name"] == name and "failed" not in row), None)


def to(rows: Sequence[Figures], name: str, other: str, key: str = "p50_us") -> float | None:
    """Return the ratio of two ways: of p50, the median over the rounds; of another percentile, that of all rounds.

    >>> one = {"name": "a", "p50_us": 2.0, "p99_us": 9.0, "round_p50_us": [1.0, 2.0, 9.0]}
    >>> two = {"name": "b", "p50_us": 4.0, "p99_us": 3.0, "round_p50_us": [4.0, 4.0, 3.0]}
    >>> to([one, two], "a", "b"), to([one, two], "a", "b", "p99_us"), to([one], "a", "b")
    (0.5, 3.0, None)
    """
    one, two = row_of(rows, name), row_of(rows, other)
    if one is None or two is None:
        return None
    if key != "p50_us":
        return float(one[key] / two[key])
    pairs = zip(one["round_p50_us"], two["round_p50_us"], strict=True)
    return float(statistics.median(first / second for first, second in pairs))


#: Py2 is bare Python that sleeps, with two copies.
HEADS = ("p50", "p99", "p99.9", "missed", "p50 to Py2", "p99 to Py2", "socket to it", "engine CPU")


def cells(rows: Sequence[Figures], row: Figures) -> list[str]:
    """Return the texts of a row, in the order of `HEADS`; a percentile of less than one request is omitted."""
    if "failed" in row:
        return ["failed", *[""] * (len(HEADS) - 1)]
    name, requests = row["name"], row["requests"]
    shown = [
        short(row[f"p{percentile:g}_us"]) if requests * (100 - percentile) >= 100 else "-" for percentile in PERCENTILES
    ]
    socket = to(rows, SOCKET, name)
    ratios = (to(rows, name, PY2), to(rows, name, PY2, "p99_us") if shown[1] != "-" else None, socket)
    engine = row.get("engine_cpu_share")
    return [
        *shown,
        f"{row['missed']:,}",
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        "" if engine is None else f"{100 * engine:.1f} %",
    ]


def table(name: str, rate: str, rows: Sequence[Figures]) -> Table:
    """Format one workload at one rate."""
    shown = Table("way", title=f"{name} at {rate} Hz; round trips in microseconds")
    for head in ("requests", *HEADS):
        shown.add_column(head, justify="right")
    for row in rows:
        shown.add_row(row["name"], f"{row['requests']:,}" if "requests" in row else "", *cells(rows, row))
    shown.caption = Text("\n".join(f"failed: {row['failed']}" for row in rows if "failed" in row))
    return shown


def kept_run() -> Document | None:
    """Return the kept run, or None."""
    path = results.path_of(KEPT)
    return results.read(path) if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> int:
    own, others = own_ways(), other_ways()
    known = {"py2" if peer.name == PY2 else peer.name: peer for peer in [*own, *others]}
    parser = argparse.ArgumentParser(
        prog="python -m bench.rates", description="Measure round trips at the rates of robots."
    )
    parser.add_argument("--rates", type=_rates, default=RATES, help="requests per second; default 10,50,200,1000")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way, rate and workload; default 5")
    parser.add_argument("--rounds", type=int, default=3, help="blocks that they are divided into; default 3")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"of {', '.join(BUILDERS)}; default tiny,vga")
    parser.add_argument("--only", nargs="+", metavar="WAY", help=f"of {', '.join(known)}, c; default all but the peers")
    parser.add_argument("--peers", choices=("own", "all"), default="own", help="all: also the other servers")
    parser.add_argument("--name", default=LATEST, help=f"of the results: bench/results/NAME.json; default {LATEST}")
    options = parser.parse_args(arguments)
    names = options.workloads.split(",")
    asked = options.only or [*(known if options.peers == "all" else list(known)[: len(own)]), "c"]
    if unknown := [one for one in names if one not in BUILDERS] + [one for one in asked if one not in {*known, "c"}]:
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(BUILDERS)}, and the ways {', '.join(known)}, c")

    terminate_by_exception()
    sweep()
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    reasons = {key: peer.available() for key, peer in known.items() if key in asked}
    document: Document = {
        "format": results.FORMAT,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "machine": facts(),
        "command": shlex.join(["python", "-m", "bench.rates", *(sys.argv[1:] if arguments is None else arguments)]),
        "left_out": {known[key].name: reason for key, reason in reasons.items() if reason is not None},
        "rates": {},
    }
    began, path = time.monotonic(), results.path_of(options.name)
    with floors() as compiled:
        in_c = [floor for floor in compiled if isinstance(floor, CFloor) and floor.name == C]
        if "c" in asked and not in_c:
            document["left_out"][C] = "it needs a C compiler (apt-get install gcc) and two processors"
        for name in names:
            fresh = {"py2" if peer.name == PY2 else peer.name: peer for peer in [*own_ways(), *other_ways()]}
            peers = [fresh[key] for key, reason in reasons.items() if reason is None]
            into: dict[str, Any] = {}
            document["rates"][name] = into

            def done(rate_hz: float, part: dict[str, Any], name: str = name, into: dict[str, Any] = into) -> None:
                into[f"{rate_hz:g}"] = part
                document["took_s"] = time.monotonic() - began
                results.write(path, document)
                console.print(table(name, f"{rate_hz:g}", part["rows"]))
                others, steal = (100 * part[f"{key}_share"] for key in ("other_cpu", "steal"))
                console.print(f"other programs had {others:.0f} % of the processors, the hypervisor {steal:.0f} %")

            beside = in_c if "c" in asked else []
            measure(peers, beside, name, options.rates, options.seconds, options.rounds, done)
    for left_out, reason in document["left_out"].items():
        console.print(f"{left_out} is left out: {reason}")
    console.print(f"{document['took_s']:.0f} s; {path}")
    rows = [row for rates in document["rates"].values() for part in rates.values() for row in part["rows"]]
    return int(any("failed" in row for row in rows))


def _rates(text: str) -> list[float]:
    """Parse rates.

    >>> _rates("50,1000")
    [50.0, 1000.0]
    """
    rates = [float(rate) for rate in text.split(",")]
    if not all(0 < rate <= 100_000 for rate in rates):
        raise argparse.ArgumentTypeError(f"{text}: rates are above 0 and at most 100,000 requests per second")
    return rates


if __name__ == "__main__":
    sys.exit(main())
