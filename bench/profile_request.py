"""Cost of each step of a request, measured in one process: `python -m bench.profile_request`.

The real parts of both sides (codec, ring, staging, doorbell, statistics) work on real shared memory, one step at a
time, each many times; the minimum is the cost of an undisturbed step. `rest` is the cost between the steps: the round
trip of a real client and a real daemon, less all steps. It contains the calls that connect the steps, and the two
transfers of a cache line from one processor to the other.
"""

from __future__ import annotations

import argparse
import os
import time
import timeit
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.peers.leftovers import my_prefix, sweep
from bench.peers.peer import terminate_by_exception
from bench.peers.policy import Policy
from bench.peers.rows import short
from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import workload
from shmserve.backend import stage
from shmserve.codec import Decoder, Encoded, Encoder, described
from shmserve.doorbell import NamedDoorbell, create_doorbell, unlink_doorbell
from shmserve.layout import REPLY, REQUEST, Geometry, header_bytes, sequence_of
from shmserve.ring import ReplyReader, ReplyWriter, RequestReader, RequestWriter
from shmserve.segment import Segment

WORKLOADS = ("tiny", "vga", "fullhd")
METADATA_BYTES, REPLY_BYTES = 4096, 4096
#: Calls of a step in one measurement; measurements repeat until the time is up.
CALLS = 5
SEQUENCE = sequence_of(1, 0)

#: Key, side, description, in the order of a request.
STEPS = (
    ("write", "client", "compare the observation with the last one's structure, copy its arrays into the slot"),
    ("publish", "client", "write the slot's head and the counter"),
    ("ring", "client", "ring the engine's doorbell"),
    ("look", "engine", "see the counter move, copy the head"),
    ("take", "engine", "note that this request is about to run"),
    ("stage", "engine", "copy the payload into the staging arena (not in place)"),
    ("arrays", "engine", "make the policy's arrays and the tree"),
    ("policy", "engine", "the policy itself: sum up every byte"),
    ("encode", "engine", "write the reply's arrays into its slot"),
    ("complete", "engine", "write the reply's head and its sequence"),
    ("ring_back", "engine", "ring the client's doorbell"),
    ("count", "engine", "statistics: five histograms"),
    ("head", "client", "see the sequence, copy the head"),
    ("decode", "client", "build the reply, copy its arrays into memory of the caller"),
)
ENGINE_ONLY_STAGED = ("stage",)


def measure(workloads: Sequence[str], seconds: float) -> dict[str, Any]:
    """Measure for each workload the steps (us) and the round trips of a real client, staged and in place."""
    found: dict[str, Any] = {name: {"steps": steps(name, seconds)} for name in workloads}
    with ExitStack() as cleanup:
        for way, in_place in (("staged", False), ("in_place", True)):
            service = cleanup.enter_context(Service(POLICY, model={"arrays": "numpy", "read_in_place": in_place}))
            for name in workloads:
                found[name][way] = least_round_trip(service, name, seconds)
    for name, one in found.items():
        for way in ("staged", "in_place"):
            parts = sum(us for key, us in one["steps"].items() if way == "staged" or key not in ENGINE_ONLY_STAGED)
            one[way]["rest"] = one[way]["least"] - parts
            one[way]["steps"] = parts
        found[name] = one
    return found


def least_round_trip(service: Service, name: str, seconds: float) -> dict[str, float]:
    """Measure the minimum and the median time of `ShmClient.infer`, us."""
    asked = workload(name)
    took = []
    with service.client() as client:
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end or count < 50:
            count += 1
            asked.stamp(count)
            start = time.perf_counter_ns()
            reply = client.infer(asked.observation)
            took.append(time.perf_counter_ns() - start)
            asked.verify(reply, count)
    return {"least": min(took) / 1e3, "p50": float(np.median(took)) / 1e3}


def steps(name: str, seconds: float) -> dict[str, float]:
    """Measure the minimum time of each step, us."""
    with rig(name) as calls:
        least = {key: min_of(call, seconds / len(calls)) for key, call in calls.items()}
    return {key: least[key] for key, _, _ in STEPS}


def min_of(call: Callable[[], object], seconds: float) -> float:
    timer = timeit.Timer(call)
    empty = min(timeit.Timer(_nothing).repeat(50, CALLS))
    end, least, rounds = time.monotonic() + seconds, float("inf"), 0
    while time.monotonic() < end or rounds < 5:
        least = min(least, timer.timeit(CALLS))
        rounds += 1
    return max(0.0, least - empty) / CALLS * 1e6


def _nothing() -> None:
    """Do nothing: the cost of a call alone."""


