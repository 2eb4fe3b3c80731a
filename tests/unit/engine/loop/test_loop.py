"""What clients do with their doorbells changes nobody else's turn: the engine's loop on real memory, in this process."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, final

import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.backend import bytes_in_flight, same_cpu_writers
from shmserve.channel import ChannelInfo, ChannelNames, ClientChannel, create_channel, unlink_channel
from shmserve.codec import Encoder
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.channel.mapped_channel import MappedChannel
from shmserve.daemon.engine.loop import loop
from shmserve.daemon.engine.loop.doorbells import Doorbells, SharedDoorbell
from shmserve.daemon.engine.loop.loop import EngineLoop
from shmserve.daemon.engine.loop.pipe_doorbells import PipeDoorbells
from shmserve.daemon.engine.loop.wake_ahead import LONGEST_NS, WakeAhead
from shmserve.daemon.engine.requests.fast_path import FastPathServing
from shmserve.daemon.ipc.messages import Suspicion
from shmserve.daemon.ipc.stats import Counter, Stats, create_stats_memory
from shmserve.doorbell import NamedDoorbell, create_doorbell, unlink_doorbell
from shmserve.layout import ASLEEP, COUNTER_LINE, COUNTER_OFFSET, WORD, Geometry, number_of, sequence_of
from shmserve.protocol import Kind
from shmserve.ring import RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from shmserve.spin import SpinBudget
from tests.support.native import NATIVE

pytestmark = pytest.mark.pure_too

_GEOMETRY = Geometry(slots=4, metadata_bytes=4096, payload_bytes=4096)


class Model(EchoModel):
    """Tells `asked` of what it was asked first."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.batches_of: list[int] = []
        self.asked: Callable[[str], None] = lambda who: None

    def infer(self, observations: list[Any]) -> list[Any]:
        who = [each if isinstance(each, str) else each["name"] for each in observations]
        self.order += who
        self.batches_of.append(len(who))
        for each in who:
            self.asked(each)
        return super().infer(observations)


@final
class Engine:
    """The loop as the engine wires it, with a bell of either transport and clients that do as they are told."""

    def __init__(self, transport: str, max_batch: int = 1) -> None:
        self.stats = Stats(create_stats_memory())
        self.model = Model()
        self.model.batches = max_batch > 1
        self.news: list[str] = []
        self._names: list[ChannelNames] = []
        self._sealed: list[SealedChannelFds] = []
        self.channels: list[ClientChannel] = []
        self.shared_bell = f"/shmserve-test.{secrets.token_hex(8)}" if transport == "named" else None
        self._supervisor, control = socket.socketpair()
        self._control = control
        bell: Doorbells
        if self.shared_bell is not None:
            create_doorbell(self.shared_bell)
            bell = SharedDoorbell(NamedDoorbell(self.shared_bell))
        else:
            bell = PipeDoorbells(control.fileno())
        self.bell = bell
        serving = FastPathServing(
            self.model, self.stats, version=1, max_batch=max_batch, in_place=False, stateful=False, checks={}
        )
        self.loop = EngineLoop(
            bell,
            self.stats,
            serving,
            SpinBudget(1000),
            self._hear,
            lambda channel_info, why: pytest.fail(why),
            # As if it were too far away to help: what the clock alone would find is not found here.
            longest_wait_ns=3600 * 10**9,
        )
        self.loop.serve()

    def _hear(self, timeout_s: float) -> bool:
        """One piece of the supervisor's news; says whether there is more."""
        if self.news:
            self.model.order.append(self.news.pop(0))
        return bool(self.news)

    def tell(self, *news: str) -> None:
        self.news += news
        self.stats.words[Counter.CONTROL] += 1

    def client(self, name: str) -> Client:
        channel = len(self.channels)
        identity = Identity(1, channel, 1)
        if self.shared_bell is not None:
            fresh = [f"/shmserve-test.{secrets.token_hex(8)}" for _ in range(3)]
            names = ChannelNames(fresh[0], fresh[1], self.shared_bell, fresh[2])
            channel_info = ChannelInfo(identity, names)
            create_channel(channel_info, _GEOMETRY, _GEOMETRY)
            given, ends = [], []
            self._names.append(names)
        else:
            sealed = SealedChannelFds()
            channel_info = ChannelInfo(identity, None)
            given = sealed.create(identity, _GEOMETRY, _GEOMETRY)
            ends = [os.dup(descriptor) for descriptor in sealed.engine_ends()]
            self._sealed.append(sealed)
        client_channel = ClientChannel(channel_info, given)
        self.channels.append(client_channel)
        self.loop.add(
            ChannelState(
                MappedChannel(channel_info, ends),
                trusted=False,
                uid=0,
                rate=None,
                tensors_on=torch.device("cpu"),
                numbers=itertools.count(1),
                deferred=(),
                stats=self.stats,
            )
        )
        return Client(name, client_channel)

    def run(self) -> list[str]:
        """Serve until the loop is stopped; who was served, in that order."""
        self.model.order.clear()
        self.loop.stopped = False
        self.loop.run()
        return self.model.order

    def close(self) -> None:
        for number in list(self.loop.states):
            self.loop.remove(number)
        for channel in self.channels:
            channel.close()
        self.bell.close()
        for sealed in self._sealed:
            sealed.close()
        for index, names in enumerate(self._names):
            unlink_channel(ChannelInfo(Identity(1, index, 1), names))
        if self.shared_bell is not None:
            unlink_doorbell(self.shared_bell)
        self._control.close()
        self._supervisor.close()
        self.stats.close()


