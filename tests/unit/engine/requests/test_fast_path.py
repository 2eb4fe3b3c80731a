"""The engine's fast path: which requests take it, and that it answers and counts as the slow path does."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder, Encoder
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.channel.mapped_channel import MappedChannel
from shmserve.daemon.engine.channel.request_rate_limit import Rate
from shmserve.daemon.engine.requests.fast_path import FastPathServing
from shmserve.daemon.ipc.stats import Counter, Stage, Stats, create_stats_memory
from shmserve.daemon.packages.range_checks import RangeCheck
from shmserve.errors import RequestRejected
from shmserve.layout import Geometry, number_of, sequence_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead, RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.keeping import WAYS_OF_KEEPING, WAYS_OF_KEEPING_ARRAYS, state_in

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

    def __init__(
        self,
        tensors_on: torch.device | None,
        in_place: bool,
        *,
        model: Model | None = None,
        checks: Mapping[str, Mapping[str, RangeCheck]] | None = None,
        stateful: bool = False,
        rate: Rate | None = None,
        channel: int = 0,
        real_time_chunking: bool = False,
    ) -> None:
        self.tensors = tensors_on is not None
        self.stats = Stats(create_stats_memory())
        self.model = model or Model()
        self.serving = FastPathServing(
            self.model,
            self.stats,
            version=7,
            max_batch=1,
            in_place=in_place,
            stateful=stateful,
            checks=checks or {},
            real_time_chunking=real_time_chunking,
        )
        self._sealed = SealedChannelFds()
        channel_info = ChannelInfo(Identity(1, channel, 1), None)
        self.client = ClientChannel(channel_info, self._sealed.create(channel_info.identity, _GEOMETRY, _GEOMETRY))
        ends = [os.dup(descriptor) for descriptor in self._sealed.engine_ends()]
        self.state = ChannelState(
            MappedChannel(channel_info, ends),
            trusted=True,
            uid=0,
            rate=rate,
            tensors_on=tensors_on,
            in_place=in_place,
            numbers=itertools.count(1),
            deferred=(),
            stats=self.stats,
        )
        self.state.open()
        self._encoder, self._decoder = Encoder(), Decoder()

    def head(self, state: Any, **words: int) -> RequestHead:
        """Write an observation into the next slot; the head that its request would have."""
        number = number_of(self.client.requests.published()) + 1
        sequence = sequence_of(number, number % 4)
        tree = state if isinstance(state, dict) else {"state": np.asarray(state)}
        encoded = self._encoder.encode(tree, self.client.requests.memory(sequence))
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

    def ask(self, state: Any, *, fast: bool | int = True, **words: int) -> tuple[ReplyHead, Any]:
        """Return the reply to an observation that takes the fast path, or the slow path."""
        sequence = self.publish(self.head(state, **words))
        if fast:
            assert self.serve_fast(), "the request did not take the fast path"
        else:
            self.serve_long()
        return self.reply(sequence)

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
    if not engine.serve_fast():  # there is no arena yet
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
    assert engine.model.calls == words[Counter.SERVED] == words[Counter.BATCHES] == engine.stats.channel(0, 0)[0] == 11
    assert words[Counter.CHANNEL] == 0
    assert words[Counter.IN_PLACE] in (0, 11)
    for stage in Stage:
        assert sum(engine.stats.distribution(stage).counts) == 11
    assert not engine.serve_fast()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"kind": 77}, Status.REJECTED),
        ({"flags": Flag.PICKLED}, Status.REJECTED),
        ({"flags": Flag.SUPERSEDE | Flag.PICKLED}, Status.REJECTED),
        ({"deadline_ns": 1}, Status.EXPIRED),
        ({"capture_ns": 1, "max_age_ns": 1}, Status.STALE),
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


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"kind": Kind.RESET}, Status.OK),
        ({"flags": Flag.SUPERSEDE}, Status.OK),
        ({"flags": Flag.SUPERSEDE | Flag.REPEATABLE}, Status.OK),
        ({"deadline_ns": 1 << 62}, Status.OK),
        ({"capture_ns": 1}, Status.OK),
        ({"capture_ns": 1, "max_age_ns": 1 << 62}, Status.OK),
        ({"max_age_ns": 1}, Status.OK),
        ({"payload_bytes": 8}, Status.REJECTED),
        ({"payload_bytes": 79}, Status.REJECTED),
    ],
    ids=str,
)
def test_every_option_takes_the_fast_path(engine: Engine, words: dict[str, int], status: Status) -> None:
    head, result = engine.ask([3.0, 4.0], **words)

    assert head.status == status
    if status == Status.REJECTED:
        assert result[0] == "MetadataError"
        assert "describe" in result[1] and str(words["payload_bytes"]) in result[1]
    elif words.get("kind") != Kind.RESET:
        assert result["action"].tolist() == [6.0, 8.0]
    assert engine.state.poller.last_seen == engine.client.requests.published()


@pytest.mark.parametrize("payload_bytes", [81, 4097, 1 << 60])
def test_a_payload_that_is_longer_than_its_sizes_say_is_refused(engine: Engine, payload_bytes: int) -> None:
    sequence = engine.publish(engine.head([3.0, 4.0], payload_bytes=payload_bytes))
    if not engine.serve_fast():
        engine.serve_long()

    head, result = engine.reply(sequence)
    assert (head.status, result[0]) == (Status.REJECTED, "MetadataError")


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


def before_the_take(engine: Engine, step: Callable[[], None]) -> None:
    """Make the step whenever the slow path has checked a request and takes it."""
    replies = engine.state.channel.replies
    take = replies.take

    def take_after_the_step(sequence: int) -> int:
        step()
        return take(sequence)

    replies.take = take_after_the_step


class _Interposed(int):
    """The number of a structure, which makes a step when the engine looks it up: between its checks and its mark."""

    step: Callable[[], None]

    def __eq__(self, other: object) -> bool:
        self.step()
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_a_request_that_is_withdrawn_in_the_moment_in_which_it_is_taken_does_not_run(
    engine: Engine, *, fast: bool, kept: bool
) -> None:
    head = engine.head([3.0, 4.0])
    requests, calls = engine.client.requests, engine.model.calls

    def withdraw() -> None:
        requests.cancel(head.sequence)
        if kept:
            requests.keep(head.sequence)

    if fast:
        known = _Interposed(head.schema)
        known.step = lambda: None
        decoders = engine.state.schemas.decoders
        decoders[known] = decoders.pop(head.schema)
        known.step = lambda: None if engine.client.replies.taken(head.sequence) else withdraw()
        engine.publish(head)
        assert engine.serve_fast()
    else:
        before_the_take(engine, withdraw)
        engine.publish(head)
        engine.serve_long()

    assert engine.reply(head.sequence)[0].status == (Status.OK if kept else Status.CANCELLED)
    assert engine.model.calls == calls + kept
    assert engine.client.replies.taken(head.sequence)
    assert engine.stats.words[Counter.CANCELLED] == (not kept)


@pytest.mark.parametrize(
    "words",
    [{}, {"deadline_ns": 1}, {"capture_ns": 1, "max_age_ns": 1}],
    ids=["cancelled", "expired", "stale"],
)
def test_of_a_request_that_a_dead_engine_had_begun_none_says_that_it_did_not_run(
    engine: Engine, words: dict[str, int]
) -> None:
    sequence = engine.publish(engine.head([1.0, 1.0], **words))
    engine.state.channel.replies.take(sequence)  # as by an engine that died of it
    if not words:
        engine.client.requests.cancel(sequence)
    calls = engine.model.calls
    engine.serve_long()

    head, error = engine.reply(sequence)
    assert (head.status, error[0]) == (Status.ENGINE_LOST, "EngineLost")
    assert engine.model.calls == calls


@pytest.mark.parametrize("begun", [True, False])
def test_a_replaced_request_that_a_dead_engine_had_begun_is_lost(engine: Engine, begun: bool) -> None:
    older = engine.publish(engine.head([1.0, 1.0]))
    if begun:
        engine.state.channel.replies.take(older)
    newer = engine.publish(engine.head([2.0, 2.0], flags=int(Flag.SUPERSEDE)))
    engine.serve_long()

    assert engine.reply(older)[0].status == (Status.ENGINE_LOST if begun else Status.SUPERSEDED)
    assert engine.action(newer) == [4.0, 4.0]
    assert engine.stats.words[Counter.LOST] == begun and engine.stats.words[Counter.SUPERSEDED] == (not begun)


def test_a_second_attempt_that_is_withdrawn_as_it_begins_does_not_run_and_is_lost(engine: Engine) -> None:
    sequence = engine.publish(engine.head([1.0, 1.0]))
    engine.state.channel.replies.take(sequence)
    before_the_take(engine, lambda: engine.client.requests.cancel(sequence))
    calls = engine.model.calls
    engine.serve_long()

    assert engine.reply(sequence)[0].status == Status.ENGINE_LOST
    assert engine.model.calls == calls


@pytest.mark.parametrize("slot", [4, 63])
def test_a_missing_slot_is_left_to_the_removal_of_the_channel(engine: Engine, slot: int) -> None:
    requests = engine.client.requests
    requests.words[requests.counter] = sequence_of(number_of(requests.published()) + 1, slot)

    assert not engine.serve_fast()


def test_other_lengths_take_the_fast_path(engine: Engine) -> None:
    for length in (3, 1, 2, 0, 3, 2):
        state = list(map(float, range(length)))
        assert engine.ask(state, fast=engine.serving._in_place or length < 3)[1]["action"].tolist() == [
            2 * number for number in state
        ]
        # A longer observation than those before makes the arena grow, on the slow path.
        assert engine.ask(state)[1]["action"].tolist() == [2 * number for number in state]


def test_another_structure_is_read_in_its_turn_and_charged(engine: Engine) -> None:
    engine.publish(engine.head(np.zeros(100)))  # the arena has room from now on
    if not engine.serve_fast():
        engine.serve_long()
    for state in (np.array([[1.0, 2.0]]), np.array([1, 2], np.uint8), np.array([[[1]]])):
        charged_ns = engine.state.overhead._paid_ns
        for _ in range(2):
            sequence = engine.publish(engine.head(state))
            assert engine.serve_fast()
            assert engine.action(sequence) == (state * 2).tolist()
        assert engine.state.overhead._paid_ns > charged_ns


def test_a_new_structure_of_a_limited_client_or_that_cannot_be_read_takes_the_slow_path(engine: Engine) -> None:
    head = engine.head(np.array([[1.0, 2.0]]))
    engine.client.requests.memory(head.sequence).metadata[0] = 0
    sequence = engine.publish(head)
    assert not engine.serve_fast()
    engine.serve_long()
    assert engine.reply(sequence)[0].status == Status.REJECTED

    engine.state.rate = Rate(1001, 1000)
    engine.publish(engine.head(np.array([[1, 2]])))
    assert not engine.serve_fast()


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


@pytest.mark.parametrize("lengths", [(2,) * 5, (2, 1, 0, 2, 1)], ids=["one length", "lengths"])
def test_memory_without_a_keeper_is_reused(engine: Engine, lengths: Sequence[int]) -> None:
    arena = engine.state.staging(0).arena
    for length in lengths:
        engine.ask(np.ones(length))

    assert engine.state.staging(0).arena is arena


@pytest.mark.parametrize("lengths", [(2,) * 6, (2, 1, 2, 1, 1, 2)], ids=["one length", "lengths"])
def test_arrays_that_are_kept_on_both_paths_stay_as_they_are(engine: Engine, lengths: Sequence[int]) -> None:
    if engine.serving._in_place:
        pytest.skip("read in place an observation is valid while the policy runs, and no longer")
    kept: list[Any] = []
    engine.model.answer = lambda observation: kept.append(observation["state"]) or {"action": observation["state"] * 2}  # type: ignore[func-returns-value]
    for number, length in enumerate(lengths):
        # After the arena was left to the policy, the next request takes the slow path, and makes a new one.
        sequence = engine.publish(engine.head(np.full(length, number, np.float64)))
        if not engine.serve_fast():
            engine.serve_long()
        assert engine.action(sequence) == [2.0 * number] * length
        if number % 2:
            engine.model.answer, keeping = (lambda observation: {"action": observation["state"]}), engine.model.answer
            engine.ask(np.zeros(2), fast=False)  # an arena for the fast path
            engine.model.answer = keeping

    assert [np.asarray(each).tolist() for each in kept] == [[number] * length for number, length in enumerate(lengths)]


def test_a_request_that_the_model_fails_on_leaves_the_arena(engine: Engine) -> None:
    arena = engine.state.staging(0).arena

    def failing(observation: Any) -> Any:
        state = observation["state"]
        raise ValueError(f"no {len(state)}")

    engine.model.answer = failing
    assert engine.ask([1.0, 2.0])[0].status == Status.FAILED
    assert engine.ask([1.0])[0].status == Status.FAILED

    assert engine.state.staging(0).arena is arena


def test_an_unreadable_text_is_refused_and_the_next_request_works(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.model.answer = lambda observation: observation["text"] * 2
    assert engine.ask({"text": "abc"}, fast=False)[1] == "abcabc"
    head = engine.head({"text": "xyz"})
    memory = engine.client.requests.memory(head.sequence)
    memory.payload[64] = 0xFF
    sequence = engine.publish(head)
    assert engine.serve_fast()

    answer, result = engine.reply(sequence)
    assert (answer.status, result[0]) == (Status.REJECTED, "MetadataError")
    assert engine.ask({"text": "pqrs"})[1] == "pqrspqrs"
    assert not caplog.records, "a client could fill the log"
    assert engine.state.overhead.until_ns == 0


def make_engine(**settings: Any) -> Engine:
    engine = Engine(settings.pop("tensors_on", None), False, **settings)
    engine.ask([0.25, 0.5], fast=False)
    return engine


def test_a_rate_limit_refuses_on_the_fast_path() -> None:
    rate = Rate(1001, 3)
    with contextlib.closing(make_engine(rate=rate)) as engine:
        replies = [engine.ask([1.0, 2.0]) for _ in range(4)]

        assert [head.status for head, _ in replies] == [Status.OK] * 2 + [Status.REJECTED] * 2
        assert replies[2][1] == ("TooManyRequests", rate.refusal)
        assert (engine.model.calls, engine.stats.words[Counter.REJECTED]) == (3, 2)
        head, result = engine.ask([1.0, 2.0], payload_bytes=8)
        assert (head.status, result[0]) == (Status.REJECTED, "TooManyRequests"), "unreadable requests count as well"
        assert engine.ask([1.0], kind=Kind.RESET)[1][0] == "TooManyRequests"
        assert engine.stats.words[Counter.RESETS] == 0


class PerClientModel(Model):
    """Answers with the client's number as well."""

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        return [
            {"action": each["state"] * 2, "client": client}
            for each, client in zip(observations, client_ids, strict=True)
        ]

    def client_left(self, client_id: int) -> None: ...


