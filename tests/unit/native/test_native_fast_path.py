"""The native fast path under misuse: wrong arguments, code that runs in the middle of a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmserve.backend import NATIVE, core
from shmserve.codec import SlotMemory
from shmserve.ring import ReplyHead
from shmserve.structure_guard import infer_schema
from tests.unit.native.test_native_misuse import encoder_of_two

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")


def plain_steps() -> tuple[core.Slots, core.TreeEncoder, core.TreeDecoder, npt.NDArray[np.uint8], Any]:
    """Slots whose memory is both directions', what writes a tree and reads it, and its payload."""
    schema, guard = infer_schema({"state": np.arange(3.0)})
    assert schema.decoder is not None
    places = tuple((place.offset, place.size, place.stored_as) for place in schema.arrays)
    encoder = core.TreeEncoder(guard.spec(), guard.wrapped, places, schema.payload_bytes)
    memory = np.zeros(1024, np.uint64).view(np.uint8)
    slots = core.Slots(memory, 8, 16, 56, 2)
    return slots, encoder, schema.decoder, np.zeros(schema.payload_bytes, np.uint8), schema


def client_path_for(
    encoder: core.TreeEncoder, decoder: core.TreeDecoder, slots: core.Slots, payload: npt.NDArray[np.uint8]
) -> core.ClientFastPath:
    """Asks through two slots, in which the structure was sent before; the memory of requests and replies is the same."""
    memories = [SlotMemory(np.zeros(8, np.uint8), payload) for _ in range(2)]
    for memory in memories:
        memory.written_schema = 1
    client_path = core.ClientFastPath(
        slots, memories, 2, slots, memories, core.CounterPoller(np.zeros(64, np.uint8), 0)
    )
    client_path.specialize(encoder, 1, 1, decoder, 1)
    return client_path


class Waiting:
    sequence = 0


def test_plain_steps_refuse_what_is_something_else() -> None:
    slots, encoder, decoder, payload, schema = plain_steps()
    tree, strange = {"state": np.arange(3.0)}, object()
    kind: Any = core
    client_path: Any = client_path_for(encoder, decoder, slots, payload)
    small: Any = client_path_for(encoder, decoder, slots, np.zeros(8, np.uint8))
    memories, poller = [SlotMemory(np.zeros(8, np.uint8), payload)], core.CounterPoller(np.zeros(64, np.uint8), 0)
    no_memory: list[Any] = [strange, strange]
    without: Any = core.ClientFastPath(slots, no_memory, 2, slots, no_memory, poller)
    without.specialize(encoder, 1, 1, decoder, 1)
    server_path = core.ServerFastPath(slots, slots, None, None)
    views = [place.view(payload) for place in schema.arrays]
    for call in (
        lambda: kind.ServerFastPath(strange, slots, None, None),
        lambda: kind.ServerFastPath(slots, slots, strange, None),
        lambda: server_path.specialize(strange, decoder, [payload], payload, views),  # type: ignore[arg-type]
        lambda: server_path.specialize(1, encoder, [payload], payload, views),  # type: ignore[arg-type]
        lambda: server_path.specialize(1, decoder, payload, payload, views),  # type: ignore[arg-type]
        lambda: server_path.try_take(strange),  # type: ignore[arg-type]
        lambda: server_path.reply(decoder, tree, payload, 1, 1, 0, 1, 1),  # type: ignore[arg-type]
        lambda: server_path.reply(encoder, tree, payload, 1, 1, 0, 1, strange),  # type: ignore[arg-type]
        lambda: server_path.head(int),  # type: ignore[type-var]
        lambda: kind.ClientFastPath(slots, memories, 1, strange, memories, poller),
        lambda: kind.ClientFastPath(slots, memories, 1, slots, (), poller),
        lambda: kind.ClientFastPath(slots, memories, 1, slots, memories, slots),
        lambda: client_path.specialize(decoder, 1, 1, decoder, 1),
        lambda: client_path.specialize(encoder, 1, 1, encoder, 1),
        lambda: client_path.specialize(encoder, strange, 1, decoder, 1),
        lambda: client_path.try_send(tree, 0, [], Waiting()),
        lambda: client_path.try_send(tree, strange, {}, Waiting()),
        lambda: client_path.try_send(tree, 0, {}),
    ):
        with pytest.raises(TypeError):
            call()
    for rotating_slots in (0, -1):
        with pytest.raises(ValueError, match="at least one rotating slot"):
            kind.ClientFastPath(slots, memories, rotating_slots, slots, memories, poller)
    with pytest.raises(AttributeError):
        without.try_send(tree, 0, {}, Waiting())
    assert not payload.any() and not small.try_send(tree, 0, {}, Waiting())
    in_flight: dict[int, Any] = {}
    with pytest.raises(AttributeError):
        client_path.try_send(tree, 0, in_flight, strange)
    assert not in_flight and not client_path.sequence