@contextmanager
def rig(name: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield each step as a call without arguments, on a channel with both ends in this process."""

    from shmserve.daemon.engine.channel.staging import Staging
    from shmserve.daemon.ipc.stats import Stats, create_stats_memory

    asked = workload(name)
    schema, payload_bytes = described(asked.observation, "observation")
    with ExitStack() as cleanup:
        client_out, engine_in = cleanup.enter_context(
            ends(Geometry(4, METADATA_BYTES, payload_bytes), RequestWriter, RequestReader)
        )
        engine_out, client_in = cleanup.enter_context(
            ends(Geometry(4, METADATA_BYTES, REPLY_BYTES), ReplyWriter, ReplyReader)
        )
        bell = cleanup.enter_context(doorbell())
        stats_memory = create_stats_memory()
        cleanup.callback(os.close, stats_memory)
        stats = Stats(stats_memory)
        cleanup.callback(stats.close)

        slot, reply_slot = client_out.memory(SEQUENCE), engine_out.memory(SEQUENCE)
        encoder, reply_encoder, decoder = Encoder(), Encoder(name="action"), Decoder()
        request = encoder.encode(asked.observation, slot)
        staging, arena = Staging(None), np.empty(payload_bytes, np.uint8)
        taken = engine_in.memory(SEQUENCE)
        policy = Policy()

        def observed(in_place: bool) -> Any:
            return staging.observation(schema, taken, payload_bytes, in_place=in_place, pickled=False)

        observation = observed(False)
        result = policy.infer(observation)
        encoded = reply_encoder.encode(result, reply_slot)
        reply = client_in.memory(SEQUENCE)
        words, counter = engine_in.words, engine_in.counter

        request_head = head_of(REQUEST.names, request)
        # The engine does not write the words from `taken` on here: they record the requests it has begun to run.
        reply_head = head_of(REPLY.names, encoded)[: REPLY.names.index("taken")]

        def publish() -> None:
            client_out.publish(request_head)

        def look() -> object:
            return engine_in.head(SEQUENCE) if words[counter] != 0 else None

        def take() -> None:
            engine_in.cancelled(SEQUENCE)
            engine_out.take(SEQUENCE)

        def complete() -> None:
            engine_out.complete(*reply_head)

        def count() -> None:
            stats.record(12_345, 6_789, 54_321, 9_876)

        def decode() -> object:
            return decoder.decode(reply, *encoded)

        publish()
        complete()
        head = client_in.try_head(SEQUENCE)
        assert head is not None
        assert head.sequence == SEQUENCE
        yield {
            "write": lambda: encoder.encode(asked.observation, slot),
            "publish": publish,
            "ring": bell.ring,
            "look": look,
            "take": take,
            "stage": lambda: stage(taken.payload, payload_bytes, arena, None, 0),
            "arrays": lambda: observed(True),
            "policy": lambda: policy.infer(observation),
            "encode": lambda: reply_encoder.encode(result, reply_slot),
            "complete": complete,
            "ring_back": bell.ring,
            "count": count,
            "head": lambda: client_in.try_head(SEQUENCE),
            "decode": decode,
        }


def head_of(names: Sequence[str], encoded: Encoded) -> tuple[int, ...]:
    """Return a slot's head with these words, the others 0."""
    known = {
        "sequence": SEQUENCE,
        "schema": encoded.schema,
        "metadata_bytes": encoded.metadata_bytes,
        "payload_bytes": encoded.payload_bytes,
    }
    return tuple(known.get(name, 0) for name in names)


@contextmanager
def ends(geometry: Geometry, writer: Any, reader: Any) -> Iterator[tuple[Any, Any]]:
    """Yield both ends of one direction, mapped twice as by two processes."""
    descriptor = os.memfd_create("shmserve-bench", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, geometry.segment_bytes)
        os.pwrite(descriptor, header_bytes(geometry, epoch=1, generation=1, channel=0), 0)
        written, read = (Segment.from_descriptor(descriptor, writable=writable) for writable in (True, False))
    finally:
        os.close(descriptor)
    both = writer(written), reader(read)
    try:
        yield both
    finally:
        for end in both:
            end.close()


@contextmanager
def doorbell() -> Iterator[NamedDoorbell]:
    """Yield a semaphore that only this process uses."""
    name = f"/{my_prefix()}{uuid.uuid4().hex}"
    create_doorbell(name)
    bell = NamedDoorbell(name)
    try:
        yield bell
    finally:
        bell.close()
        unlink_doorbell(name)


def table(found: dict[str, Any]) -> Table:
    """Format one column of microseconds for each workload."""
    shown = Table("side", "step", *found, title="Cost of each step alone, minimum of many, in microseconds")
    for key, side, what in STEPS:
        shown.add_row(side, what, *(short(one["steps"][key]) for one in found.values()))
    for way in ("staged", "in_place"):
        label = way.replace("_", " ")
        shown.add_section()
        shown.add_row("", f"all steps, {label}", *(short(one[way]["steps"]) for one in found.values()))
        shown.add_row("", f"least round trip, {label}", *(short(one[way]["least"]) for one in found.values()))
        shown.add_row("", "the rest: calls, waiting, memory", *(short(one[way]["rest"]) for one in found.values()))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile_request", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each workload; default 2")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="separated by commas")
    options = parser.parse_args(arguments)
    terminate_by_exception()
    sweep()
    console = Console(width=140, highlight=False)
    console.print(table(measure(options.workloads.split(","), options.seconds)))


if __name__ == "__main__":
    main()
