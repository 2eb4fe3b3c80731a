"""The native codec does the same as the Python that replaces it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmserve.carried_values import carried
from shmserve.codec import SlotMemory
from shmserve.pure import tree_decoder as pure_decoder
from shmserve.pure import tree_encoder as pure_encoder
from tests.support.native import NATIVE, core
from tests.support.native_ends import metadata_of, slot_memory
from tests.support.same_trees import assert_same, expected
from tests.support.trees import BFLOAT16, keys, leaves, trees

native_only = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
_MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
_ROOM = 1 << 17


def encoders() -> tuple[Any, Any]:
    return core.TreeEncoder(carried), pure_encoder.TreeEncoder(carried)


def written(encoder: Any, tree: Any, memory: SlotMemory | None = None, schema: int = 5) -> tuple[Any, SlotMemory]:
    memory = slot_memory(_ROOM, 1 << 16) if memory is None else memory
    encoder.remember(encoder.describe(tree), schema, None)
    return encoder.encode_into(tree, memory, None, 0, True), memory


def assert_same_bytes(memories: list[SlotMemory]) -> None:
    """Of the whole slot: neither writes between the leaves."""
    native, pure = memories
    assert (native.metadata == pure.metadata).all() and (native.payload == pure.payload).all()
    assert native.written_schema == pure.written_schema


@native_only
@_MANY
@given(trees())
def test_a_tree_is_written_as_python_writes_it(tree: Any) -> None:
    results, memories = zip(*(written(encoder, tree) for encoder in encoders()), strict=True)

    native, pure = results
    assert native == pure and native[:2] == (5, len(metadata_of(tree)))
    assert_same_bytes(list(memories))


@native_only
@_MANY
@given(trees())
def test_a_tree_is_read_as_python_reads_it(tree: Any) -> None:
    (_, metadata_bytes, payload_bytes, _), memory = written(core.TreeEncoder(carried), tree)
    metadata = memory.metadata[:metadata_bytes].tobytes()
    native, pure = core.TreeDecoder(metadata), pure_decoder.TreeDecoder(metadata)
    views = native.views(memory.payload, payload_bytes)

    for one, other in zip(views, pure.views(memory.payload, payload_bytes), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert not one.size or np.shares_memory(one, other)
    assert native.is_complete == pure.is_complete
    if native.is_complete:
        for decoder in (native, pure):
            assert_same(decoder.decode(memory.payload, payload_bytes), tree)
            for wrap in (None, np.copy):
                assert_same(decoder.decode_over(memory.payload, payload_bytes, views, wrap), tree)
    else:
        with pytest.raises(TypeError, match="bfloat16"):
            native.decode(memory.payload, payload_bytes)
        with pytest.raises(TypeError, match="bfloat16"):
            native.decode_over(memory.payload, payload_bytes, views, None)


@native_only
@_MANY
@given(trees(), trees(), st.data())
def test_another_structure_and_other_sizes_are_told_apart_as_python_does(tree: Any, other: Any, data: Any) -> None:
    metadata = metadata_of(tree)
    sizes = pure_decoder.TreeDecoder(metadata).sizes_count
    declared = tuple(data.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3]), min_size=sizes, max_size=sizes)))
    found: list[list[Any]] = []
    for encoder in encoders():
        encoder.remember(metadata, 5, declared)
        memory = slot_memory(_ROOM, 1 << 16)
        found.append(
            [
                encoder.encode_into(each, memory, None, 0, examined)
                for each in (tree, other, tree)
                for examined in (False, True)
            ]
        )
        found[-1].append((memory.metadata.tobytes(), memory.payload.tobytes()))

    assert found[0] == found[1]


class Loan:
    """A slot that holds texts and arrays, and views of the arrays as a loan gives them."""

    def __init__(self, encoder: Any, arrays: list[npt.NDArray[Any]], text: str) -> None:
        self.encoder = encoder
        self.memory = slot_memory(_ROOM, 1 << 16)
        (_, metadata_bytes, payload_bytes, _), _ = written(encoder, {"text": text, "arrays": arrays}, self.memory)
        decoder = pure_decoder.TreeDecoder(self.memory.metadata[:metadata_bytes].tobytes())
        self.views = decoder.views(self.memory.payload, payload_bytes)

    def send(self, tree: Any) -> Any:
        (_, metadata_bytes, payload_bytes, _), _ = written(self.encoder, tree, self.memory, 6)
        decoder = core.TreeDecoder(self.memory.metadata[:metadata_bytes].tobytes())
        return decoder.decode(self.memory.payload, payload_bytes)


_PLACED = st.lists(
    st.builds(
        lambda dtype, shape: np.arange(np.prod(shape)).reshape(shape).astype(dtype),
        st.sampled_from(["u1", "<i2", "<f4", "<f8", "?"]),
        st.sampled_from([(0,), (), (3,), (40,), (2, 0), (5, 7), (130, 2), (3, 2, 2)]),
    ),
    min_size=1,
    max_size=4,
)
#: What a program may make of an array that is memory of the slot.
_CHANGES: dict[str, Any] = {
    "as it is": lambda view: view,
    "backwards": lambda view: view[::-1] if view.ndim else view,
    "transposed": lambda view: view.T,
    "part": lambda view: view[1:] if view.ndim else view,
    "every other": lambda view: view[::2] if view.ndim else view,
    "repeated": lambda view: np.broadcast_to(view, (2, *view.shape)),
    "other type": lambda view: view.view(np.uint8) if view.ndim and view.flags.c_contiguous else view,
}


@native_only
@_MANY
@given(
    _PLACED,
    st.text(max_size=200),
    st.text(max_size=200),
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from(sorted(_CHANGES)), min_size=4, max_size=4),
)
def test_memory_of_the_slot_itself_is_sent_from_any_place(
    arrays: list[Any], text: str, other: str, random: Any, changes: list[str]
) -> None:
    order = random.sample(range(len(arrays)), len(arrays))
    for encoder in encoders():
        loan = Loan(encoder, arrays, text)
        sent = [_CHANGES[changes[place]](loan.views[place]) for place in order]
        tree = {"text": other, "arrays": sent, "twice": sent[:1]}
        as_it_was = {"text": other, "arrays": [array.copy() for array in sent], "twice": [sent[0].copy()]}

        assert_same(loan.send(tree), as_it_was)


@native_only
def test_an_array_in_its_place_is_not_touched_and_one_that_moves_is_carried_there() -> None:
    for encoder in encoders():
        loan = Loan(encoder, [np.arange(8.0), np.arange(8.0)], "x" * 64)
        first, second = loan.views
        first[:], second[:] = 1.0, 2.0

        assert_same(
            loan.send({"text": "y" * 64, "arrays": [first, second]}),
            {"text": "y" * 64, "arrays": [np.full(8, 1.0), np.full(8, 2.0)]},
        )
        assert (first == 1.0).all() and (second == 2.0).all()

        # A longer text: the first array is sent to the memory of the second.
        tree = {"text": "y" * 65, "arrays": [first, second]}
        assert_same(loan.send(tree), {"text": "y" * 65, "arrays": [np.full(8, 1.0), np.full(8, 2.0)]})
        assert (second == 1.0).all()


@native_only
def test_memory_over_the_sizes_and_numbers_is_sent_as_it_was() -> None:
    for encoder in encoders():
        memory = slot_memory(_ROOM, 1 << 16)
        memory.payload[:256] = np.arange(256, dtype=np.uint8)
        tree: dict[str, Any] = {"front": memory.payload[:64], "over": memory.payload[60:160], "number": 7}
        as_it_was = {"front": tree["front"].copy(), "over": tree["over"].copy(), "number": 7}

        (_, metadata_bytes, payload_bytes, _), _ = written(encoder, tree, memory)

        decoder = core.TreeDecoder(memory.metadata[:metadata_bytes].tobytes())
        assert_same(decoder.decode(memory.payload, payload_bytes), as_it_was)


@native_only
@_MANY
@given(st.lists(st.tuples(*[st.integers(0, 70)] * 4), min_size=1, max_size=5))
def test_sizes_that_change_stay_one_structure(sizes: list[tuple[int, int, int, int]]) -> None:
    made = [
        {
            "points": np.full((rows, 3), rows, np.float32),
            "task": "x" * text,
            "raw": bytes(raw),
            "list": [0.5] * (1 + floats),
        }
        for rows, text, raw, floats in sizes
    ]
    native, pure = encoders()
    for encoder in (native, pure):
        encoder.remember(metadata_of(made[0]), 9, None)
    decoder = core.TreeDecoder(metadata_of(made[0]))
    for tree in made:
        memories = [slot_memory(_ROOM), slot_memory(_ROOM)]

        results = [
            each.encode_into(tree, memory, None, 0, False)
            for each, memory in zip((native, pure), memories, strict=True)
        ]

        assert results[0] == results[1] and results[0][0] == 9
        assert_same_bytes(memories)
        assert_same(decoder.decode(memories[0].payload, results[0][2]), tree)


@native_only
@_MANY
@given(trees(), st.data())
def test_damaged_sizes_are_refused_as_python_does(tree: Any, data: Any) -> None:
    (_, metadata_bytes, payload_bytes, _), memory = written(core.TreeEncoder(carried), tree)
    metadata = memory.metadata[:metadata_bytes].tobytes()
    native, pure = core.TreeDecoder(metadata), pure_decoder.TreeDecoder(metadata)
    words = memory.payload.view(np.uint64)
    if pure.sizes_count:
        at = data.draw(st.integers(0, pure.sizes_count - 1))
        words[at] = data.draw(
            st.sampled_from([0, 1, 2, 1 << 31, 1 << 47, 1 << 48, 1 << 61, 1 << 63, (1 << 64) - 1]) | st.integers(0, 200)
        )
    claimed = data.draw(
        st.sampled_from(
            [
                payload_bytes,
                payload_bytes - 1,
                payload_bytes + 1,
                0,
                8,
                _ROOM,
                _ROOM + 1,
                1 << 32,
                1 << 63,
                (1 << 64) - 1,
            ]
        )
        | st.integers(0, 400)
    )
    found: list[Any] = []
    for decoder in (native, pure):
        try:
            found.append([view.tobytes() for view in decoder.views(memory.payload, max(claimed, 0))])
        except ValueError:
            found.append(None)

    assert found[0] == found[1]


@native_only
@_MANY
@given(trees(), st.data())
def test_damaged_metadata_is_refused_as_python_does(tree: Any, data: Any) -> None:
    metadata = bytearray(metadata_of(tree))
    for _ in range(data.draw(st.integers(1, 3))):
        metadata[data.draw(st.integers(0, len(metadata) - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(list(b"\x8cX(}]ut.NKMJQ\x8a\x87"))
        )
    accepted = []
    for kind in (core.TreeDecoder, pure_decoder.TreeDecoder):
        try:
            accepted.append(bool(kind(bytes(metadata)).is_complete) + 1)
        except ValueError:
            accepted.append(0)

    assert accepted[0] == accepted[1]


@native_only
@_MANY
@given(st.dictionaries(keys() | st.integers(-(1 << 63), (1 << 63) - 1), leaves(), max_size=40))
def test_keys_come_back_in_their_order(tree: Any) -> None:
    (_, metadata_bytes, payload_bytes, _), memory = written(core.TreeEncoder(carried), tree)
    decoder = core.TreeDecoder(memory.metadata[:metadata_bytes].tobytes())

    if decoder.is_complete:
        found = decoder.decode(memory.payload, payload_bytes)

        assert list(found) == list(expected(tree)) and list(map(type, found)) == list(map(type, expected(tree)))


@native_only
@pytest.mark.parametrize(
    "value", [1 << 63, -(1 << 63) - 1, (1 << 64) - 1, 1 << 64, (1 << 127) - 1, -(1 << 127), -(1 << 71), 1 << 71]
)
def test_integers_beyond_64_bits_are_part_of_the_structure(value: int) -> None:
    results = [written(encoder, {"n": [value, 1]}) for encoder in encoders()]

    assert_same_bytes([memory for _, memory in results])
    (_, metadata_bytes, payload_bytes, _), memory = results[0]
    metadata = memory.metadata[:metadata_bytes].tobytes()
    for decoder in (core.TreeDecoder(metadata), pure_decoder.TreeDecoder(metadata)):
        assert decoder.decode(memory.payload, payload_bytes) == {"n": [value, 1]}


@native_only
@pytest.mark.parametrize(
    "value", [1 << 127, -(1 << 127) - 1, {"k": {1 << 63: 1}}, {"\ud800": 1}, {"x" * 1025: 1}, {1.5: 1}], ids=str
)
def test_values_beyond_the_limits_are_carried_by_neither(value: Any) -> None:
    assert [encoder.describe({"n": value}) for encoder in encoders()] == [None, None]


@native_only
def test_sixty_four_structures_are_remembered_and_the_one_used_longest_ago_is_forgotten() -> None:
    structures = [{f"key {number}": number} for number in range(65)]
    for encoder in encoders():
        memory = slot_memory()
        for number, tree in enumerate(structures[:64]):
            encoder.remember(metadata_of(tree), number + 1, None)
        for tree in structures[:64]:
            assert encoder.encode_into(tree, memory, None, 0, False)[0] == structures.index(tree) + 1
        encoder.encode_into(structures[0], memory, None, 0, False)  # the second is now the oldest

        encoder.remember(metadata_of(structures[64]), 65, None)

        forgotten = [tree for tree in structures if type(encoder.encode_into(tree, memory, None, 0, False)) is bytes]
        assert forgotten == [structures[1]]
        encoder.remember(metadata_of(structures[64]), 66, None)  # again: no other is forgotten
        assert encoder.encode_into(structures[64], memory, None, 0, False)[0] == 66
        assert type(encoder.encode_into(structures[2], memory, None, 0, False)) is tuple
        encoder.forget()
        assert all(type(encoder.encode_into(tree, memory, None, 0, False)) is bytes for tree in structures)


@native_only
def test_a_tree_that_does_not_fit_is_not_written() -> None:
    tree = {"x": np.ones(100, np.uint8), "long key" * 10: 1}
    metadata = metadata_of(tree)
    for encoder in encoders():
        encoder.remember(metadata, 5, None)
        for payload_bytes, metadata_bytes in ((163, 1000), (64, 1000), (300, len(metadata) - 1), (0, 0)):
            memory = slot_memory(payload_bytes, metadata_bytes)

            assert encoder.encode_into(tree, memory, None, 0, True) == (len(metadata), 164)

            assert (memory.payload == 0xAA).all() and (memory.metadata == 0xAA).all()
            assert memory.written_schema is None
        assert encoder.encode_into(tree, slot_memory(164, len(metadata)), None, 0, True) == (5, len(metadata), 164, 0)


@native_only
def test_arrays_over_the_slot_s_memory_hang_on_the_view_s_base_as_numpy_s_own_do() -> None:
    (_, metadata_bytes, payload_bytes, _), memory = written(core.TreeEncoder(carried), {"x": np.arange(5.0)})
    decoder = core.TreeDecoder(memory.metadata[:metadata_bytes].tobytes())
    views = decoder.views(memory.payload, payload_bytes)

    lent = decoder.decode_over(memory.payload, payload_bytes, views, None)["x"]

    assert lent.base is views[0][...].base
    assert lent.flags == views[0][...].flags
    locked = memory.payload[:]
    locked.flags.writeable = False
    assert not decoder.views(locked, payload_bytes)[0].flags.writeable


@native_only
@pytest.mark.parametrize(
    "payload",
    [
        np.zeros(4, np.uint8),
        np.zeros((4, 100), np.uint8),
        np.zeros(400, np.int8),
        np.zeros(800, np.uint8)[::2],
        b"0" * 400,
        None,
    ],
    ids=["short", "shaped", "signed", "strided", "bytes", "none"],
)
def test_a_payload_that_is_none_is_refused(payload: Any) -> None:
    tree = {"x": np.arange(5.0), "y": 3}
    (_, metadata_bytes, payload_bytes, _), memory = written(core.TreeEncoder(carried), tree)
    decoder = core.TreeDecoder(memory.metadata[:metadata_bytes].tobytes())
    views = decoder.views(memory.payload, payload_bytes)
    encoder = core.TreeEncoder(carried)
    encoder.remember(metadata_of(tree), 1, None)

    for call in (
        lambda: decoder.decode(payload, payload_bytes),
        lambda: decoder.views(payload, payload_bytes),
        lambda: decoder.decode_over(payload, payload_bytes, views, None),
        lambda: core.stage(payload, payload_bytes, memory.payload, None, 0),
        lambda: core.stage(memory.payload, payload_bytes, payload, None, 0),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    if payload is None or len(payload) != 4:
        for other in (SlotMemory(memory.metadata, memory.payload), SlotMemory(memory.metadata, memory.payload)):
            other.written_schema = None
        for name in ("payload", "metadata"):
            other = SlotMemory(memory.metadata, memory.payload)
            setattr(other, name, payload)
            with pytest.raises(TypeError):
                encoder.encode_into(tree, other, None, 0, True)


@native_only
def test_a_payload_is_staged_as_python_stages_it() -> None:
    payload = np.arange(100, dtype=np.uint8)
    for stage in (core.stage, pure_decoder.stage):
        arena = np.zeros(120, np.uint8)

        assert stage(payload, 90, arena, None, 0) == 0

        assert (arena[:90] == payload[:90]).all() and not arena[90:].any()
        for sizes in ((101, 120), (100, 99)):
            with pytest.raises(ValueError, match="are needed"):
                stage(payload[: min(sizes[0], 100)], sizes[0], arena[: sizes[1]], None, 0)


def test_bfloat16_is_stored_as_the_same_bits() -> None:
    values = np.array([1.5, -2.0, np.inf], BFLOAT16)
    tree = {"array": values, "scalar": values[0], "turned": np.array([[1, 2], [3, 4]], BFLOAT16).T}
    memories = [written(encoder, tree) for encoder in (encoders() if NATIVE else encoders()[1:])]
    decoder = pure_decoder.TreeDecoder(metadata_of(tree))

    for (_, _, payload_bytes, _), memory in memories:
        array, turned = decoder.views(memory.payload, payload_bytes)
        assert (array == values.view(np.uint16)).all() and (turned == tree["turned"].copy().view(np.uint16)).all()


@native_only
def test_another_number_of_sizes_or_views_is_refused_as_python_does() -> None:
    tree = {"state": np.zeros((2, 3)), "task": "fold"}
    metadata = metadata_of(tree)
    for encoder in encoders():
        with pytest.raises(ValueError, match="expected 3 sizes"):
            encoder.remember(metadata, 5, (2, 3))
    (_, _, payload_bytes, _), memory = written(core.TreeEncoder(carried), tree)
    for decoder in (core.TreeDecoder(metadata), pure_decoder.TreeDecoder(metadata)):
        with pytest.raises(TypeError, match="a list of 1 views is needed"):
            decoder.decode_over(memory.payload, payload_bytes, [], None)
