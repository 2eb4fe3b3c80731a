"""Order of shared memory in the pure backend: where its fences stand, and the processors that it is checked for."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve import backend, fence, pure, ring
from shmserve.layout import REPLY, REQUEST, Geometry
from shmserve.pure import counter_poller, slots
from shmserve.ring import RequestWriter
from shmserve.segment import Identity, Segment, create_sealed_segment

#: Counter, first head, words from head to head, slots.
PLACES = (8, 16, 56, 2)
COUNTER, HEAD = PLACES[:2]
SEQUENCE = 64


def test_a_python_with_the_interpreter_lock_is_accepted() -> None:
    backend.check_interpreter(False)


def test_a_python_without_the_interpreter_lock_is_refused_by_name() -> None:
    with pytest.raises(ImportError, match="the global interpreter lock"):
        backend.check_interpreter(True)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_checked_processors_are_accepted(machine: str) -> None:
    fence.check_processor(machine)


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "armv7l", "i686", "s390x", ""])
def test_other_processors_are_refused_by_name_with_the_remedy(machine: str) -> None:
    with pytest.raises(fence.UnsupportedProcessor) as refused:
        fence.check_processor(machine)

    assert isinstance(refused.value, ImportError)
    for part in (f"this processor is {machine}.", "x86_64 and aarch64", "gcc", "SHMSERVE_PURE"):
        assert part in str(refused.value)


def test_the_choice_of_the_pure_backend_refuses_such_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("SHMSERVE_PURE", "1")

    with pytest.raises(fence.UnsupportedProcessor, match="riscv64"):
        backend._chosen()


def test_only_x86_goes_without_a_fence() -> None:
    assert [fence.is_in_order(machine) for machine in ("x86_64", "aarch64", "riscv64")] == [True, False, False]


def test_a_semaphore_s_fence_leaves_the_semaphore_as_it_was() -> None:
    fence_of_semaphore: Any = fence.semaphore_fence()
    (semaphore,) = fence_of_semaphore.__defaults__
    before = bytes(semaphore)

    for _ in range(100):
        fence_of_semaphore()

    assert bytes(semaphore) == before


def test_the_full_fence_is_one_on_every_processor() -> None:
    assert fence.full_fence is not fence.no_fence
    assert fence.fence is (fence.no_fence if fence.IN_ORDER else fence.full_fence)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads instructions of x86-64")
def test_the_full_fence_has_a_locked_instruction_on_x86_64() -> None:
    address = ctypes.cast(ctypes.CDLL(None).sem_post, ctypes.c_void_p).value
    assert address is not None
    begin = ctypes.string_at(address, 128)

    # lock xadd and lock cmpxchg, of a word of 4 or 8 bytes.
    assert re.search(rb"\xf0[\x40-\x4f]?\x0f[\xb1\xc1]", begin, re.DOTALL)


Setting = Callable[[Callable[[], object]], None]


@pytest.fixture
def fenced(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Sets what happens at each fence, as on a processor that needs them."""

    def set_fence(at_fence: Callable[[], object]) -> None:
        for module in (slots, counter_poller):
            monkeypatch.setattr(module, "IN_ORDER", False)
            monkeypatch.setattr(module, "fence", at_fence)

    return set_fence


@pytest.fixture
def words() -> Any:
    return np.zeros(128, np.uint64)


@pytest.fixture
def heads(words: Any) -> pure.Slots:
    return pure.Slots(words.view(np.uint8), *PLACES)


def test_a_request_s_head_is_written_before_the_fence_and_its_counter_after_it(
    fenced: Setting, words: Any, heads: pure.Slots
) -> None:
    found: list[tuple[int, int, int]] = []
    last = HEAD + len(REQUEST.names) - 1
    fenced(lambda: found.append((int(words[HEAD]), int(words[last]), int(words[COUNTER]))))

    heads.publish((SEQUENCE, *range(1, len(REQUEST.names))))

    assert found == [(SEQUENCE, len(REQUEST.names) - 1, 0)]
    assert words[COUNTER] == SEQUENCE


def test_a_reply_s_words_its_sequence_and_its_counter_are_written_with_a_fence_between_each(
    fenced: Setting, words: Any, heads: pure.Slots
) -> None:
    found: list[tuple[int, int, int]] = []
    copied = HEAD + REPLY.names.index("copied_ns")
    fenced(lambda: found.append((int(words[copied]), int(words[HEAD]), int(words[COUNTER]))))

    heads.complete(SEQUENCE, *range(1, 11))

    assert found == [(10, 0, 0), (10, SEQUENCE, 0)]
    assert words[COUNTER] == 1


def test_a_request_is_marked_before_the_full_fence(
    words: Any, heads: pure.Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    place = HEAD + REPLY.names.index("taken")
    monkeypatch.setattr(slots, "full_fence", lambda: found.append(words[place : place + 2].tolist()))

    assert heads.take(SEQUENCE) == 1
    assert heads.take(SEQUENCE) == 2

    assert found == [[SEQUENCE, 1], [SEQUENCE, 2]]


def test_a_request_is_withdrawn_before_the_full_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = create_sealed_segment(Geometry(slots=1, metadata_bytes=64, payload_bytes=64), Identity(1, 2, 3))
    writer = RequestWriter(Segment.from_descriptor(memory, writable=True))
    found: list[bool] = []
    monkeypatch.setattr(ring, "full_fence", lambda: found.append(writer.heads.cancelled(SEQUENCE)))

    writer.cancel(SEQUENCE)

    assert found == [True]
    writer.close()
    os.close(memory)


def test_a_request_s_head_is_read_after_the_fence(fenced: Setting, words: Any, heads: pure.Slots) -> None:
    fenced(lambda: words.__setitem__(HEAD, SEQUENCE))

    assert heads.request(tuple, SEQUENCE) is not None


def test_a_reply_s_words_are_read_after_the_fence_behind_its_sequence(
    fenced: Setting, words: Any, heads: pure.Slots
) -> None:
    status = HEAD + REPLY.names.index("status")
    fenced(lambda: words.__setitem__(status, 7))
    assert heads.reply(tuple, SEQUENCE) is None
    assert words[status] == 0

    words[HEAD] = SEQUENCE
    reply = heads.reply(tuple, SEQUENCE)

    assert reply is not None and reply[:2] == (SEQUENCE, 7)


def test_every_poll_that_finds_a_counter_moved_ends_in_a_fence(fenced: Setting, words: Any) -> None:
    fences: list[int] = []
    fenced(lambda: fences.append(1))
    pollers = [pure.CounterPoller(words.view(np.uint8), 0)]
    words[0] = 1

    for poll in (
        lambda: pure.poll_first(pollers),
        lambda: pure.poll_all(pollers),
        lambda: pure.spin(pollers, 0),
        lambda: pure.spin_unless_blocked(pollers, 0),
        pollers[0].load,
    ):
        fences.clear()
        poll()
        assert fences == [1]
