"""Staging memory is not used again while a policy keeps some of it, in whatever way and whatever the interpreter counts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.codec import Encoder, SlotMemory
from shmserve.daemon.engine.channel import staging
from shmserve.daemon.engine.channel.staging import Staging
from shmserve.schema import Schema
from tests.support.keeping import WAYS_OF_KEEPING, WAYS_OF_KEEPING_ARRAYS, WAYS_OF_NOT_KEEPING, state_in

#: How a Python may count what `sys.getrefcount` is called with: 3.14 one lower than those before.
COUNTS = [-1, 0, 1, 2]


@pytest.fixture(params=COUNTS)
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interpreter that counts so much more."""
    count = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda thing: count(thing) - 2 + request.param)
    staging.calibrate()
    yield
    monkeypatch.undo()
    staging.calibrate()


class Requests:
    """Requests of one structure, one after the other, as the engine stages them."""

    def __init__(self, tensors_on: torch.device | None, *, leaf_by_leaf: bool = False) -> None:
        """Stage for `Staging`'s device; `leaf_by_leaf`: a leaf beside the array makes the decoder incomplete."""
        self._slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(65536, np.uint8))
        self._staging = Staging(tensors_on)
        self._encoder = Encoder()
        self._rest: dict[str, Any] = {"half": torch.ones(2, dtype=torch.bfloat16)} if leaf_by_leaf else {}
        self._schema: Schema | None = None

    def give(self, value: float, length: int = 30) -> Any:
        """The array or tensor of the next observation."""
        tree = {"n": value, "x": np.full(length, value, np.float32), **self._rest}
        encoded = self._encoder.encode(tree, self._slot)
        if self._schema is None:
            self._schema = Schema(self._slot.metadata[: encoded.metadata_bytes].tobytes())
            assert self._schema.decoder.is_complete == (not self._rest)
        return self._staging.observation(
            self._schema, self._slot, encoded.payload_bytes, in_place=False, pickled=False
        )["x"]

    def give_back(self) -> int:
        """The request is answered; where the memory is that it was in, 0 if that is another's now."""
        before = self._staging.arena.payload.ctypes.data
        self._staging.give_back()
        return before if self._staging.arena.room else 0


def assert_kept(requests: Requests, keep: Callable[[Any], Any], lengths: tuple[int, ...]) -> None:
    kept = []
    for turn, length in enumerate(lengths):
        kept.append(keep(requests.give(turn, length)))
        assert not requests.give_back()
    for turn, (length, each) in enumerate(zip(lengths, kept, strict=True)):
        np.testing.assert_array_equal(state_in(each).view(np.float32), np.full(length, turn, np.float32))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("lengths", [(30,) * 5, (30, 4, 200, 30, 31)], ids=["one length", "lengths"])
@pytest.mark.parametrize("leaf_by_leaf", [False, True])
def test_kept_memory_is_not_written_again(leaf_by_leaf: bool, lengths: tuple[int, ...]) -> None:
    for way, keep in WAYS_OF_KEEPING.items():
        with torch.inference_mode(), _named(way):
            assert_kept(Requests(torch.device("cpu"), leaf_by_leaf=leaf_by_leaf), keep, lengths)
    for way, keep_array in WAYS_OF_KEEPING_ARRAYS.items():
        with _named(way):
            assert_kept(Requests(None, leaf_by_leaf=leaf_by_leaf), keep_array, lengths)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("lengths", [(30,) * 4, (30, 4, 30, 29)], ids=["one length", "lengths"])
def test_memory_that_is_not_kept_is_reused(lengths: tuple[int, ...]) -> None:
    ways: dict[str, Callable[[Any], Any]] = {**WAYS_OF_NOT_KEEPING, "copy": np.array, "list": lambda x: x.tolist()}
    for way, leave in ways.items():
        tensors = way not in ("copy", "list")
        requests = Requests(torch.device("cpu") if tensors else None)
        with _named(way):
            requests.give(0)
            where = requests.give_back()
            for turn, length in enumerate(lengths):
                left = leave(requests.give(turn, length))
                assert requests.give_back() == where
            del left


def test_growing_lengths_allocate_rarely() -> None:
    requests = Requests(None)
    arenas = set()
    for length in range(100, 10_100, 100):
        assert requests.give(1, length).size == length
        arenas.add(requests.give_back())

    assert 0 not in arenas
    assert len(arenas) <= 13, "100 lengths, each half as large again as the memory before it"


def test_an_arena_does_not_outgrow_the_slot() -> None:
    slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(1000, np.uint8))
    staging_of_slot = Staging(None)
    encoder = Encoder()
    for size in (700, 720):
        encoded = encoder.encode(np.zeros(size, np.uint8), slot)
        schema = Schema(slot.metadata[: encoded.metadata_bytes].tobytes())
        staging_of_slot.observation(schema, slot, encoded.payload_bytes, in_place=False, pickled=False)
        staging_of_slot.give_back()

    assert staging_of_slot.arena.room == 1000


def test_an_interpreter_that_does_not_tell_what_is_held_gets_new_memory_for_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "getrefcount", lambda thing: 7)
    staging.calibrate()
    try:
        assert_kept(Requests(None), lambda array: array, (30,) * 5)
    finally:
        monkeypatch.undo()
        staging.calibrate()


@contextlib.contextmanager
def _named(way: str) -> Iterator[None]:
    """Says of which way a failed assertion was."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{way}: {error}") from error
