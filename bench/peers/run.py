"""Measures every way to ask a policy on this host: `python -m bench.peers.run`.

Closed loop, one client process at a time. The ways take turns in rounds (A B C A B C), so that what slows the machine
for a while slows all of them; each workload gets fresh servers and clients, because malloc remembers the largest
message and a later, smaller one then runs faster than it would alone. Every reply is checked. Nothing here fails for
being slow.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.floors.floor import Floor, floors
from bench.workloads import BUILDERS, workload

from .all_peers import all_peers
from .client_process import ClientFailed, ClientProcess
from .cpu_time import of_trees
from .leftovers import sweep
from .machine import Bystanders, facts
from .peer import Peer, terminate_by_exception
from .report import Row, table


class Contestant:
    """A started peer with its client and its row."""

    def __init__(self, peer: Peer, workload_name: str, cleanup: ExitStack) -> None:
        self.row = Row(peer.name)
        self._peer = peer
        self._idle_since: tuple[float, int] | None = None
        self._idle_s = self._idle_cpu_s = 0.0
        try:
            cleanup.callback(peer.stop)
            peer.start()
            self._client = ClientProcess(peer, workload_name)
            cleanup.callback(self._client.close)
            self.row.first_ns = self._client.first_ns
        except (ClientFailed, OSError) as error:
            self.row.failed = str(error)

    def turn(self, seconds: float) -> None:
        if self.row.failed is not None:
            return
        start, before = time.monotonic(), of_trees(self._peer.server_pids())
        if self._idle_since is not None:
            self._idle_s += start - self._idle_since[0]
            self._idle_cpu_s += (before - self._idle_since[1]) / 1e9
        try:
            sample, requests = self._client.turn(seconds)
        except ClientFailed as error:
            self.row.failed = str(error)
            return
        after = of_trees(self._peer.server_pids())
        self._idle_since = time.monotonic(), after
        server_ns = (after - before) * len(sample.latency_ns) // requests
        self.row.samples.append(replace(sample, server_ns=server_ns))
        if self._idle_s:
            self.row.idle_share = self._idle_cpu_s / self._idle_s


def measure(peers: Sequence[Peer], beside: Sequence[Floor], name: str, seconds: float, rounds: int) -> list[Row]:
    """All ways with one workload, in the order given."""
    array_bytes = workload(name).array_bytes
    floor_rows = [Row(floor.name) for floor in beside]
    with ExitStack() as cleanup:
        contestants = [Contestant(peer, name, cleanup) for peer in peers]
        for _ in range(rounds):
            for contestant in contestants:
                contestant.turn(seconds / rounds)
            for row, floor in zip(floor_rows, beside, strict=True):
                row.samples.append(floor.turn(array_bytes, seconds / rounds))
    return [contestant.row for contestant in contestants] + floor_rows


def main(arguments: Sequence[str] | None = None) -> int:
    names = [peer.name for peer in all_peers()]
    parser = argparse.ArgumentParser(prog="python -m bench.peers.run", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=of(names), default=names, help=f"of {', '.join(names)}; default all")
    parser.add_argument(
        "--workloads", type=of(list(BUILDERS)), default=["tiny", "vga", "fullhd"], help=f"of {', '.join(BUILDERS)}"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measured per way and workload; default 5")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the seconds are divided into; default 5")
    parser.add_argument("--no-floors", action="store_true", help="without the C program")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)

    terminate_by_exception()
    sweep()

    console, bystanders = Console(width=None if sys.stdout.isatty() else 160), Bystanders()
    reasons = {peer.name: peer.available() for peer in all_peers() if peer.name in options.peers}
    for name, reason in reasons.items():
        if reason is not None:
            console.print(f"{name} is left out: {reason}", highlight=False)
    results, failed = {}, False
    with floors() as compiled:
        for name in options.workloads:
            peers = [peer for peer in all_peers() if peer.name in reasons and reasons[peer.name] is None]
            rows = measure(peers, [] if options.no_floors else compiled, name, options.seconds, options.rounds)
            array_bytes = workload(name).array_bytes
            console.print(table(name, array_bytes, rows))
            results[name] = {"array_bytes": array_bytes, "rows": [row.figures() for row in rows]}
            failed |= any(row.failed for row in rows)
    machine = {**facts(), "other_cpu_share": bystanders.share()}
    console.print(
        f"{machine['cpu']}, {machine['cpus']} processors, {machine['kernel']}, {machine['python']}; other programs had "
        f"{100 * machine['other_cpu_share']:.0f} % of the processors meanwhile",
        highlight=False,
    )
    if options.json:
        left_out = {name: reason for name, reason in reasons.items() if reason is not None}
        document = {"machine": machine, "command": shlex.join(sys.argv), "left_out": left_out, "workloads": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed)


def of(known: list[str]) -> Callable[[str], list[str]]:
    """Parses a comma-separated choice, kept in the order known."""

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in asked]

    return parse


if __name__ == "__main__":
    sys.exit(main())
