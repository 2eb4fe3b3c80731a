"""Replies of a policy that takes about the same time each time, at 50 Hz: `python -m bench.scale.regular_service`.

A client that has learnt the service time is awake when the reply is due; one with `spin_us=0` is woken by it. Both ask the same
engine, in turns of short blocks. `rest` is the round trip without the policy's own time, `client` without all of the engine's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.peers.asking import LEAD_IN_BEATS, sleep_until
from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders, facts
from bench.peers.peer import terminate_by_exception
from bench.peers.rows import short
from bench.service import POLICIES, Service
from bench.workloads import BUILDERS, workload
from shmserve.client import ShmClient

RATE_HZ = 50.0
SERVICES_US = (2_000, 5_000, 15_000)
#: Requests of a block that do not count, so that the service time of this policy is learnt.
LEAD_IN = LEAD_IN_BEATS + 12


@dataclass
class Way:
    """A client, and what its requests took, in nanoseconds."""

    name: str
    client: ShmClient
    rest_ns: list[float] = field(default_factory=list)
    client_ns: list[float] = field(default_factory=list)
    thread_ns: list[int] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Format p50 and p99 of both, and the share of one processor that the calling thread had inside the requests."""
        shown = [
            " / ".join(short(float(np.percentile(found, percentile)) / 1e3) for percentile in (50, 99))
            for found in (self.rest_ns, self.client_ns)
        ]
        return [*shown, f"{100 * float(np.mean(self.thread_ns)) * RATE_HZ / 1e9:.2f} %"]


def block(way: Way, observation: dict[str, object], times_us: Sequence[int]) -> None:
    """Ask at each beat, with these service times; the first requests do not count."""
    period_ns = int(1e9 / RATE_HZ)
    due = time.monotonic_ns()
    for number, service_us in enumerate(times_us):
        due += period_ns
        sleep_until(due)
        observation["service_us"], observation["number"] = service_us, number
        before = time.thread_time_ns()
        reply = way.client.request(observation)
        spent = time.thread_time_ns() - before
        if reply.action["number"] != number:
            raise RuntimeError(f"request {number} got the answer to {reply.action['number']}")
        if number >= LEAD_IN:
            timing = reply.timing
            engine_us = timing.queued_us + timing.staged_us + timing.infer_us + timing.copied_us
            way.rest_ns.append((timing.round_trip_us - timing.infer_us) * 1e3)
            way.client_ns.append((timing.round_trip_us - engine_us) * 1e3)
            way.thread_ns.append(spent)


def measure(name: str, service_us: int, jitter: float, transport: str, seconds: float, rounds: int) -> list[Way]:
    """Measure one workload and service time; with `jitter` the time is up to this part longer or shorter."""
    observation = dict(workload(name).observation)
    noise = np.random.default_rng(1)
    count = LEAD_IN + max(1, round(seconds * RATE_HZ / rounds))
    with Service(POLICIES / "timed.py", settings={"transport": transport}) as service:
        ways = [Way("the default", service.client()), Way("spin_us=0", service.client(spin_us=0))]
        for _ in range(rounds):
            for way in ways:
                block(way, observation, [int(service_us * (1 + jitter * noise.uniform(-1, 1))) for _ in range(count)])
        for way in ways:
            way.client.close()
    return ways


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.regular_service",
        description="Measure replies that are due at a known time, at 50 Hz.",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="measured for each way; default 10")
    parser.add_argument("--rounds", type=int, default=4, help="blocks that they are divided into; default 4")
    parser.add_argument("--workloads", default="tiny", help=f"of {', '.join(BUILDERS)}; default tiny")
    parser.add_argument("--services-us", type=_services, default=SERVICES_US, help="default 2000,5000,15000")
    parser.add_argument("--jitter", type=float, default=0.0, help="part by which a service time differs; default 0")
    parser.add_argument("--transport", choices=("named", "sealed"), default="named")
    options = parser.parse_args(arguments)
    terminate_by_exception()
    sweep()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for name in options.workloads.split(","):
        shown = Table(title=f"{name} at {RATE_HZ:g} Hz, {options.transport}: p50 / p99, microseconds")
        for head in ("policy", "client", "rest", "client's part", "client CPU"):
            shown.add_column(head, justify="right")
        bystanders = Bystanders()
        for service_us in options.services_us:
            for way in measure(name, service_us, options.jitter, options.transport, options.seconds, options.rounds):
                shown.add_row(f"{service_us / 1e3:g} ms", way.name, *way.cells())
        shares = bystanders.shares()
        console.print(shown)
        console.print(
            f"other programs had {100 * shares['other_cpu_share']:.0f} % of the processors, the hypervisor "
            f"{100 * shares['steal_share']:.0f} %"
        )
    machine = facts()
    console.print(f"{machine['cpu']}, {machine['cpus']} processors, {machine['kernel']}, {machine['python']}")


def _services(text: str) -> list[int]:
    """Parse service times.

    >>> _services("2000,15000")
    [2000, 15000]
    """
    found = [int(one) for one in text.split(",")]
    if not all(0 < one <= 1_000_000 for one in found):
        raise argparse.ArgumentTypeError(f"{text}: 1 to 1000000 microseconds each")
    return found


if __name__ == "__main__":
    main()