@final
class Client:
    def __init__(self, name: str, channel: ClientChannel) -> None:
        self.name = name
        self.channel = channel
        self._encoder = Encoder()

    def publish(self, observation: Any = None) -> None:
        requests = self.channel.requests
        number = number_of(requests.published()) + 1
        sequence = sequence_of(number, number % requests.slots)
        encoded = self._encoder.encode(observation or self.name, requests.memory(sequence))
        requests.publish(tuple(RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0)))

    def ring(self, times: int = 1) -> None:
        for _ in range(times):
            self.channel.request_bell.ring()


@pytest.fixture(params=["named", "sealed"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    # Clients and engine are one process here, and so on one processor; they act as if they were not.
    monkeypatch.setattr(loop, "same_cpu_writers", lambda pollers: [])
    engine = Engine(request.param)
    yield engine
    engine.close()


@pytest.mark.fault("T21")
@pytest.mark.parametrize("rings", [0, 1, 3], ids=["never rings", "rings", "rings too often"])
def test_a_request_of_a_silent_client_is_found_while_another_never_stops_asking(engine: Engine, rings: int) -> None:
    busy, silent = engine.client("busy"), engine.client("silent")
    for _ in range(20):
        engine.client("another")  # attached, and asks nothing

    def asked(who: str) -> None:
        if who == "silent" or len(engine.model.order) == 2000:
            engine.loop.stopped = True
        if who == "busy":
            busy.publish()
            busy.ring(rings)
        if len(engine.model.order) == 100:
            silent.publish()
            silent.ring()

    engine.model.asked = asked
    busy.publish()
    busy.ring()
    order = engine.run()

    assert order[-1] == "silent"


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_the_engine_does_not_look_for_a_client_that_waits_for_its_processor() -> None:
    engine = Engine("named")
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        client = engine.client("here")
        engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
        client.publish()
        client.ring()
        assert engine.run() == ["here"]
        now_ns = engine.loop.states[0].active_ns  # however slow this machine is

        near = same_cpu_writers(engine.loop._active.pollers)

        assert loop._in_the_way(engine.loop._active, near, now_ns)
        assert not loop._in_the_way(engine.loop._active, near, now_ns + 10**9)  # it asks now and then, and is not about

        client.channel.requests.segment.words[COUNTER_OFFSET // WORD + 3] = here + 2
        assert not same_cpu_writers(engine.loop._active.pollers)
    finally:
        os.sched_setaffinity(0, allowed)
        engine.close()


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_the_engine_does_not_look_for_a_client_that_was_rung_and_has_not_woken_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_ABOUT_NS", 3600 * 10**9)  # however slow this machine is
    engine = Engine("named")
    try:
        client = engine.client("asleep")
        engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
        client.publish()
        client.ring()
        assert engine.run() == ["asleep"]
        engine.bell.take()
        words = client.channel.requests.segment.words
        words[COUNTER_OFFSET // WORD + 3] = ASLEEP | 1 << 20  # a processor that this machine does not have
        engine.loop._budget = SpinBudget(3600 * 10**6)

        assert not engine.loop._spin(time.monotonic_ns())
    finally:
        engine.close()


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_the_engine_notes_when_it_sleeps(engine: Engine) -> None:
    client = engine.client("robot")
    place, notes = COUNTER_OFFSET // WORD + 3, []

    def asked(who: str) -> None:
        engine.loop.stopped = True

    def wait(timeout_ns: int) -> bool:
        notes.append(int(client.channel.replies.segment.words[place]) & ASLEEP)
        client.publish()
        return True

    engine.model.asked = asked
    client.publish()
    client.ring()
    engine.run()
    engine.bell.take()
    engine.loop._budget = SpinBudget(0)
    engine.bell.wait = wait  # type: ignore[method-assign]
    engine.loop._idle(time.monotonic_ns())
    notes.append(int(client.channel.replies.segment.words[place]) & ASLEEP)

    assert notes == [ASLEEP, 0]


def test_a_request_that_is_found_after_a_sleep_may_take_the_fast_path(engine: Engine) -> None:
    robot = engine.client("robot")
    serving: Any = engine.loop._serving
    serve_fast = serving.serve_fast
    found: list[int] = []

    def note(state: ChannelState) -> bool:
        found.append(len(engine.model.order))
        return bool(serve_fast(state))

    serving.serve_fast = note
    engine.loop._budget = SpinBudget(0)  # it never spins
    engine.loop.states[0].overhead.until_ns = 1 << 62  # it would rest for others, and there are none

    def asked(who: str) -> None:
        engine.loop.stopped = len(engine.model.order) == 4
        if not engine.loop.stopped:
            robot.publish()
            robot.ring()

    engine.model.asked = asked
    robot.publish()
    robot.ring()
    engine.run()

    assert found == [1, 2, 3]  # but for the first, of a client that was not active


def test_a_request_is_found_that_comes_as_its_client_counts_as_idle(engine: Engine) -> None:
    robot = engine.client("robot")
    engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
    for _ in range(3):
        robot.publish()
        robot.ring()
        assert engine.run() == ["robot"]

        engine.loop.states[0].active_ns -= 10 * 10**9
        engine.loop._scanned_ns = 0


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_a_client_announces_no_write_to_an_engine_that_runs_on_its_own_processor() -> None:
    engine = Engine("named")
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        client = engine.client("large")
        words, place = engine.loop.states[0].channel.replies.words, COUNTER_OFFSET // WORD + 3

        rings = []
        for processor in (here + 1, ASLEEP | here + 1, here + 2, ASLEEP | here + 2, 0):
            words[place] = processor
            client.channel.announce()
            rings.append(engine.bell.count())
            engine.bell.take()

        assert rings == [0, 1, 1, 1, 1]  # one that sleeps may wake up on any processor
    finally:
        os.sched_setaffinity(0, allowed)
        engine.close()


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_a_write_in_progress_is_copied_ahead_and_a_stopped_client_is_left() -> None:
    engine = Engine("named")
    try:
        client = engine.client("large")
        engine.loop._take_rings(time.monotonic_ns())
        line = COUNTER_OFFSET // WORD
        words = client.channel.requests.segment.words
        words[line + 2], words[line + 1] = 0, sequence_of(1, 0)  # announced, and nothing more

        assert not engine.loop._look_at_written(time.monotonic_ns())
        assert bytes_in_flight(engine.loop._all.copiers) == -1  # and nobody waits for it again
        words[line + 1] = sequence_of(2, 0)

        client.publish()
        assert engine.loop._look_at_written(time.monotonic_ns())
        assert engine.model.order == ["large"]
    finally:
        engine.close()


@pytest.mark.fault("T21")
def test_a_client_that_rings_without_end_is_muted_for_a_while() -> None:
    engine = Engine("sealed")
    try:
        noisy = engine.client("noisy")
        engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
        noisy.publish()
        noisy.ring()
        assert engine.run() == ["noisy"]

        looks = 0
        noisy.ring(50)
        while engine.bell.count():
            engine.bell.take()
            noisy.ring(50)
            looks += 1
            assert looks < 100, "the engine listens for ever"
        noisy.publish()
        noisy.ring()
        assert engine.bell.count() == 0
        assert engine.run() == ["noisy"]  # found by looking

        now_ns = time.monotonic_ns()
        engine.bell.unmute(now_ns)
        engine.bell.unmute(now_ns + 2 * 10**9)
        assert engine.bell.count() == 1
    finally:
        engine.close()


@pytest.mark.fault("T62")
def test_waiting_clients_are_served_between_two_messages_of_the_supervisor(engine: Engine) -> None:
    robot = engine.client("robot")
    for _ in range(3):
        robot.publish()
    robot.ring()
    engine.tell("a channel", "another channel", "a third channel", "a fourth channel")

    def asked(who: str) -> None:
        engine.loop.stopped = engine.model.order.count("robot") == 3

    engine.model.asked = asked
    order = engine.run()

    # It was found after the first one, and is not kept waiting for all of them.
    assert order == ["a channel", "another channel", "robot", "a third channel", "robot", "a fourth channel", "robot"]


@pytest.mark.fault("T61")
def test_a_client_that_brings_a_new_structure_each_time_has_a_small_part_of_the_time(engine: Engine) -> None:
    robot, hostile = engine.client("robot"), engine.client("hostile")
    structures = 0

    def asked(who: str) -> None:
        nonlocal structures
        engine.loop.stopped = engine.model.order.count("robot") == 300
        if who == "robot":
            robot.publish()
            robot.ring()
        else:
            structures += 1
            hostile.publish({"name": "hostile", **{f"{structures} {leaf}": leaf for leaf in range(150)}})
            hostile.ring()

    engine.model.asked = asked
    for each in (robot, hostile):
        each.publish()
        each.ring()
    order = engine.run()

    # Each takes twenty times as long to read as the robot's to answer; by turns there would be as many of them.
    assert 0 < order.count("hostile") < 100, f"{order.count('hostile')} beside 300"

    engine.loop.remove(0)
    engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
    assert engine.run() == ["hostile"], "alone it need not wait"


def test_a_suspected_client_runs_alone_and_after_the_others() -> None:
    engine = Engine("sealed", max_batch=4)
    try:
        suspect, first, second = (engine.client(name) for name in ("suspect", "first", "second"))
        engine.loop.states[0].suspect(Suspicion(left_s=3600, blamed=True))
        for each in (suspect, first, second, suspect):
            each.publish()
            each.ring()

        engine.model.asked = lambda who: setattr(engine.loop, "stopped", engine.model.order.count("suspect") == 2)

        assert engine.run() == ["first", "second", "suspect", "suspect"]
        assert engine.model.batches_of == [2, 1, 1]
    finally:
        engine.close()


def test_a_request_that_an_engine_died_of_is_not_tried_again_while_others_ask(engine: Engine) -> None:
    killer, robot = engine.client("killer"), engine.client("robot")
    killer.publish()
    state = engine.loop.states[0]
    assert state.channel.replies.take(state.channel.requests.published()) == 1  # as by an engine that died of it
    state.suspect(Suspicion(left_s=3600, blamed=True))
    killer.publish()
    killer.ring()

    def asked(who: str) -> None:
        engine.loop.stopped = who == "killer"
        robot.publish()
        robot.ring()

    engine.model.asked = asked
    robot.publish()
    robot.ring()
    order = engine.run()

    assert order.count("killer") == 1, "the request after it is run"
    assert engine.stats.words[Counter.LOST] == 1


def test_a_request_that_killed_an_engine_is_retried_once_the_others_are_idle(engine: Engine) -> None:
    killer, robot = engine.client("killer"), engine.client("robot")
    killer.publish()
    state = engine.loop.states[0]
    assert state.channel.replies.take(state.channel.requests.published()) == 1
    state.suspect(Suspicion(left_s=3600, blamed=True))
    killer.ring()
    robot.publish()
    robot.ring()

    engine.model.asked = lambda who: setattr(engine.loop, "stopped", who == "killer")

    assert engine.run() == ["robot", "killer"]
    assert engine.stats.words[Counter.LOST] == 0


@pytest.mark.fault("T21")
def test_one_turn_takes_a_few_tokens_of_two_billion() -> None:
    engine = Engine("named")
    try:
        noisy, quiet = engine.client("noisy"), engine.client("quiet")
        noisy.ring(100_000)
        quiet.publish()

        engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
        assert engine.run() == ["quiet"]
        assert engine.bell.count() > 90_000
    finally:
        engine.close()


def test_a_client_that_owes_a_rest_does_not_take_the_fast_path(engine: Engine) -> None:
    robot, hostile = engine.client("robot"), engine.client("hostile")
    serving: Any = engine.loop._serving
    serve_fast = serving.serve_fast
    asked: list[int] = []

    def note(state: ChannelState) -> bool:
        asked.append(state.number)
        return bool(serve_fast(state))

    serving.serve_fast = note
    for state in engine.loop.states.values():
        engine.loop._activate(state)
    hostile_state = engine.loop.states[1]
    hostile_state.overhead.until_ns = 1 << 62
    for client, state in ((robot, engine.loop.states[0]), (hostile, hostile_state)):
        client.publish()
        engine.loop._serve_found(state, time.monotonic_ns())

    assert (asked, engine.model.order) == ([0], ["robot"]), "the other one rests beside an active client"

    hostile_state.overhead.until_ns = 0
    engine.loop._end_rests(1 << 62)
    engine.loop._serve_next()
    hostile.publish()
    engine.loop._serve_found(hostile_state, time.monotonic_ns())
    assert (asked, engine.model.order) == ([0, 1], ["robot", "hostile", "hostile"])


def test_a_client_that_owes_a_rest_takes_the_fast_path_while_it_is_alone(engine: Engine) -> None:
    robot = engine.client("robot")
    (state,) = engine.loop.states.values()
    for fast in (False, True):  # the first one is of a new structure
        state.overhead.until_ns = 1 << 62
        robot.publish()
        engine.loop._serve_found(state, time.monotonic_ns())
        assert (state.fast_path is not None and state.fast_path.sequence > 0) == fast

    assert engine.model.order == ["robot", "robot"]


def run_expecting(engine: Engine, robot: Client, within_ns: int, woke: list[int], counter: Counter) -> list[str]:
    """Serve a client that has announced a request, once the engine was awake for it, which `woke` and `counter` show.

    More than once if this thread did not run when the request was due: the loop then waits for a ring.
    """
    words = robot.channel.requests.words
    [state] = engine.loop.states.values()
    rung: list[bool] = []

    def stop() -> None:
        rung.append(True)
        engine.loop.stopped = True
        robot.ring()

    for _ in range(20):
        rung.clear()
        woke.clear()
        engine.stats.words[counter] = 0
        timer = threading.Timer(1.0, stop)
        timer.start()  # takes longer than some of these times
        words[(COUNTER_OFFSET + COUNTER_LINE.offset("expected_ns")) // WORD] = time.monotonic_ns() + within_ns
        served = [*engine.run()]
        timer.cancel()
        timer.join()
        if woke and not rung and engine.stats.words[counter]:
            return served
        state.expectation.misses = state.expectation.doubted_until_ns = 0
    raise AssertionError("twenty times the engine was not awake when the announced request was due")


def test_a_request_that_is_expected_is_found_without_a_ring(engine: Engine) -> None:
    engine.loop._ahead = WakeAhead(engine.stats.words)
    robot = engine.client("robot")
    engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
    robot.publish()
    robot.ring()
    assert engine.run() == ["robot"]

    warmed: list[int] = []

    def warm(state: ChannelState) -> bool:
        warmed.append(state.number)
        robot.publish()  # it comes while the engine is awake for it
        return False

    engine.loop._serving.warm = warm  # type: ignore[method-assign]

    assert run_expecting(engine, robot, 5_000_000, warmed, Counter.AHEAD_MET) == ["robot"]
    assert warmed == [0]
    assert engine.stats.words[Counter.AHEAD_MET] == 1


def test_a_request_that_is_late_is_no_reason_to_spin(engine: Engine) -> None:
    engine.loop._ahead = WakeAhead(engine.stats.words)
    learnt: list[int] = []
    engine.loop._budget = SimpleNamespace(ns=0, waited=learnt.append)  # type: ignore[assignment]
    robot = engine.client("robot")
    engine.model.asked = lambda who: setattr(engine.loop, "stopped", True)
    robot.publish()
    robot.ring()
    assert engine.run() == ["robot"]
    learnt.clear()

    late: list[int] = []

    def come_late(*arguments: Any) -> None:
        came_not(*arguments)
        late.append(1)
        robot.publish()
        robot.ring()

    ahead: Any = engine.loop._ahead
    came_not, ahead.came_not = ahead.came_not, come_late

    # Less than the engine is awake ahead: it does not sleep.
    assert run_expecting(engine, robot, 100_000, late, Counter.AHEAD_MISSED) == ["robot"]
    assert engine.stats.words[Counter.AHEAD_MISSED] == 1
    assert min(learnt) >= LONGEST_NS, "neither a time that has passed, nor the little that it was late"


def test_the_end_of_a_fine_wait_is_no_ring() -> None:
    control, supervisor = socket.socketpair()
    bell = PipeDoorbells(control.fileno())
    before = len(os.listdir("/proc/self/fd"))

    assert not bell.wait(300_001)
    assert not bell.wait(0)
    assert bell.count() == 0
    assert bell.take() == []

    bell.close()
    bell.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    control.close()
    supervisor.close()
