"""Plain requests take a short way through both sides; whatever is not plain finds the long way untouched."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.backend import NATIVE
from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder, Encoder
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.channel.mapped_channel import MappedChannel
from shmserve.daemon.engine.requests.fast_path import FastPathServing
from shmserve.daemon.ipc.stats import Counter, Stage, Stats, create_stats_memory
from shmserve.errors import RequestRejected
from shmserve.layout import Geometry, number_of, sequence_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead, RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.keeping import WAYS_OF_KEEPING, WAYS_OF_KEEPING_ARRAYS, state_in

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

_GEOMETRY = Geometry(slots=4, metadata_bytes=4096, payload_bytes=4096)


class Model(EchoModel):
    """Answers with twice the state; does something else if a test says so."""

    takes_numpy = True

    def __init__(self) -> None:
        self.calls = 0
        self.answer: Callable[[Any], Any] = lambda observation: {"action": observation["state"] * 2}

    def infer(self, observations: list[Any]) -> list[Any]:
        self.calls += 1
        return [self.answer(observation) for observation in observations]


class Engine:
    """One client's channel and what serves it, without the loop; the client writes what the test says."""

    def __init__(self, tensors_on: torch.device | None, in_place: bool) -> None:
        self.tensors = tensors_on is not None
        self.stats = Stats(create_stats_memory())
        self.model = Model()
        self.serving = FastPathServing(
            self.model, self.stats, version=7, max_batch=1, in_place=in_place, stateful=False, checks={}
        )
        self._sealed = SealedChannelFds()
        channel_info = ChannelInfo(Identity(1, 0, 1), None)
        self.client = ClientChannel(channel_info, self._sealed.create(channel_info.identity, _GEOMETRY, _GEOMETRY))
        ends = [os.dup(descriptor) for descriptor in self._sealed.engine_ends()]
        self.state = ChannelState(
            MappedChannel(channel_info, ends),
            trusted=True,
            uid=0,
            rate=None,
            tensors_on=tensors_on,
            serial=1,
            deferred=(),
            stats=self.stats,
        )
        self.state.open()
        self._encoder, self._decoder = Encoder(), Decoder()

    def head(self, state: Any, **words: int) -> RequestHead:
        """Write an observation into the next slot; the head that its request would have."""
        number = number_of(self.client.requests.published()) + 1
        sequence = sequence_of(number, number % 4)
        encoded = self._encoder.encode({"state": np.asarray(state)}, self.client.requests.memory(sequence))
        return RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0)._replace(**words)

    def publish(self, head: RequestHead) -> int:
        self.client.requests.publish(tuple(head))
        return head.sequence

    def serve_long(self) -> None:
        self.state.look(time.monotonic_ns())
        while self.state.waiting:
            self.serving.serve([(self.state, self.state.waiting.popleft())])

    def serve_fast(self) -> bool:
        return self.serving.serve_fast(self.state)

    def reply(self, sequence: int) -> tuple[ReplyHead, Any]:
        head = self.client.replies.try_head(sequence)
        assert head is not None, "there is no reply"
        if head.status == Status.RESIZE_REQUIRED:
            return head, None
        memory = self.client.replies.memory(sequence)
        return head, self._decoder.decode(memory, head.schema, head.metadata_bytes, head.payload_bytes)

    def action(self, sequence: int) -> Any:
        head, tree = self.reply(sequence)
        assert head.status == Status.OK
        return tree["action"].tolist()

    def close(self) -> None:
        self.state.close()
        self.client.close()
        self._sealed.close()
        self.stats.close()


@pytest.fixture(params=["numpy", "tensors", "in place"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(torch.device("cpu") if request.param == "tensors" else None, request.param == "in place")
    sequence = engine.publish(engine.head([1.0, 2.0]))
    assert not engine.serve_fast()  # nothing is known of it yet
    engine.serve_long()
    assert engine.action(sequence) == [2.0, 4.0]
    yield engine
    engine.close()


def test_a_request_like_the_last_one_is_answered_and_counted(engine: Engine) -> None:
    for number in range(2, 12):
        sequence = engine.publish(engine.head([number, 1.0]))
        assert engine.serve_fast()
        assert engine.action(sequence) == [2.0 * number, 2.0]
        assert engine.reply(sequence)[0].version == 7

    words = engine.stats.words
    assert engine.model.calls == words[Counter.SERVED] == words[Counter.BATCHES] == engine.stats.channel(0)[0] == 11
    assert words[Counter.CHANNEL] == 0
    assert words[Counter.IN_PLACE] in (0, 11)
    for stage in Stage:
        assert sum(engine.stats.distribution(stage).counts) == 11
    assert not engine.serve_fast()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"kind": Kind.RESET}, Status.OK),
        ({"kind": 77}, Status.REJECTED),
        ({"flags": Flag.SUPERSEDE}, Status.OK),
        ({"flags": Flag.PICKLED}, Status.REJECTED),
        ({"deadline_ns": 1}, Status.EXPIRED),
        ({"capture_ns": 1, "max_age_ns": 1}, Status.STALE),
        ({"schema": 1234}, Status.OK),
        ({"payload_bytes": 8}, Status.REJECTED),
        ({"payload_bytes": 1 << 60}, Status.REJECTED),
    ],
    ids=str,
)
def test_other_requests_take_the_slow_path(engine: Engine, words: dict[str, int], status: Status) -> None:
    seen, calls = engine.state.poller.last_seen, engine.model.calls
    sequence = engine.publish(engine.head([3.0, 4.0], **words))

    assert not engine.serve_fast()

    assert (engine.state.poller.last_seen, engine.model.calls) == (seen, calls)
    assert not engine.state.channel.replies.attempts(sequence)
    assert engine.stats.words[Counter.CHANNEL] == 0
    engine.serve_long()
    assert engine.reply(sequence)[0].status == status


