"""Fuzz target for the engine's loop: a client writes any word and byte of its segment between any two steps.

An input is a program: operations of one byte and their arguments. The real loop and serving run it with an echo model;
a second, honest client must get every one of its replies.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from typing import Any

import numpy as np
import torch

from fuzz.echo_model import EchoModel
from fuzz.observations import TREES
from fuzz.target import Target
from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder, Encoder
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.channel.mapped_channel import MappedChannel
from shmserve.daemon.engine.loop.loop import EngineLoop
from shmserve.daemon.engine.requests.fast_path import FastPathServing
from shmserve.daemon.ipc.stats import Counter, Stats, create_stats_memory
from shmserve.layout import (
    CACHE_LINE,
    COUNTER_LINE,
    COUNTER_OFFSET,
    REQUEST,
    Geometry,
    number_of,
    sequence_of,
    slot_of,
)
from shmserve.protocol import Kind, Status
from shmserve.ring import RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity, Segment
from shmserve.spin import SpinBudget

_GEOMETRY = Geometry(4, 1024, 1024)
_OPERATION_LIMIT = 64

#: Write one word anywhere; write bytes anywhere; publish a request; let the engine run; move the counter slightly;
#: send a request as the honest client.
_WORD, _BYTES, _PUBLISH, _STEP, _COUNT, _NEIGHBOUR = range(6)


class _Bell:
    """Doorbell with one token for each step, which ends the loop after the step."""

    names_channels = False

    def __init__(self) -> None:
        self.loop: EngineLoop | None = None
        self.token = False

    def watch(self, state: ChannelState) -> None:
        pass

    def forget(self, state: ChannelState) -> None:
        pass

    def unmute(self, now_ns: int) -> None:
        pass

    def count(self) -> int:
        return int(self.token)

    def take(self) -> None:
        self.token = False

    def wait(self, timeout_ns: int) -> bool:
        assert self.loop is not None
        self.loop.stopped = True
        return False

    def close(self) -> None:
        pass


class _Client:
    """Both ends of one channel, whose memory is reused."""

    def __init__(self, number: int, stats: Stats) -> None:
        self._sealed = SealedChannelFds()
        self._stats = stats
        self._channel_info = ChannelInfo(Identity(1, number, 1), None)
        self.channel = ClientChannel(
            self._channel_info, self._sealed.create(self._channel_info.identity, _GEOMETRY, _GEOMETRY)
        )
        self._replies = Segment.from_descriptor(self._sealed.engine_ends()[1], writable=True)
        self._headers = [segment.bytes[:CACHE_LINE].copy() for segment in self._segments]
        self.encoder = Encoder()

    @property
    def _segments(self) -> tuple[Segment, Segment]:
        return self.channel.requests.segment, self._replies

    def attach(self) -> ChannelState:
        """Reset it to a newly attached client."""
        for segment, header in zip(self._segments, self._headers, strict=True):
            segment.bytes[:CACHE_LINE] = header
            segment.bytes[CACHE_LINE:] = 0
        for memory in self.channel.requests.memories:
            memory.written_schema = None
        return ChannelState(
            MappedChannel(self._channel_info, [os.dup(descriptor) for descriptor in self._sealed.engine_ends()]),
            trusted=False,
            uid=0,
            rate=None,
            tensors_on=torch.device("cpu"),
            numbers=itertools.count(1),
            deferred=(),
            stats=self._stats,
        )

    def publish(self, tree: Any, slot: int = 0) -> int:
        requests = self.channel.requests
        sequence = sequence_of(number_of(requests.published()) + 1, slot) % (1 << 64)
        encoded = self.encoder.encode(tree, requests.memory(sequence))
        requests.publish(tuple(RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0)))
        return sequence


class _Engine:
    def __init__(self) -> None:
        logging.disable()
        torch.set_num_threads(1)
        self.stats = Stats(create_stats_memory())
        serving = FastPathServing(
            EchoModel(), self.stats, version=1, max_batch=1, in_place=False, stateful=False, checks={}
        )
        bell = _Bell()
        self.bell = bell
        self.broken: list[str] = []
        self.loop = EngineLoop(
            bell,
            self.stats,
            serving,
            SpinBudget(0),
            lambda timeout_s: False,
            lambda channel_info, why: self.broken.append(why),
        )
        bell.loop = self.loop
        self.loop.serve()
        self._steps = 0
        self.hostile, self.neighbour = _Client(0, self.stats), _Client(1, self.stats)
        self.loop.add(self.neighbour.attach())

    def step(self) -> None:
        self._steps += 1
        if self._steps % 2:
            # As the loop does if it was polling when its client published.
            for state in list(self.loop.states.values()):
                if state.words[state.counter] != state.poller.last_seen:
                    self.loop._serve_found(state, time.monotonic_ns())
        self.bell.token = True
        # As if the longest wait were over, after which the loop finds a request published without a doorbell.
        self.loop._scanned_ns = 0
        self.loop.stopped = False
        self.loop.run()
        assert self.stats.words[Counter.CHANNEL] == 0

    def begin(self) -> None:
        """Reset all state, so that the same input does the same again."""
        self._steps = 0

    def ask_as_neighbour(self, value: int) -> None:
        client = self.neighbour
        sequence = client.publish({"value": value, "array": np.full(3, value)})
        self.step()
        head = client.channel.replies.try_head(sequence)
        assert head is not None and head.status == Status.OK, "the honest client got no answer"
        memory = client.channel.replies.memory(sequence)
        found = Decoder().decode(memory, head.schema, head.metadata_bytes, head.payload_bytes)
        assert found["value"] == value and (found["array"] == value).all(), "the honest client got another answer"


_engine: list[_Engine] = []


def run(data: bytes) -> None:
    if not _engine:
        _engine.append(_Engine())
    engine = _engine[0]
    engine.broken.clear()
    engine.begin()
    state = engine.hostile.attach()
    engine.loop.add(state)
    try:
        _perform(engine, engine.hostile, data)
        engine.step()
        engine.ask_as_neighbour(len(data))
        assert len(state.waiting) <= _GEOMETRY.slots
    finally:
        engine.loop.remove(0)


def _perform(engine: _Engine, hostile: _Client, data: bytes) -> None:
    segment = hostile.channel.requests.segment
    at = 0
    for _ in range(_OPERATION_LIMIT):
        if at >= len(data) or engine.broken:
            return
        operation, at = data[at] % 6, at + 1
        if operation == _WORD:
            where, value = data[at : at + 2], data[at + 2 : at + 10]
            segment.words[int.from_bytes(where, "little") % len(segment.words)] = int.from_bytes(value, "little")
            at += 10
        elif operation == _BYTES:
            start, length = int.from_bytes(data[at : at + 2], "little") % segment.bytes.size, data[at + 2 : at + 3]
            written = np.frombuffer(data[at + 3 : at + 3 + int.from_bytes(length, "little")], np.uint8)
            written = written[: segment.bytes.size - start]
            segment.bytes[start : start + written.size] = written
            at += 3 + written.size
        elif operation == _PUBLISH:
            what = int.from_bytes(data[at : at + 1], "little")
            hostile.publish(TREES[(what >> 2) % len(TREES)], what % _GEOMETRY.slots)
            at += 1
        elif operation == _STEP:
            engine.step()
        elif operation == _COUNT:
            counter = segment.counter_index
            number, slot = data[at : at + 1], data[at + 1 : at + 2]
            moved = number_of(segment.words[counter]) + int.from_bytes(number, "little") - 128
            segment.words[counter] = sequence_of(moved, slot_of(int.from_bytes(slot, "little"))) % (1 << 64)
            at += 2
        else:
            engine.ask_as_neighbour(at)


def seeds() -> list[bytes]:
    slots = range(_GEOMETRY.slots)
    # The low bits of an argument choose the slot, the others the tree.
    in_every_slot = b"".join(bytes((_PUBLISH, slot)) for slot in slots)
    found = [
        in_every_slot + bytes((_NEIGHBOUR, _STEP)) + in_every_slot,
        bytes((_COUNT, 129, 0, _STEP, _COUNT, 127, 0)),
        *(bytes((_PUBLISH, 4 * tree, _STEP, _PUBLISH, 4 * tree + 1, _PUBLISH, 2, _STEP)) for tree in range(len(TREES))),
    ]
    for slot in slots:
        for word in range(
            len(REQUEST.names)
        ):  # every word of every head, after a request was published and before the engine looks
            index = (_GEOMETRY.slot_offset(slot) // 8 + word).to_bytes(2, "little")
            for value in (0, 1, (1 << 63), (1 << 64) - 1):
                lie = bytes((_WORD,)) + index + value.to_bytes(8, "little")
                found.append(in_every_slot + lie + bytes((_STEP,)))
    for name in COUNTER_LINE.names[1:]:  # the hints
        index = ((COUNTER_OFFSET + COUNTER_LINE.offset(name)) // 8).to_bytes(2, "little")
        for value in (0, 1, 64, 65, (1 << 63), (1 << 64) - 1):
            lie = bytes((_WORD,)) + index + value.to_bytes(8, "little")
            found.append(bytes((_PUBLISH, 0)) + lie + bytes((_STEP,)) + lie + bytes((_PUBLISH, 1, _STEP)))
    for offset in (_GEOMETRY.metadata_offset(1), _GEOMETRY.payload_offset(1)):
        scribble = bytes((_BYTES,)) + offset.to_bytes(2, "little") + bytes((8,)) + b"\x80\x05\xff\xff}(K\x01"
        found.append(bytes((_PUBLISH, 4)) + scribble + bytes((_STEP, _PUBLISH, 0, _STEP)))
    return found


WORDS = (
    bytes((_STEP,)),
    bytes((_PUBLISH, 0, _STEP)),
    bytes((_COUNT, 129, 0)),
    bytes((_COUNT, 128 + 4, 3)),
    b"\xff" * 8,
)
TARGET = Target(run, seeds, WORDS)
