"""The codec without processes: every tree to the bit, its caches, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from shmserve.backend import NATIVE
from shmserve.codec import (
    GUARD_MEMORY,
    SCHEMA_MEMORY,
    Decoder,
    DoesNotFit,
    Encoded,
    Encoder,
    SlotMemory,
    unpickle_parts,
)
from shmserve.errors import RequestRejected, UnsupportedType
from shmserve.layout import MAX_METADATA_BYTES, aligned
from shmserve.metadata import MetadataError
from tests.support.trees import BFLOAT16, DTYPES, LAYOUTS, SHAPES, assert_same, filled, laid_out, trees

pytestmark = pytest.mark.pure_too


def slot(payload_bytes: int = 1 << 19) -> SlotMemory:
    """Memory that is full of what an earlier request left."""
    return SlotMemory(np.full(MAX_METADATA_BYTES, 0xAA, np.uint8), np.full(payload_bytes, 0xAA, np.uint8))


def there_and_back(tree: Any) -> Any:
    memory = slot()
    return Decoder(allow_pickle=True).decode(memory, *Encoder(allow_pickle=True).encode(tree, memory))


class Channel:
    """Both ends of a channel of several slots, as two processes have them: only memory is shared."""

    def __init__(self, *, slots: int = 3, allow_pickle: bool = False) -> None:
        self._memory = [slot() for _ in range(slots)]
        self._sending = [SlotMemory(memory.metadata, memory.payload) for memory in self._memory]
        self._receiving = [SlotMemory(memory.metadata, memory.payload) for memory in self._memory]
        self.encoder = Encoder(allow_pickle=allow_pickle)
        self.decoder = Decoder(allow_pickle=allow_pickle)
        self._sequence = 0
        self.encoded = Encoded(0, 0, 0)

    def carry(self, tree: Any) -> Any:
        self._sequence += 1
        number = self._sequence % len(self._memory)
        self.encoded = self.encoder.encode(tree, self._sending[number])
        return self.decoder.decode(self._receiving[number], *self.encoded)


_MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@_MANY
@given(tree=trees())
def test_any_tree_comes_back_to_the_bit(tree: Any) -> None:
    assert_same(there_and_back(tree), tree)


def test_trees_of_any_structure_follow_each_other_through_one_channel() -> None:
    channel = Channel(allow_pickle=True)

    @_MANY
    @given(tree=trees())
    def carry(tree: Any) -> None:
        assert_same(channel.carry(tree), tree)

    carry()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_comes_back_in_every_layout_and_shape(dtype: np.dtype[Any], layout: str) -> None:
    for number, shape in enumerate(SHAPES):
        array = laid_out(filled(dtype, shape, number), layout)

        assert_same(there_and_back([array, {"a": array}]), [array, {"a": array}])


def test_alternating_structures_are_told_apart() -> None:
    channel = Channel()
    structures = [{"x": np.zeros(n), "n": n} for n in range(GUARD_MEMORY + 3)]
    structures += [{"n": 1, "x": np.zeros(2)}, {"x": np.zeros(2, np.float32), "n": 1}, {"x": np.zeros((2, 1)), "n": 1}]
    for round_ in range(3):
        for tree in [*structures, *reversed(structures)]:
            tree = {**tree, "n": round_}

            assert_same(channel.carry(tree), tree)


def test_a_changing_number_does_not_change_the_schema() -> None:
    channel = Channel()
    first = None
    for step in range(20):
        tree = {
            "step": step,
            "time": step / 7,
            "on": step % 2 == 0,
            "state": np.full(6, step, np.float32),
            "task": "pick",
        }

        assert_same(channel.carry(tree), tree)
        first = first or channel.encoded
        assert channel.encoded == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": "x"}, {"a": "y"}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], (1,)),
        ([], {}),
        ({"a": np.zeros(2)}, {"a": np.zeros(3)}),
        ({"a": np.zeros(2)}, {"a": np.zeros(2, np.float32)}),
        ({"a": np.zeros(2)}, {"a": [0.0, 0.0]}),
        ({"a": np.zeros(())}, {"a": np.float64(0)}),
        ({"a": 1}, {"a": 1 << 70}),
        ({"a": b"x"}, {"a": "x"}),
        ({"a": None}, {"a": False}),
        (["x" * 300], ["x" * 301]),
        ([b"x" * 40], [b"x" * 41]),
        ([[1.0] * 8], [[1.0] * 9]),
        ([[1.0] * 8], [[1] * 8]),
        ([[1] * 8], [[1] * 7 + [1 << 70]]),
        ([np.zeros(2, ">f8")], [np.zeros(2, ">f4")]),
    ],
    ids=str,
)
def test_another_structure_is_another_schema(one: Any, other: Any) -> None:
    channel = Channel()

    assert_same(channel.carry(one), one)
    first = channel.encoded
    assert_same(channel.carry(other), other)
    assert channel.encoded.schema != first.schema
    assert_same(channel.carry(one), one)


def test_the_same_structure_is_one_schema_however_long_ago_it_was_seen() -> None:
    channel = Channel()
    channel.carry({"a": 1})
    first = channel.encoded.schema
    for number in range(SCHEMA_MEMORY - 1):
        channel.carry({"a": np.zeros(number)})

    channel.carry({"a": 2})

    assert channel.encoded.schema == first


def test_no_side_remembers_more_than_it_needs() -> None:
    channel = Channel()
    for number in range(3 * SCHEMA_MEMORY):
        tree = {"name": f"structure {number}"}
        assert channel.carry(tree) == tree

    assert len(channel.encoder._ids) == SCHEMA_MEMORY
    assert len(channel.encoder._cached) == GUARD_MEMORY
    assert len(channel.decoder._schemas.known) == SCHEMA_MEMORY
    # The native core: nothing is remembered of a slot.
    assert max(len(memory.leaf_views) for memory in channel._receiving) == (0 if NATIVE else GUARD_MEMORY)


def test_a_schema_that_was_forgotten_is_sent_again() -> None:
    channel = Channel(slots=1)
    for _ in range(2):
        for number in range(2 * SCHEMA_MEMORY):
            tree = {"name": f"structure {number}", "n": number}
            assert channel.carry(tree) == tree


def test_metadata_is_written_only_where_the_slot_holds_another() -> None:
    memory = slot()
    encoder = Encoder()
    encoder.encode({"a": 1}, memory)
    memory.metadata[:] = 0

    encoder.encode({"a": 2}, memory)
    assert not memory.metadata.any()

    encoder.encode({"b": 2}, memory)
    assert memory.metadata.any()


def test_numbers_and_arrays_lie_where_the_format_says() -> None:
    memory = slot()

    encoded = Encoder().encode(
        {"f": 1.5, "a": np.array([1, 2], np.int16), "n": -1, "deep": [True, np.array([7], np.uint8)]}, memory
    )

    assert memory.payload[:24].tobytes() == (
        b"\x00\x00\x00\x00\x00\x00\xf8\x3f" + b"\xff" * 8 + b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )
    assert memory.payload[64:68].tobytes() == b"\x01\x00\x02\x00"
    assert memory.payload[128] == 7
    assert encoded.payload_bytes == 129


def test_bfloat16_without_ml_dtypes_is_float32_of_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = slot()
    encoded = Encoder().encode(
        {"a": np.array([1.5, -2.0], BFLOAT16), "t": torch.tensor([0.25], dtype=torch.bfloat16)}, memory
    )
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)

    found = Decoder().decode(memory, *encoded)

    assert_same(found, {"a": np.array([1.5, -2.0], np.float32), "t": np.array([0.25], np.float32)})


def test_a_tree_that_does_not_fit_reports_the_needed_size_and_changes_nothing() -> None:
    encoder = Encoder()
    small = SlotMemory(np.zeros(64, np.uint8), np.zeros(128, np.uint8))
    assert Decoder().decode(small, *encoder.encode([1], small)) == [1]

    with pytest.raises(DoesNotFit) as payload:
        encoder.encode([np.zeros(129, np.uint8)], small)
    with pytest.raises(DoesNotFit) as metadata:
        encoder.encode(["x" * 100], small)

    assert payload.value.payload_bytes == 129
    assert metadata.value.metadata_bytes > 100
    assert Decoder().decode(small, *encoder.encode([2], small)) == [2]


def test_a_decoder_believes_no_length() -> None:
    memory = slot()
    encoded = Encoder().encode({"a": np.zeros(10)}, memory)

    for wrong in (
        encoded._replace(metadata_bytes=0),
        encoded._replace(metadata_bytes=MAX_METADATA_BYTES + 1),
        encoded._replace(metadata_bytes=encoded.metadata_bytes - 1),
        encoded._replace(metadata_bytes=1 << 63),
        encoded._replace(payload_bytes=encoded.payload_bytes + 1),
        encoded._replace(payload_bytes=encoded.payload_bytes - 1),
        encoded._replace(payload_bytes=1 << 63),
    ):
        with pytest.raises(MetadataError):
            Decoder().decode(memory, *wrong)
    assert_same(Decoder().decode(memory, *encoded), {"a": np.zeros(10)})


def test_a_schema_that_needs_more_than_the_slot_has_is_refused() -> None:
    memory = slot()
    encoded = Encoder().encode({"a": np.zeros(1000)}, memory)
    smaller = SlotMemory(memory.metadata, memory.payload[:100])

    with pytest.raises(MetadataError, match="8000 bytes of payload in a slot of 100"):
        Decoder().decode(smaller, *encoded)


def test_a_string_with_surrogates_is_refused_by_either_side() -> None:
    memory = slot()
    encoded = Encoder().encode("x" * 300, memory)
    memory.payload[7] = 0xFF

    with pytest.raises(MetadataError, match="a string of 300 bytes is not UTF-8 at byte 7"):
        Decoder().decode(memory, *encoded)


def test_an_object_is_refused_by_both_ends_unless_it_is_allowed() -> None:
    memory = slot()
    with pytest.raises(UnsupportedType, match=r"observation\['s'\]: an object of type builtins.set"):
        Encoder().encode({"s": {1}}, memory)

    encoded = Encoder(allow_pickle=True).encode({"s": {1}}, memory)

    assert encoded.pickled
    with pytest.raises(MetadataError, match="pickled object from a peer that is not trusted"):
        Decoder().decode(memory, *encoded)
    assert Decoder(allow_pickle=True).decode(memory, *encoded) == {"s": {1}}


def test_arrays_of_an_object_travel_beside_its_pickle() -> None:
    memory = slot()
    array = np.arange(1000)

    encoded = Encoder(allow_pickle=True).encode({1: array}, memory)

    data, buffers = Decoder().decode(memory, *encoded._replace(pickled=False))
    assert data.size < 400
    assert [buffer.size for buffer in buffers] == [array.nbytes]
    assert_same(unpickle_parts((data, buffers))[1], array)


def test_a_pickled_action_holds_arrays_for_tensors_wherever_they_are() -> None:
    memory = slot()
    encoder = Encoder(allow_pickle=True, tensors_as_arrays=True)
    gradient = torch.ones(2, requires_grad=True)

    encoded = encoder.encode({"set": {1}, "deep": [(torch.arange(3), {"g": gradient})]}, memory)

    found = Decoder(allow_pickle=True).decode(memory, *encoded)["deep"][0]
    assert_same(found, (np.arange(3), {"g": np.ones(2, np.float32)}))


def test_an_array_that_changes_while_it_is_read_is_described_anew() -> None:
    channel = Channel()
    array = np.zeros(100)
    channel.carry({"a": array, "f": 1.0})
    array.resize(50, refcheck=False)

    assert_same(channel.carry({"a": array, "f": 2.0}), {"a": np.zeros(50), "f": 2.0})


@pytest.mark.parametrize("depth", [33, 40, 2000])
def test_a_tree_that_is_too_deep_is_refused(depth: int) -> None:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]

    with pytest.raises(
        RequestRejected, match=r"^observation(\[0\]){33}: a list within more than 32 containers|^observation: "
    ):
        Encoder().encode(tree, slot())


def test_the_latest_structure_is_the_one_that_was_written_last() -> None:
    encoder, memory = Encoder(), slot()
    for tree in ({"x": 1}, {"x": 2.0}, {"x": 3}):
        encoder.encode(tree, memory)
    first = encoder.latest
    encoder.encode_apart(None, memory)

    assert first is not None and first.schema_id == 1
    assert encoder.latest is first
    assert_same(Decoder().decode(memory, *encoder.encode({"x": 4}, memory)), {"x": 4})


def test_a_tree_with_too_many_entries_is_refused_with_advice() -> None:
    with pytest.raises(RequestRejected, match="one array"):
        Encoder().encode([{"a": number} for number in range(3000)], slot())


def test_long_lists_of_numbers_are_carried_as_one_array() -> None:
    memory = slot()

    encoded = Encoder().encode({"a": [0.5] * 10_000, "b": list(range(1000)), "c": [True, False] * 500}, memory)

    assert encoded.metadata_bytes < 200
    assert encoded.payload_bytes == aligned(aligned(80_000) + 8000) + 1000


def test_memory_of_a_slot_is_not_kept_by_what_was_decoded() -> None:
    memory = slot()
    found = Decoder().decode(
        memory, *Encoder().encode({"a": np.arange(10), "s": np.float32(1), "b": b"x" * 50}, memory)
    )
    memory.payload[:] = 0
    gc.collect()

    assert_same(found, {"a": np.arange(10), "s": np.float32(1), "b": b"x" * 50})