def test_a_reply_is_one_to_what_was_sent() -> None:
    slots, encoder, decoder, payload, _ = plain_steps()
    client_path = client_path_for(encoder, decoder, slots, payload)

    assert (
        client_path.try_receive(ReplyHead) is None
    )  # the memory is all zeros, and so would the reply to sequence 0 be

    unlearnt = core.ClientFastPath(slots, [], 2, slots, [], core.CounterPoller(np.zeros(64, np.uint8), 0))
    assert unlearnt.try_receive(ReplyHead) is None
    assert not unlearnt.try_send({"state": np.arange(3.0)}, 0, {}, Waiting())


def test_a_request_made_while_another_is_converted_is_published_once() -> None:
    slots, _, decoder, _, _ = plain_steps()
    two, payload, in_flight = [np.ones(3), np.ones(3)], np.zeros(1048, np.uint8), dict[int, Any]()
    within: list[bool] = []

    def convert(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not within:
            within.append(False)
            within[0] = client_path.try_send(two, 0, in_flight, Waiting())
        return array

    client_path = client_path_for(encoder_of_two(convert), decoder, slots, payload)

    assert not client_path.try_send(two, 0, in_flight, Waiting())

    assert within == [True] and list(in_flight) == [65] and client_path.sequence == 65


def test_a_segment_that_is_closed_while_a_plain_request_is_written_is_not_written_to() -> None:
    slots = plain_steps()[0]

    def convert(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        slots.close()
        return array

    two, payload = [np.ones(3), np.ones(3)], np.zeros(1048, np.uint8)
    decoder, in_flight = plain_steps()[2], dict[int, Any]()
    with pytest.raises(TypeError, match="expected open slots"):
        client_path_for(encoder_of_two(convert), decoder, slots, payload).try_send(two, 0, in_flight, Waiting())
    assert not in_flight
    with pytest.raises(TypeError, match="expected open slots"):
        core.ServerFastPath(slots, slots, None, None).reply(encoder_of_two(None), two, payload, 1, 1, 0, 1, 1)


def test_a_specialized_structure_may_be_dropped_while_it_is_used() -> None:
    slots, encoder, decoder, payload, schema = plain_steps()
    arena = np.zeros(schema.payload_bytes, np.uint8)
    views = [place.view(arena) for place in schema.arrays]
    payloads = [payload, payload]

    def wrap(view: npt.NDArray[Any]) -> Any:
        server_path.reset()
        payloads.clear()
        views.clear()
        return view.copy()

    server_path = core.ServerFastPath(slots, core.Slots(np.zeros(8192, np.uint8), 8, 16, 56, 2), None, wrap)
    server_path.specialize(1, decoder, payloads, arena, views)
    assert client_path_for(encoder, decoder, slots, payload).try_send({"state": np.arange(3.0)}, 0, {}, Waiting())

    observation = server_path.try_take(0)

    assert (server_path.sequence, server_path.schema, observation["state"].tolist()) == (65, 0, [0.0, 1.0, 2.0])
    server_path.try_take(0)
    assert server_path.sequence == 0


def test_lists_that_became_shorter_since_they_were_learnt_are_an_error() -> None:
    slots, encoder, decoder, payload, schema = plain_steps()
    replies = core.Slots(np.zeros(8192, np.uint8), 8, 16, 56, 2)
    views = [[place.view(payload) for place in schema.arrays] for _ in range(2)]
    server_path = core.ServerFastPath(slots, replies, None, None)
    server_path.specialize(1, decoder, [payload, payload], None, views)
    assert client_path_for(encoder, decoder, slots, payload).try_send({"state": np.arange(3.0)}, 0, {}, Waiting())
    del views[1]

    with pytest.raises(ValueError, match="views"):
        server_path.try_take(0)

    assert server_path.sequence == 65