def test_a_withdrawn_request_one_that_was_begun_and_two_at_once_go_the_long_way(engine: Engine) -> None:
    withdrawn = engine.publish(engine.head([1.0, 1.0]))
    engine.client.requests.cancel(withdrawn)
    assert not engine.serve_fast()
    engine.serve_long()
    assert engine.reply(withdrawn)[0].status == Status.CANCELLED

    begun = engine.publish(engine.head([1.0, 1.0]))
    engine.state.channel.replies.take(begun)
    assert not engine.serve_fast()
    engine.serve_long()
    assert (engine.action(begun), engine.state.channel.replies.attempts(begun)) == ([2.0, 2.0], 2)

    two = [engine.publish(engine.head([number, 1.0])) for number in (5.0, 6.0)]
    assert not engine.serve_fast()
    engine.serve_long()
    assert [engine.action(sequence) for sequence in two] == [[10.0, 2.0], [12.0, 2.0]]


@pytest.mark.parametrize("slot", [4, 63])
def test_a_missing_slot_is_left_to_the_removal_of_the_channel(engine: Engine, slot: int) -> None:
    requests = engine.client.requests
    requests.words[requests.counter] = sequence_of(number_of(requests.published()) + 1, slot)

    assert not engine.serve_fast()


def test_another_structure_is_learnt_in_its_turn(engine: Engine) -> None:
    for state in ([1.0, 2.0, 3.0], [4.0, 5.0], [1, 2]):
        first = engine.publish(engine.head(state))
        assert not engine.serve_fast()
        engine.serve_long()
        second = engine.publish(engine.head(state))
        assert engine.serve_fast()
        assert engine.action(first) == engine.action(second) == [2 * number for number in state]


def test_a_result_of_another_structure_or_without_room_is_told_all_the_same(engine: Engine) -> None:
    results: list[Any] = [np.ones(3), "a string", {"action": np.zeros(2)}]
    for result in results:
        engine.model.answer = lambda observation, result=result: result  # type: ignore[misc]
        sequence = engine.publish(engine.head([1.0, 2.0]))
        assert engine.serve_fast()
        np.testing.assert_equal(engine.reply(sequence)[1], result)

    engine.model.answer = lambda observation: np.zeros(1000)
    sequence = engine.publish(engine.head([1.0, 2.0]))
    assert engine.serve_fast()
    assert engine.reply(sequence)[0].status == Status.RESIZE_REQUIRED
    assert list(engine.state.deferred_replies) == [sequence]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no"), Status.FAILED), (SystemExit(1), Status.FAILED), (RequestRejected("no"), Status.REJECTED)],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_raises_is_an_answer_and_the_next_request_works(
    engine: Engine, error: BaseException, status: Status
) -> None:
    working = engine.model.answer

    def failing(observation: Any) -> Any:
        raise error

    engine.model.answer = failing
    sequence = engine.publish(engine.head([1.0, 2.0]))
    assert engine.serve_fast()
    assert engine.reply(sequence)[0].status == status
    engine.model.answer = working
    sequence = engine.publish(engine.head([2.0, 2.0]))
    assert engine.serve_fast()
    assert engine.action(sequence) == [4.0, 4.0]
    assert engine.stats.words[Counter.CHANNEL] == 0


def test_a_kept_part_of_an_observation_stays_as_it_is(engine: Engine) -> None:
    if engine.serving._in_place:
        pytest.skip("read in place an observation is valid while the policy runs, and no longer")
    ways = WAYS_OF_KEEPING if engine.tensors else WAYS_OF_KEEPING_ARRAYS
    kept: list[Any] = []
    turns = iter(ways.values())

    def keeping(observation: Any) -> Any:
        kept.append(next(turns)(observation["state"]))
        return {"action": observation["state"] * 2}

    engine.model.answer = keeping
    for number in range(len(ways)):
        sequence = engine.publish(engine.head(np.array([number, number], np.float32)))
        if not engine.serve_fast():
            engine.serve_long()
        assert engine.action(sequence) == [2.0 * number] * 2

    for number, (way, each) in enumerate(zip(ways, kept, strict=True)):
        assert state_in(each).view(np.float32).tolist() == [number] * 2, way


def test_memory_without_a_keeper_is_reused(engine: Engine) -> None:
    arena = engine.state.staging(0).arena
    for number in range(5):
        engine.publish(engine.head([number, 1.0]))
        assert engine.serve_fast()

    assert engine.state.staging(0).arena is arena


def test_a_channel_that_is_closed_is_unmapped(engine: Engine) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:shmserve")

    before = mappings()
    engine.state.close()

    assert before - mappings() == 2