def test_a_model_with_client_ids_gets_the_number_on_the_fast_path() -> None:
    with contextlib.closing(make_engine(model=PerClientModel(), channel=5)) as engine:
        _, result = engine.ask([1.0, 2.0])

        assert (result["action"].tolist(), result["client"]) == ([2.0, 4.0], 5)
        assert engine.stats.channel(5, 0)[0] == 2


@pytest.mark.parametrize("tensors_on", [None, torch.device("cpu")], ids=["numpy", "tensors"])
def test_an_observation_out_of_range_is_refused_and_counted_once(tensors_on: torch.device | None) -> None:
    checks = {"observation": {"state": RangeCheck(-1.0, 1.0)}}
    with contextlib.closing(make_engine(tensors_on=tensors_on, checks=checks)) as engine:
        calls = engine.model.calls
        head, result = engine.ask([0.5, 3.0])

        assert (head.status, result[0]) == (Status.REJECTED, "ValueOutOfRange")
        assert "observation.state" in result[1]
        words = engine.stats.words
        assert (words[Counter.OUT_OF_RANGE], words[Counter.REJECTED], words[Counter.CLAMPED]) == (1, 1, 0)
        assert engine.model.calls == calls
        assert engine.ask([0.5, 1.0])[0].status == Status.OK


