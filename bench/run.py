"""Benchmark of shmserve and of other servers on this host: `make bench`, or `python -m bench.run`.

Slow results are not failures: exit status 1 means that a way could not be measured, or gave a wrong reply.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from bench import distances, profile_request, report, results, stages, targets, varying
from bench.floors.floor import Floor, floors
from bench.peers.all_peers import all_peers
from bench.peers.crowd import measure_crowd
from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders, facts
from bench.peers.peer import HOW_TO_GET, Peer, is_installed, terminate_by_exception
from bench.peers.rows import crowd_table, table
from bench.peers.side_by_side import measure
from bench.scale.all_scales import SCALES
from bench.scale.figure import NotMeasured, figures_table
from bench.states import QUIET, STATES, Load, State
from bench.varying_workloads import VARYING
from bench.workloads import BUILDERS, workload

PARTS = ("closed_loop", "varying", "clients", "stages", "profile", "scale")
WORKLOADS = ("tiny", "w3", "vga", "fullhd", "w13")
#: In the states other than quiet, if no workloads are named.
LOADED_WORKLOADS = ("tiny", "vga")
CROWD_WORKLOAD = "vga"
CROWD_ROUNDS = 2
STAGE_WORKLOADS = ("tiny", "vga", "fullhd")


@dataclass
class Plan:
    """Parts to measure; `seconds` are for each way with each workload."""

    seconds: float = 1.5
    rounds: int = 5
    parts: Sequence[str] = PARTS
    peers: Sequence[str] = field(default_factory=lambda: [peer.name for peer in all_peers()])
    workloads: Sequence[str] = WORKLOADS
    states: Sequence[str] = tuple(STATES)
    loaded_workloads: Sequence[str] = LOADED_WORKLOADS
    varying_workloads: Sequence[str] = tuple(VARYING)
    clients: Sequence[int] = (1, 2, 4, 16)
    rate_hz: float = 100.0
    scales: Sequence[str] = field(default_factory=lambda: list(SCALES))
    floors: bool = True


class Run:
    """Run that measures the parts of a plan, one after another, into `document`."""

    def __init__(self, plan: Plan, console: Console, keep: Callable[[results.Document], None]) -> None:
        self._plan = plan
        self._console = console
        self._keep = keep
        self.failed: list[str] = []
        self.document: results.Document = {"format": results.FORMAT, "seconds": plan.seconds, "left_out": {}}

    def run(self) -> results.Document:
        """Measure every part and return the document, which is also stored after each part."""
        began, plan = time.monotonic(), self._plan
        reasons = {peer.name: peer.available() for peer in all_peers() if peer.name in plan.peers}
        for name, reason in reasons.items():
            if reason is not None:
                self._console.print(f"{name} is left out: {reason}")
                self.document["left_out"][name] = reason
        peers = [name for name, reason in reasons.items() if reason is None]
        self.document |= {"machine": facts(), "command": shlex.join(["python", "-m", "bench.run", *sys.argv[1:]])}
        measures: dict[str, Callable[[list[str]], None]] = {
            "closed_loop": self._closed_loop,
            "varying": self._varying,
            "clients": self._clients,
            "stages": self._stages,
            "profile": self._profile,
            "scale": self._scale,
        }
        for part in PARTS:
            if part in plan.parts:
                measures[part](peers)
                self.document["took_s"] = time.monotonic() - began
                self._keep(self.document)
        return self.document

    def _closed_loop(self, peers: list[str]) -> None:
        plan = self._plan
        with floors() as compiled:
            for state in map(STATES.__getitem__, plan.states):
                # The quiet figures are the document's own; those of another state have the same form below its name.
                found = results.add_part(self.document, state.name)["closed_loop"] = {}
                for name in plan.workloads if state is QUIET else plan.loaded_workloads:
                    self._one_workload(peers, compiled if plan.floors else [], state, name, found)

    def _one_workload(
        self, peers: list[str], beside: Sequence[Floor], state: State, name: str, found: dict[str, Any]
    ) -> None:
        load = Load(state)
        with self._watched(found, name) as into:
            rows = measure(fresh(peers), beside, name, self._plan.seconds, self._plan.rounds, load)
            into |= {"array_bytes": workload(name).array_bytes, "rows": [row.figures() for row in rows]}
            into["loops_cpu_share"] = load.share()
        title = name if state is QUIET else f"{name}, {state.name}"
        self._console.print(table(title, into["array_bytes"], into["rows"]))
        self._console.print(shares_text(into))
        self.failed += [f"{title}: {row.failed}" for row in rows if row.failed]

    def _varying(self, peers: list[str]) -> None:
        with self._watched(self.document, "varying") as into:
            ways = [peer for peer in varying.ways() if peer.name in peers]
            into["workloads"] = varying.measure(
                ways, self._plan.varying_workloads, self._plan.seconds, self._plan.rounds
            )
        self._console.print(varying.table(into["workloads"]))
        rows = [row for beside in into["workloads"].values() for row in beside]
        self.failed += [f"varying: {row['failed']}" for row in rows if "failed" in row]

    def _clients(self, peers: list[str]) -> None:
        plan = self._plan
        with self._watched(self.document, "clients") as into:
            rows = [
                measure_crowd(peer, CROWD_WORKLOAD, plan.clients, plan.seconds / 2, CROWD_ROUNDS, plan.rate_hz)
                for peer in fresh(peers)
            ]
            into |= {"workload": CROWD_WORKLOAD, "rate_hz": plan.rate_hz, "rows": rows}
        self._console.print(crowd_table(into))
        self.failed += [f"{CROWD_WORKLOAD}: {row['failed']}" for row in rows if "failed" in row]

    def _stages(self, peers: list[str]) -> None:
        with self._watched(self.document, "stages") as into:
            into["workloads"] = stages.measure(STAGE_WORKLOADS, self._plan.seconds)

    def _profile(self, peers: list[str]) -> None:
        with self._watched(self.document, "profile") as into:
            into["workloads"] = profile_request.measure(profile_request.WORKLOADS, self._plan.seconds)
        self._console.print(profile_request.table(into["workloads"]))

    def _scale(self, peers: list[str]) -> None:
        found = self.document["scale"] = {}
        for name in self._plan.scales:
            title, scale = SCALES[name]
            with self._watched(found, name) as into:
                into["title"] = title
                try:
                    into["figures"] = [asdict(figure) for figure in scale(self._plan.seconds)]
                except NotMeasured as reason:
                    into["not_measured"] = str(reason)
                except Exception as error:  # noqa: BLE001  the other parts are still useful
                    into["failed"] = f"{type(error).__name__}: {error}"
                    self.failed.append(f"{name}: {into['failed']}")
            self._console.print(figures_table(into))

    @contextmanager
    def _watched(self, found: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
        """Store the measurements of the block in `found[name]`, with the CPU share of other programs meanwhile."""
        found[name] = {}
        bystanders = Bystanders()
        yield found[name]
        found[name] |= bystanders.shares()


def shares_text(found: dict[str, Any]) -> str:
    """Return one line about the other work of the processors while a workload was measured.

    >>> shares_text({"other_cpu_share": 0.01, "steal_share": 0.002, "loops_cpu_share": 0.25})
    'of the processors, the busy programs of the state had 25 %, other programs 1 %, the hypervisor 0 %'
    """
    loops, others, steal = (100 * found[f"{key}_share"] for key in ("loops_cpu", "other_cpu", "steal"))
    return (
        f"of the processors, the busy programs of the state had {loops:.0f} %, other programs {others:.0f} %, "
        f"the hypervisor {steal:.0f} %"
    )


def fresh(names: list[str]) -> list[Peer]:
    return [peer for peer in all_peers() if peer.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    names = [peer.name for peer in all_peers()]
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="latest", help="of the results: bench/results/NAME.json; default latest")
    parser.add_argument("--report", action="store_true", help="write the documents again, from this run")
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="for each way and workload; default 1.5")
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="turns that they are divided into; default 5")
    parser.add_argument("--parts", type=of(PARTS), default=PARTS, help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--peers", type=of(names), default=names, help=f"of {', '.join(names)}; default all")
    parser.add_argument(
        "--workloads",
        type=of(BUILDERS),
        help=f"of {', '.join(BUILDERS)}, or all; default {', '.join(WORKLOADS)}, of which the states that are not "
        f"quiet have {', '.join(LOADED_WORKLOADS)}",
    )
    states = "; ".join(f"{state.name}: {state.says}" for state in STATES.values())
    parser.add_argument(
        "--state", type=of(STATES), default=list(STATES), help=f"of the closed loop; {states}; default all"
    )
    parser.add_argument("--clients", type=counts, default=(1, 2, 4, 16), help="at once; default 1,2,4,16")
    parser.add_argument("--rate", type=float, default=Plan.rate_hz, help="of the open loop, requests per second")
    parser.add_argument("--scales", type=of(SCALES), default=list(SCALES), help=f"of {', '.join(SCALES)}; default all")
    parser.add_argument("--no-floors", action="store_true", help="skip the floors: the same exchange without a server")
    options = parser.parse_args(arguments)

    if options.report and not is_installed("matplotlib"):
        parser.error(f"--report draws with matplotlib, which is not installed: {HOW_TO_GET}")

    terminate_by_exception()
    sweep()
    plan = Plan(
        options.seconds,
        options.rounds,
        options.parts,
        options.peers,
        options.workloads or WORKLOADS,
        options.state,
        options.workloads or LOADED_WORKLOADS,
        clients=options.clients,
        rate_hz=options.rate,
        scales=options.scales,
        floors=not options.no_floors,
    )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    path = results.path_of(options.name)
    run = Run(plan, console, lambda document: results.write(path, document))
    document = results.rounded(run.run())
    if options.report:
        report.write(document, report.DOCS)
    console.print(distances.table(document))
    console.print(targets.table(document))
    machine = document["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cpus']} processors, {machine['kernel']}, {machine['python']}; "
        f"{document['took_s']:.0f} s; {path}"
    )
    console.print(report.quiet(document))
    for text in run.failed:
        console.print(f"failed: {text}", style="red")
    return int(bool(run.failed))


def of(known: Iterator[str] | Sequence[str] | dict[str, Any]) -> Callable[[str], list[str]]:
    """Parse a comma-separated choice into the order of the known names; "all" is every one."""
    every = list(known)

    def parse(text: str) -> list[str]:
        asked = every if text == "all" else text.split(",")
        if unknown := [name for name in asked if name not in every]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(every)}")
        return [name for name in every if name in asked]

    return parse


def counts(text: str) -> list[int]:
    """Parse numbers of clients.

    >>> counts("16,1")
    [1, 16]
    """
    numbers = sorted({int(number) for number in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{numbers[0]} clients: at least 1")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
