"""The explorer itself: the classic litmus tests of weak memory, and its reductions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.memory_model.cut_through import cut_through
from tests.support.memory_model.doorbell import named, sealed
from tests.support.memory_model.exchange import counted_reply, one_slot
from tests.support.memory_model.given import Backend, Given
from tests.support.memory_model.machine import RACE, Machine, Order, explore
from tests.support.memory_model.record_ring import record_ring
from tests.support.memory_model.restart import restart
from tests.support.memory_model.source import orders

RELAXED, ACQUIRE, RELEASE, SEQ_CST = Order.RELAXED, Order.ACQUIRE, Order.RELEASE, Order.SEQ_CST


def outcomes(build: Callable[[Machine], None], *registers: str) -> set[tuple[int, ...]]:
    """The values that the registers can have at the end; every state is explored with and without the reductions."""
    found = []
    for reduced in (True, False):
        machine = Machine()
        build(machine)
        result = explore(machine, reduced=reduced)
        assert result.violations == {}
        found.append({tuple(dict(outcome)[register] for register in registers) for outcome in result.outcomes})
    assert found[0] == found[1]
    return found[0]


ALL = {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("store", "load", "stale"),
    [(RELAXED, RELAXED, True), (RELEASE, RELAXED, True), (RELAXED, ACQUIRE, True), (RELEASE, ACQUIRE, False)],
)
def test_message_passing_needs_a_release_and_an_acquire(store: Order, load: Order, stale: bool) -> None:
    def build(machine: Machine) -> None:
        writer, reader = machine.thread("w"), machine.thread("r")
        writer.store("data", 1)
        writer.store("flag", 1, store)
        reader.load("flag", "flag", load)
        reader.load("data", "data")

    assert outcomes(build, "r.flag", "r.data") == (ALL if stale else ALL - {(1, 0)})


@pytest.mark.parametrize(
    ("writes", "reads", "stale"),
    [(RELEASE, ACQUIRE, False), (RELEASE, RELAXED, True), (RELAXED, ACQUIRE, True), (SEQ_CST, SEQ_CST, False)],
)
def test_message_passing_works_with_fences_at_both_ends(writes: Order, reads: Order, stale: bool) -> None:
    def build(machine: Machine) -> None:
        writer, reader = machine.thread("w"), machine.thread("r")
        writer.store("data", 1)
        writer.fence(writes)
        writer.store("flag", 1)
        reader.load("flag", "flag")
        reader.fence(reads)
        reader.load("data", "data")

    assert outcomes(build, "r.flag", "r.data") == (ALL if stale else ALL - {(1, 0)})


@pytest.mark.parametrize(("fence", "both_old"), [(RELAXED, True), (ACQUIRE, True), (RELEASE, True), (SEQ_CST, False)])
def test_only_a_full_fence_keeps_a_load_behind_a_store_of_another_word(fence: Order, both_old: bool) -> None:
    def build(machine: Machine) -> None:
        for name, own, other in (("a", "x", "y"), ("b", "y", "x")):
            thread = machine.thread(name)
            thread.store(own, 1)
            thread.fence(fence)
            thread.load("seen", other)

    assert ((0, 0) in outcomes(build, "a.seen", "b.seen")) == both_old


@pytest.mark.parametrize(("order", "both_new"), [(RELAXED, True), (RELEASE, False)])
def test_a_load_moves_behind_a_later_store_unless_that_releases(order: Order, both_new: bool) -> None:
    def build(machine: Machine) -> None:
        for name, source, target in (("a", "x", "y"), ("b", "y", "x")):
            thread = machine.thread(name)
            thread.load("seen", source)
            thread.store(target, 1, order)

    assert ((1, 1) in outcomes(build, "a.seen", "b.seen")) == both_new


def test_a_value_does_not_come_out_of_thin_air() -> None:
    def build(machine: Machine) -> None:
        for name, source, target in (("a", "x", "y"), ("b", "y", "x")):
            thread = machine.thread(name)
            thread.load("seen", source)
            thread.store(target, "seen")

    assert outcomes(build, "a.seen", "b.seen") == {(0, 0)}


def test_two_loads_of_one_word_do_not_go_back() -> None:
    def build(machine: Machine) -> None:
        writer, reader = machine.thread("w"), machine.thread("r")
        writer.store("word", 1)
        writer.store("word", 2)
        reader.load("first", "word")
        reader.load("second", "word")

    assert outcomes(build, "r.first", "r.second") == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)}


@pytest.mark.parametrize(("order", "fence", "differ"), [(ACQUIRE, RELAXED, True), (RELAXED, SEQ_CST, False)])
def test_two_readers_agree_on_two_writers_only_with_full_fences(order: Order, fence: Order, differ: bool) -> None:
    def build(machine: Machine) -> None:
        for name in "xy":
            machine.thread(name).store(name, 1, RELEASE)
        for name, first, second in (("p", "x", "y"), ("q", "y", "x")):
            thread = machine.thread(name)
            thread.load("first", first, order)
            thread.fence(fence)
            thread.load("second", second, order)

    assert ((1, 0, 1, 0) in outcomes(build, "p.first", "p.second", "q.first", "q.second")) == differ


def test_a_release_reaches_a_third_thread() -> None:
    def build(machine: Machine) -> None:
        first, second, third = (machine.thread(name) for name in ("first", "second", "third"))
        first.store("data", 1)
        first.store("one", 1, RELEASE)
        second.wait_until("one", "one", lambda value: value == 1, ACQUIRE)
        second.store("two", 1, RELEASE)
        third.wait_until("two", "two", lambda value: value == 1, ACQUIRE)
        third.load("data", "data")

    assert outcomes(build, "third.data") == {(1,)}


def test_a_token_brings_everything_that_its_post_came_after() -> None:
    def build(machine: Machine) -> None:
        poster, taker = machine.thread("p"), machine.thread("t")
        poster.store("data", 1)
        poster.post("bell")
        taker.take("bell")
        taker.load("data", "data")

    assert outcomes(build, "t.data") == {(1,)}


def test_a_plain_copy_beside_a_store_is_a_data_race() -> None:
    machine = Machine()
    machine.plain_word("data")
    writer, reader = machine.thread("w"), machine.thread("r")
    writer.store("data", 1)
    reader.load("data", "data")

    assert set(explore(machine).violations) == {RACE}


def test_a_thread_that_sleeps_for_ever_is_reported_with_its_trace() -> None:
    machine = Machine()
    sleeper, other = machine.thread("sleeper"), machine.thread("other")
    sleeper.at("some_function")
    sleeper.take("bell")
    sleeper.post("elsewhere")
    other.take("elsewhere")
    other.post("bell")

    violations = explore(machine).violations

    assert list(violations) == ["a thread waits for ever"]


def test_a_word_with_two_writers_is_refused() -> None:
    machine = Machine()
    machine.thread("a").store("word", 1)

    with pytest.raises(ValueError, match="every shared word has one writer"):
        machine.thread("b").store("word", 2)


NATIVE, PURE = Backend.NATIVE, Backend.PURE
SMALL: dict[str, tuple[Callable[[Given], Machine], tuple[str, ...]]] = {
    "one slot": (lambda given: one_slot(given, NATIVE, NATIVE, 2), ("ring_publish store counter",)),
    "counted reply": (lambda given: counted_reply(given, PURE, PURE), ("Slots.complete fence#2",)),
    "cut-through": (cut_through, ("announce_write fence", "cut_through_advance load written_bytes")),
    "restart": (lambda given: restart(given, NATIVE, NATIVE), ("restart: answered requests are left alone",)),
    "record ring": (lambda given: record_ring(given, PURE, PURE, 3), ("RecordRingReader.try_next fence#2",)),
    "named": (lambda given: named(given, NATIVE, NATIVE, 1, 1), ("engine: rings after the counter",)),
    "sealed": (lambda given: sealed(given, PURE, NATIVE, 1, 1), ("client: rings after the counter",)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_the_reductions_change_no_outcome_and_no_violation(name: str) -> None:
    build, changes = SMALL[name]
    for change in ("", *changes):
        reduced, whole = (explore(build(Given(orders(), change)), reduced=is_reduced) for is_reduced in (True, False))

        assert set(reduced.violations) == set(whole.violations), change
        assert bool(whole.violations) == bool(change)
        assert whole.states > reduced.states
        if not change:
            assert reduced.outcomes == whole.outcomes
