"""Waiting beside another process: where its writer runs, and whether it sleeps."""

from __future__ import annotations

import os
import threading

import numpy as np
import numpy.typing as npt
import pytest

from shmserve.layout import ASLEEP, COUNTER_LINE, HEADER, Geometry
from tests.support.native import NATIVE, core

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

FOREVER = 1 << 62
PROCESSOR = COUNTER_LINE.offset("processor") // 8
Line = npt.NDArray[np.uint64]


def poller_of(line: Line) -> core.CounterPoller:
    return core.CounterPoller(line.view(np.uint8), 0)


def elsewhere() -> int:
    """Return the note of a writer on a processor that this machine does not have."""
    return (os.cpu_count() or 1) + 1000


def publish_soon(line: Line) -> threading.Timer:
    timer = threading.Timer(0.05, lambda: line.__setitem__(0, 64))
    timer.start()
    return timer


def test_a_spin_goes_on_beside_a_writer_that_runs_elsewhere() -> None:
    line = np.zeros(8, np.uint64)
    line[PROCESSOR] = elsewhere()
    timer = publish_soon(line)

    took_ns = core.spin_unless_blocked([poller_of(line)], FOREVER)

    timer.join()
    assert took_ns > 0


def test_a_spin_ends_beside_a_writer_that_was_rung_and_does_not_wake_up() -> None:
    line = np.zeros(8, np.uint64)
    line[PROCESSOR] = elsewhere() | ASLEEP

    assert core.spin_unless_blocked([poller_of(line)], FOREVER) == 0
    assert core.sleeping_writers([poller_of(line)]) == [0]
    assert core.same_cpu_writers([poller_of(line)]) == []


def test_a_writer_notes_where_it_falls_asleep_and_that_it_is_awake() -> None:
    geometry = Geometry(slots=1, metadata_bytes=64, payload_bytes=64)
    memory = np.zeros(geometry.segment_bytes, np.uint8)
    line = memory[HEADER.size :].view(np.uint64)
    slots = core.Slots(memory, HEADER.size // 8, geometry.slot_offset(0) // 8, geometry.stride // 8, 1)
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        core.mark_asleep([slots])
        asleep = int(line[PROCESSOR])
        core.mark_awake([slots])
        awake = int(line[PROCESSOR])
    finally:
        os.sched_setaffinity(0, allowed)

    assert (asleep, awake) == (here + 1 | ASLEEP, here + 1)


def test_marking_leaves_out_what_may_not_be_written() -> None:
    geometry = Geometry(slots=1, metadata_bytes=64, payload_bytes=64)
    memory = np.zeros(geometry.segment_bytes, np.uint8)
    place = HEADER.size // 8, geometry.slot_offset(0) // 8, geometry.stride // 8, 1
    closed = core.Slots(memory, *place)
    closed.close()
    memory.flags.writeable = False
    read_only = core.Slots(memory, *place)

    core.mark_asleep([closed, read_only])

    assert not memory.any()
    with pytest.raises(TypeError, match="list of slots"):
        core.mark_asleep([poller_of(np.zeros(8, np.uint64))])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="list of slots"):
        core.mark_awake(None)  # type: ignore[arg-type]


def test_a_spin_that_yields_ends_beside_a_thread_that_keeps_the_processor() -> None:
    line = np.zeros(8, np.uint64)
    line[PROCESSOR] = elsewhere()
    allowed, ended = os.sched_getaffinity(0), threading.Event()

    def keep_busy() -> None:
        while not ended.is_set():
            pass

    os.sched_setaffinity(0, {min(allowed)})
    busy = threading.Thread(target=keep_busy)
    busy.start()  # on this processor, too
    try:
        assert core.spin_unless_blocked([poller_of(line)], FOREVER, True) == 0
    finally:
        ended.set()
        busy.join()
        os.sched_setaffinity(0, allowed)
