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

    def __init__(self, tensors_on: torch.device | None, *, native: bool = True) -> None:
        self._slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(4096, np.uint8))
        self._staging = Staging(tensors_on)
        self._encoder = Encoder()
        self._native = native
        self._schema: Schema | None = None

    def give(self, value: float) -> Any:
        """The array or tensor of the next observation."""
        encoded = self._encoder.encode({"n": value, "x": np.full(30, value, np.float32)}, self._slot)
        if self._schema is None:
            self._schema = Schema.from_metadata(self._slot.metadata[: encoded.metadata_bytes].tobytes())
            if not self._native:
                self._schema.decoder = None
        return self._staging.observation(self._schema, self._slot, in_place=False, pickled=False)["x"]

    def give_back(self) -> int:
        """The request is answered; where the memory is that it was in, 0 if that is another's now."""
        assert self._schema is not None
        before = self._staging.arena.payload.ctypes.data
        self._staging.give_back(self._schema)
        return before if self._staging.arena.room else 0


def assert_kept(requests: Requests, keep: Callable[[Any], Any]) -> None:
    kept = []
    for turn in range(5):
        kept.append(keep(requests.give(turn)))
        assert not requests.give_back()
    for turn, each in enumerate(kept):
        np.testing.assert_array_equal(state_in(each).view(np.float32), np.full(30, turn, np.float32))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("native", [True, False])
def test_kept_memory_is_not_written_again(native: bool) -> None:
    for way, keep in WAYS_OF_KEEPING.items():
        with torch.inference_mode(), _named(way):
            assert_kept(Requests(torch.device("cpu"), native=native), keep)
    for way, keep_array in WAYS_OF_KEEPING_ARRAYS.items():
        with _named(way):
            assert_kept(Requests(None, native=native), keep_array)


@pytest.mark.usefixtures("counting")
def test_memory_that_is_not_kept_is_reused() -> None:
    ways: dict[str, Callable[[Any], Any]] = {**WAYS_OF_NOT_KEEPING, "copy": np.array, "list": lambda x: x.tolist()}
    for way, leave in ways.items():
        tensors = way not in ("copy", "list")
        requests = Requests(torch.device("cpu") if tensors else None)
        with _named(way):
            requests.give(0)
            where = requests.give_back()
            for turn in range(1, 4):
                left = leave(requests.give(turn))
                assert requests.give_back() == where
            del left


def test_an_interpreter_that_does_not_tell_what_is_held_gets_new_memory_for_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "getrefcount", lambda thing: 7)
    staging.calibrate()
    try:
        assert_kept(Requests(None), lambda array: array)
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
