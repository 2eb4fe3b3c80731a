"""The codec without processes: every tree to the bit, its caches, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from shmserve.codec import (
    SCHEMA_MEMORY,
    Decoder,
    DoesNotFit,
    Encoded,
    Encoder,
    SlotMemory,
    described,
    unpickle_parts,
)
from shmserve.errors import RequestRejected, UnsupportedType
from shmserve.layout import MAX_METADATA_BYTES, aligned
from shmserve.metadata import MetadataError
from tests.support.same_trees import assert_same
from tests.support.trees import BFLOAT16, DTYPES, LAYOUTS, SHAPES, filled, laid_out, trees

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
    structures: list[dict[Any, Any]] = [
        {f"key {number}": np.zeros(number), "n": number} for number in range(SCHEMA_MEMORY + 3)
    ]
    structures += [{"n": 1, "x": np.zeros(2)}, {"x": np.zeros(2, np.float32), "n": 1}, {"x": np.zeros((2, 1)), "n": 1}]
    structures += [{0: 1, "n": 1}, {"0": 1, "n": 1}, {256: 1, "n": 1}, {-1: 1, "n": 1}]
    for round_ in range(3):
        for tree in [*structures, *reversed(structures)]:
            tree = {**tree, "n": round_}

            assert_same(channel.carry(tree), tree)


def test_numbers_texts_and_lengths_do_not_change_the_schema() -> None:
    channel = Channel()
    first = None
    for step in range(20):
        tree = {
            "step": step,
            "time": step / 7,
            "on": step % 2 == 0,
            "state": np.full(step, step, np.float32),
            "points": np.zeros((step % 3, 4, step)),
            "task": "pick" * step,
            "raw": bytes(step),
            "list": [0.5] * (1 + step),
        }

        assert_same(channel.carry(tree), tree)
        first = first or channel.encoded
        assert (channel.encoded.schema, channel.encoded.metadata_bytes) == (first.schema, first.metadata_bytes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], (1,)),
        ([], {}),
        ({"a": np.zeros(2)}, {"a": np.zeros((2, 1))}),
        ({"a": np.zeros(2)}, {"a": np.zeros(2, np.float32)}),
        ({"a": np.zeros(2)}, {"a": [0.0, 0.0]}),
        ({"a": np.zeros(())}, {"a": np.float64(0)}),
        ({"a": 1}, {"a": 1 << 70}),
        ({"a": b"x"}, {"a": "x"}),
        ({"a": None}, {"a": False}),
        ({"a": 1 << 70}, {"a": 1 << 71}),
        ({0: 1}, {"0": 1}),
        ({0: 1}, {1: 1}),
        ([1, "x"], [1, "x", "y"]),
        ([[]], [[1.0]]),
        ([[1.0]], [(1.0,)]),
        ([[1.0]], [[1]]),
        ([[True]], [[1]]),
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
        channel.carry({"a": {f"key {number}": 1}})

    channel.carry({"a": 2})

    assert channel.encoded.schema == first


def test_no_side_remembers_more_than_it_needs() -> None:
    channel = Channel()
    for number in range(3 * SCHEMA_MEMORY):
        tree = {f"name {number}": number}
        assert channel.carry(tree) == tree

    assert len(channel.encoder._ids) == SCHEMA_MEMORY
    schemas = channel.decoder.schemas
    assert len(schemas.known) == len(schemas.decoders) == SCHEMA_MEMORY


def test_a_reader_forgets_the_schemas_that_were_used_longest_ago() -> None:
    channel = Channel()
    for number in range(SCHEMA_MEMORY):
        channel.carry({f"name {number}": number})
    channel.carry({"name 0": 5})

    channel.carry({"one more": 1})

    known = set(channel.decoder.schemas.known)
    assert {1, *range(16, SCHEMA_MEMORY + 2)} <= known and 2 not in known and len(known) > SCHEMA_MEMORY // 2


def test_a_schema_that_was_forgotten_is_sent_again() -> None:
    channel = Channel(slots=1)
    for _ in range(2):
        for number in range(2 * SCHEMA_MEMORY):
            tree = {f"structure {number}": number}
            assert channel.carry(tree) == tree


def test_metadata_is_written_only_where_the_slot_holds_another() -> None:
    memory = slot()
    encoder = Encoder()
    encoder.encode({"a": 1, "s": "x"}, memory)
    memory.metadata[:] = 0

    encoder.encode({"a": 2, "s": "another"}, memory)
    assert not memory.metadata.any()

    encoder.encode({"b": 2}, memory)
    assert memory.metadata.any()


def test_sizes_numbers_and_leaves_lie_where_the_format_says() -> None:
    memory = slot()

    encoded = Encoder().encode(
        {"f": 1.5, "a": np.array([[1, 2]], np.int16), "n": -1, "deep": [True, "é", np.float32(1)], "list": [3, 4]},
        memory,
    )

    assert memory.payload[:32].view(np.uint64).tolist() == [1, 2, 2, 2]  # both dimensions, the text's bytes, the list
    assert memory.payload[32:56].tobytes() == (
        b"\x00\x00\x00\x00\x00\x00\xf8\x3f" + b"\xff" * 8 + b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )
    assert memory.payload[64:68].tobytes() == b"\x01\x00\x02\x00"
    assert memory.payload[128:130].tobytes() == "é".encode()
    assert memory.payload[192:196].tobytes() == b"\x00\x00\x80\x3f"
    assert memory.payload[256:272].view(np.int64).tolist() == [3, 4]
    assert encoded.payload_bytes == 272


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
        encoder.encode({"x" * 100: 1}, small)

    assert payload.value.payload_bytes == 64 + 129
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


def test_sizes_that_need_more_than_the_slot_has_are_refused() -> None:
    memory = slot()
    encoded = Encoder().encode({"a": np.zeros(1000)}, memory)
    smaller = SlotMemory(memory.metadata, memory.payload[:100])

    with pytest.raises(MetadataError, match="a payload of 100 bytes where 8064 are needed"):
        Decoder().decode(smaller, *encoded)


@pytest.mark.parametrize("size", [0, 1, 9, 11, 1 << 31, 1 << 45, 1 << 60, 1 << 61, 1 << 63, (1 << 64) - 1])
def test_sizes_that_do_not_describe_the_payload_are_refused(size: int) -> None:
    memory = slot()
    encoded = Encoder().encode({"a": np.zeros(10), "n": 1, "b": np.zeros((3, 10), np.uint8)}, memory)
    for at in range(3):
        before = int(memory.payload[8 * at : 8 * at + 8].view(np.uint64)[0])
        memory.payload[8 * at : 8 * at + 8].view(np.uint64)[0] = 1000 * size % (1 << 64) if size < 12 else size
        for payload_bytes in (encoded.payload_bytes, 0, 8, 31, 32, memory.payload.size, 1 << 32, 1 << 63):
            if size or payload_bytes != encoded.payload_bytes:
                with pytest.raises(MetadataError):
                    Decoder().decode(memory, *encoded._replace(payload_bytes=payload_bytes))
        memory.payload[8 * at : 8 * at + 8].view(np.uint64)[0] = before
    assert Decoder().decode(memory, *encoded)["n"] == 1


def test_a_string_that_is_not_utf_8_is_refused() -> None:
    memory = slot()
    encoded = Encoder().encode("x" * 300, memory)
    memory.payload[64 + 7] = 0xFF

    with pytest.raises(MetadataError):
        Decoder().decode(memory, *encoded)


def test_a_text_with_surrogates_comes_back() -> None:
    for text in ("\ud800", "a\udfff" * 200):
        assert_same(there_and_back({"s": text}), {"s": text})


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

    encoded = Encoder(allow_pickle=True).encode({1.5: array}, memory)

    data, buffers = Decoder().decode(memory, *encoded._replace(pickled=False))
    assert data.size < 400
    assert [buffer.size for buffer in buffers] == [array.nbytes]
    assert_same(unpickle_parts((data, buffers))[1.5], array)


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
    tree: Any = {}
    for _ in range(depth):
        tree = [tree]

    with pytest.raises(
        RequestRejected, match=r"^observation(\[0\]){33}: a (list|dict) within more than 32 containers|^observation: "
    ):
        Encoder().encode(tree, slot())


def examined_by(encoder: Encoder, declared: tuple[int, ...] | None) -> list[Any]:
    """Let the encoder be told these sizes; the trees that it has examined since."""
    seen: list[Any] = []

    def examine(tree: Any) -> tuple[int, ...] | None:
        seen.append(tree)
        return declared

    encoder.examine = examine
    return seen


def test_a_structure_whose_sizes_are_not_declared_is_examined_once() -> None:
    encoder, memory = Encoder(), slot()
    seen = examined_by(encoder, None)

    for step in range(3):
        encoder.encode({"x": np.zeros(step), "s": "x" * step}, memory)
    assert [tree["s"] for tree in seen] == [""]

    encoder.encode({"y": 1}, memory)
    encoder.forget()
    encoder.encode({"y": 2}, memory)
    assert seen[1:] == [{"y": 1}, {"y": 2}]


def test_a_tree_of_other_sizes_than_declared_is_examined_and_one_of_the_same_is_not() -> None:
    encoder, memory = Encoder(), slot()
    seen = examined_by(encoder, (2, 3, -1))
    trees = [{"x": np.zeros((2, columns)), "s": "x" * columns} for columns in (3, 3, 4, 3, 4)]
    trees[1]["s"] = "any length"

    ids = {encoder.encode(tree, memory).schema for tree in trees}

    assert [tree["x"].shape[1] for tree in seen] == [3, 4, 4] and ids == {1}
    assert_same(Decoder().decode(memory, 1, *encoder.encode(trees[2], memory)[1:]), trees[2])


def test_a_tree_that_is_refused_by_its_examiner_is_not_written() -> None:
    encoder, memory = Encoder(), slot()
    encoder.encode({"x": np.zeros(2)}, memory)
    encoder.forget()
    before = memory.payload.copy(), memory.metadata.copy()

    def examine(tree: Any) -> tuple[int, ...]:
        if tree["x"].size != 2:
            raise RequestRejected("x has another size")
        return (2,)

    encoder.examine = examine
    for _ in range(2):
        with pytest.raises(RequestRejected, match="another size"):
            encoder.encode({"x": np.ones(3)}, memory)
        assert (memory.payload == before[0]).all() and (memory.metadata == before[1]).all()
        encoder.encode({"x": np.zeros(2)}, memory)


def test_an_examiner_sees_a_tree_of_base_types() -> None:
    encoder = Encoder()
    seen = examined_by(encoder, None)

    encoder.encode({"t": torch.ones(2), "n": np.str_("x")}, slot())

    assert type(seen[0]["n"]) is str


def test_a_structure_is_described_with_the_bytes_that_it_takes() -> None:
    tree = {"x": np.zeros((3, 5)), "s": "text", "n": 7, 5: [1, 2]}

    schema, payload_bytes = described(tree, "observation")

    memory = slot()
    encoded = Encoder().encode(tree, memory)
    assert (len(schema.metadata), payload_bytes) == encoded[1:3]
    with pytest.raises(RequestRejected, match="observation"):
        described({"x": np.broadcast_to(np.zeros(()), (1 << 30, 1 << 20))}, "observation")


def test_a_tree_of_more_bytes_than_a_payload_can_have_is_refused() -> None:
    huge = np.broadcast_to(np.uint8(1), (1 << 33,))
    encoder, memory = Encoder(), slot()
    encoder.encode({"x": np.zeros(1, np.uint8)}, memory)

    for _ in range(2):
        with pytest.raises(RequestRejected):
            encoder.encode({"x": huge}, memory)


def test_an_example_is_laid_out_with_its_arrays_in_the_slot() -> None:
    memory, encoder = slot(), Encoder()
    example = {"x": np.arange(6.0).reshape(2, 3), "s": "text", "n": 7, "b": np.ones(2, BFLOAT16), "e": np.zeros(0)}

    tree, arrays = encoder.lay_out(example, memory)

    assert_same({**tree, "x": tree["x"].copy()}, example)
    assert tree["x"] is arrays[0] and np.shares_memory(tree["x"], memory.payload)
    tree["x"][:] = 5
    tree["s"] = "a longer text than the one before, which moves whatever follows it to another place"
    assert_same(Decoder().decode(memory, *encoder.encode(tree, memory)), {**tree, "x": np.full((2, 3), 5.0)})


def test_a_tree_with_too_many_entries_is_refused_with_advice() -> None:
    with pytest.raises(RequestRejected, match="one array"):
        Encoder().encode([{"a": number} for number in range(3000)], slot())


def test_long_lists_of_numbers_are_carried_as_one_array() -> None:
    memory = slot()

    encoded = Encoder().encode({"a": [0.5] * 10_000, "b": list(range(1000)), "c": [True, False] * 500}, memory)

    assert encoded.metadata_bytes < 200
    assert encoded.payload_bytes == aligned(64 + aligned(80_000) + 8000) + 1000


def test_memory_of_a_slot_is_not_kept_by_what_was_decoded() -> None:
    memory = slot()
    found = Decoder().decode(
        memory, *Encoder().encode({"a": np.arange(10), "s": np.float32(1), "b": b"x" * 50}, memory)
    )
    memory.payload[:] = 0
    gc.collect()

    assert_same(found, {"a": np.arange(10), "s": np.float32(1), "b": b"x" * 50})