@pytest.mark.parametrize("tensors_on", [None, torch.device("cpu")], ids=["numpy", "tensors"])
@pytest.mark.parametrize("new_structure", [False, True])
def test_numbers_are_clamped_and_counted_once(tensors_on: torch.device | None, new_structure: bool) -> None:
    checks = {
        "observation": {"state": RangeCheck(-1.0, 1.0, clamp=True)},
        "action": {"action": RangeCheck(-2.0, 1.5, clamp=True)},
    }
    with contextlib.closing(make_engine(tensors_on=tensors_on, checks=checks)) as engine:
        assert not engine.ask([0.5, -1.0])[0].flags & Flag.CLAMPED
        if new_structure:  # the reply takes the slow path
            engine.model.answer = lambda observation: {"action": observation["state"] * 2, "more": 1}
        head, result = engine.ask([7.0, -7.0])

        assert head.status == Status.OK
        assert head.flags & Flag.CLAMPED
        assert result["action"].tolist() == [1.5, -2.0]
        assert engine.stats.words[Counter.CLAMPED] == 1
        assert engine.stats.words[Counter.OUT_OF_RANGE] == 0


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("declares", "flags", "arrives"),
    [(True, Flag.REAL_TIME_CHUNKING, True), (False, Flag.REAL_TIME_CHUNKING, False), (False, 0, True)],
)
def test_entries_of_real_time_chunking_reach_a_policy_that_declares_them(
    fast: bool, declares: bool, flags: int, arrives: bool
) -> None:
    engine = Engine(None, False, real_time_chunking=declares)
    with contextlib.closing(engine):
        engine.model.answer = lambda observation: {"action": len(observation)}
        for rows in (4, 2, 3):
            observation = {"state": np.zeros(2), "inference_delay": 2, "prev_chunk_left_over": np.zeros((rows, 2))}
            # The structure is new in the first request, and then it is not, whatever the number of rows.
            head, result = engine.ask(observation, fast=fast and rows != 4, flags=flags)

            assert (head.status, result["action"]) == (Status.OK, 3 if arrives else 1)
        nothing = {"state": np.zeros(2), "inference_delay": 0, "prev_chunk_left_over": np.zeros((0, 2))}
        assert engine.ask(nothing, fast=fast, flags=flags)[1]["action"] == (1 if flags else 3)


