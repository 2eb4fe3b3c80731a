"""Round trips at 50 Hz for every length of spinning: `python -m bench.scale.spin_settings`.

A cliff in this table is a setting at which a side spins in the way of the side that it waits for. The clients of all
settings take turns in short blocks, and every engine stays alive and asleep meanwhile. `--pinned` measures twice more:
with the client and the engine on different processors, and both on the same one.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from bench.floors.floor import two_cpus
from bench.peers.client_process import ClientProcess, Turn
from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders, facts
from bench.peers.peer import terminate_by_exception
from bench.peers.rows import short
from bench.peers.shmserve_peer import Shmserve
from bench.rates import Turns
from bench.workloads import BUILDERS

from .kernel_entries import children

if TYPE_CHECKING:
    from shmserve.client import ShmClient

RATE_HZ = 50.0
WORKLOADS = ("tiny", "vga")
SPINS_US = (0, 20, 100, 300, 1_000, 3_000, 10_000, 30_000)
ADAPTIVE: Literal["adaptive"] = "adaptive"
MOST_SPIN_US = 1_000_000
#: The side with the setting; the other one is adaptive.
SIDES = ("engine", "client", "both")

SpinSetting = int | Literal["adaptive"]


class Spinning(Shmserve):
    """Peer whose engine and clients each have their own length of spinning."""

    name = "shmserve"
    client_spin_us: SpinSetting = ADAPTIVE

    def client(self) -> ShmClient:
        from shmserve.client import ShmClient

        return ShmClient(runtime_dir=self.address, timeout=60.0, spin_us=self.client_spin_us).connect()


@dataclass(frozen=True)
class Pinning:
    """Processors of the client and of the engine."""

    says: str
    client: frozenset[int]
    engine: frozenset[int]


def pinnings(pinned: bool) -> list[Pinning]:
    """Return the pinnings of a run; on one processor there is only one."""
    every, two = frozenset(os.sched_getaffinity(0)), two_cpus()
    found = [Pinning("pinned to nothing", every, every)]
    if pinned and two is not None:
        one, other = (frozenset([cpu]) for cpu in two)
        found += [Pinning("on different processors", one, other), Pinning("on the same processor", one, one)]
    return found


class Way:
    """Client of one setting and the engine that it asks."""

    def __init__(self, peer: Spinning, client_spin_us: SpinSetting, workload: str, cleanup: ExitStack) -> None:
        asking = copy.copy(peer)  # The copy is never started or stopped: it has another client, and the same address.
        asking.client_spin_us = client_spin_us
        self._engines = [engine for pid in peer.server_pids() for engine in children(pid)]
        self._client = ClientProcess(asking, workload)
        cleanup.callback(self._client.close)

    def ready(self) -> None:
        self._client.ready()

    def turn(self, pinning: Pinning, seconds: float, into: Turns) -> None:
        pin(self._client.pid, pinning.client)
        for engine in self._engines:
            pin(engine, pinning.engine)
        into.samples.append(self._client.turn(Turn(seconds, RATE_HZ, paced=True))[0])


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Let every thread of a process run only on these processors."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


Key = tuple[str, str, int]  # The pinning, the side, and the setting.


def measure(
    workload: str, spins_us: Sequence[int], sides: Sequence[str], where: Sequence[Pinning], seconds: float, rounds: int
) -> dict[Key, Turns]:
    """Measure one workload at 50 Hz with each setting on each side."""
    with ExitStack() as cleanup:
        peers: dict[SpinSetting, Spinning] = {}
        for engine_us in (*((ADAPTIVE,) if "client" in sides else ()), *spins_us):
            if engine_us == ADAPTIVE or set(sides) - {"client"}:
                peer = peers[engine_us] = Spinning()
                peer.spin_us = engine_us
                cleanup.callback(peer.stop)
                peer.start()
        settings: Mapping[str, Callable[[int], tuple[SpinSetting, SpinSetting]]] = {
            "engine": lambda spin_us: (spin_us, ADAPTIVE),
            "client": lambda spin_us: (ADAPTIVE, spin_us),
            "both": lambda spin_us: (spin_us, spin_us),
        }
        ways: dict[tuple[str, int], Way] = {}
        for side in sides:
            for spin_us in spins_us:
                engine_us, client_us = settings[side](spin_us)
                ways[side, spin_us] = Way(peers[engine_us], client_us, workload, cleanup)
        for way in ways.values():
            way.ready()
        found: dict[Key, Turns] = {}
        for _ in range(rounds):
            for (side, spin_us), way in ways.items():
                for pinning in where:
                    into = found.setdefault((pinning.says, side, spin_us), Turns(f"{side} {spin_us}"))
                    way.turn(pinning, seconds / rounds, into)
    return found


def table(workload: str, pinning: Pinning, found: Mapping[Key, Turns]) -> Table:
    """Format p50 and p99 of every setting."""
    shown = Table(title=f"{workload} at {RATE_HZ:g} Hz, {pinning.says}: p50 / p99, microseconds")
    shown.add_column("spin_us", justify="right")
    sides = list(dict.fromkeys(side for _, side, _ in found))
    for side in sides:
        shown.add_column("on both sides" if side == "both" else f"on the {side}'s side", justify="right")
    for spin_us in dict.fromkeys(spin_us for *_, spin_us in found):
        figures = [found[pinning.says, side, spin_us].figures() for side in sides]
        shown.add_row(f"{spin_us:,}", *(f"{short(one['p50_us'])} / {short(one['p99_us'])}" for one in figures))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.spin_settings", description="Measure every length of spinning at 50 Hz."
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each setting and side; default 4")
    parser.add_argument("--rounds", type=int, default=2, help="blocks that they are divided into; default 2")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="default tiny,vga")
    parser.add_argument("--spin-us", type=_settings, default=SPINS_US, help="such as 0,3000; default 0 to 30000")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}; default all")
    parser.add_argument("--pinned", action="store_true", help="also on different processors, and on the same one")
    options = parser.parse_args(arguments)
    names, sides = options.workloads.split(","), options.sides.split(",")
    if unknown := [name for name in names if name not in BUILDERS] + [side for side in sides if side not in SIDES]:
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(BUILDERS)}, and the sides {', '.join(SIDES)}")
    terminate_by_exception()
    sweep()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    where = pinnings(options.pinned)
    if options.pinned and len(where) == 1:
        console.print("pinned to nothing only: this process may use one processor")
    for name in names:
        bystanders = Bystanders()
        found = measure(name, options.spin_us, sides, where, options.seconds, options.rounds)
        shares = bystanders.shares()
        for pinning in where:
            console.print(table(name, pinning, found))
        console.print(
            f"other programs had {100 * shares['other_cpu_share']:.0f} % of the processors, the hypervisor "
            f"{100 * shares['steal_share']:.0f} %"
        )
    machine = facts()
    console.print(f"{machine['cpu']}, {machine['cpus']} processors, {machine['kernel']}, {machine['python']}")


def _settings(text: str) -> list[int]:
    """Parse lengths of spinning.

    >>> _settings("0,3000")
    [0, 3000]
    """
    found = [int(one) for one in text.split(",")]
    if not all(0 <= one <= MOST_SPIN_US for one in found):
        raise argparse.ArgumentTypeError(f"{text}: 0 to {MOST_SPIN_US} microseconds each")
    return found


if __name__ == "__main__":
    main()