@pytest.mark.parametrize("fast", [True, False])
def test_rows_of_the_version_before_an_update_do_not_reach_the_next_one(fast: bool) -> None:
    engine = Engine(None, False, real_time_chunking=True)
    with contextlib.closing(engine):
        engine.model.answer = lambda observation: {"action": len(observation)}
        observation = {"state": np.zeros(2), "inference_delay": 2, "prev_chunk_left_over": np.zeros((4, 2))}

        def entries() -> int:
            found: int = engine.ask(observation, fast=fast, flags=Flag.REAL_TIME_CHUNKING)[1]["action"]
            return found

        assert engine.ask(observation, fast=False, flags=Flag.REAL_TIME_CHUNKING)[1]["action"] == 3
        engine.serving._version = 8
        # Sent before the client could know of the update; afterwards it has a result of the new version.
        assert [entries(), entries()] == [1, 3]
        engine.serving._version = 7
        assert [entries(), entries()] == [1, 3]


def test_a_flag_of_real_time_chunking_without_the_entries_changes_nothing() -> None:
    with contextlib.closing(make_engine()) as engine:
        for tree in ([0.25, 0.5], {"state": np.zeros(2), "prev_chunk_left_over": 1}):
            assert engine.ask(tree, fast=False, flags=Flag.REAL_TIME_CHUNKING)[0].status == Status.OK
        engine.model.answer = lambda observation: {"action": len(observation)}
        sequence = engine.publish(engine.head([0.5], flags=Flag.REAL_TIME_CHUNKING))
        engine.serve_long()
        assert engine.reply(sequence)[1] == {"action": 1}


def test_an_action_out_of_range_fails_and_is_counted_once() -> None:
    with contextlib.closing(make_engine(checks={"action": {"action": RangeCheck(-1.0, 1.0)}})) as engine:
        head, result = engine.ask([7.0, 0.0])

        assert (head.status, result[0]) == (Status.FAILED, "ValueOutOfRange")
        words = engine.stats.words
        assert (words[Counter.OUT_OF_RANGE], words[Counter.FAILED], words[Counter.SERVED]) == (1, 1, 1)
        assert engine.ask([0.25, 0.0])[0].status == Status.OK


class ResettingModel(Model):
    """Counts what is asked of it."""

    resets = True

    def __init__(self) -> None:
        super().__init__()
        self.reset_clients: list[int] = []

    def reset(self, client_id: int) -> None:
        self.reset_clients.append(client_id)
        if len(self.reset_clients) == 3:
            raise ValueError("no third")


def test_a_reset_takes_the_fast_path() -> None:
    model = ResettingModel()
    with contextlib.closing(make_engine(model=model, stateful=True, channel=2)) as engine:
        for _ in range(2):
            head, result = engine.ask([0.0], kind=Kind.RESET)
            assert (head.status, result) == (Status.OK, None)
            assert head.flags & Flag.STATEFUL
        head, result = engine.ask([0.0], kind=Kind.RESET)

        assert (head.status, result) == (Status.FAILED, ("ValueError", "no third"))
        assert model.reset_clients == [2, 2, 2]
        assert engine.stats.words[Counter.RESETS] == 2
        assert sum(engine.stats.distribution(Stage.INFER).counts) == 1, "a reset is not an inference"


def test_a_channel_that_is_closed_is_unmapped(engine: Engine) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:shmserve")

    engine.ask([1.0, 2.0])
    before = mappings()
    engine.state.close()

    assert before - mappings() == 2
    assert not engine.serve_fast()
