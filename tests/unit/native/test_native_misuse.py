"""The native core under misuse: objects half made, code that runs in the middle of a call."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmserve.carried_values import carried
from shmserve.codec import Decoder, Encoder, SlotMemory, described
from shmserve.daemon.ipc.stats import CHANNEL_LIMIT, Stage, Stats, create_stats_memory
from shmserve.layout import COUNTER_LINE
from shmserve.metadata_leaf import METADATA_LIMIT, NODE_LIMIT
from shmserve.ring import ReplyHead, RequestHead
from tests.support.native import NATIVE, core
from tests.support.native_ends import decoders_of, encoder_of, metadata_of, new_slots, slot_memory

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

F8 = np.dtype("<f8")
_LOCKED = np.zeros(4096, np.uint8)
_LOCKED.flags.writeable = False


class Odd:
    """A value that the walk asks `convert` about."""


def encoder_with(code: Callable[[], Any], *trees: Any) -> core.TreeEncoder:
    """Return an encoder that runs `code` for an `Odd` value and carries what it returns; knows these structures."""
    return encoder_of(*trees, convert=lambda value: (0, code()) if type(value) is Odd else carried(value))


def put(encoder: core.TreeEncoder, tree: Any, memory: SlotMemory, slots: core.Slots | None = None) -> Any:
    return encoder.encode_into(tree, memory, slots, 0, True)


@pytest.mark.parametrize(
    "name",
    [
        "TreeEncoder",
        "TreeDecoder",
        "Slots",
        "CounterPoller",
        "Histograms",
        "CutThroughCopier",
        "ServerFastPath",
        "ClientFastPath",
    ],
)
def test_nothing_is_half_made(name: str) -> None:
    kind: Any = getattr(core, name)
    made_by: Any = (kind.__new__, object.__new__, lambda kind: kind(place=1))

    for make in made_by:
        with pytest.raises(TypeError):
            make(kind)
    with pytest.raises(TypeError, match="immutable"):
        kind.__init__ = None


def test_a_segment_cannot_be_created_twice() -> None:
    words = np.zeros(8, np.uint64)
    poller: Any = core.CounterPoller(words.view(np.uint8), 1)
    words[1] = 5

    poller.__init__(words.view(np.uint8), 0)

    assert poller.load() == 5


# Arguments


def test_an_encoder_refuses_wrong_arguments() -> None:
    encoder: Any = encoder_of({"a": 1})
    arguments: Any
    memory, metadata = slot_memory(), metadata_of({"x": np.ones(3)})
    too_long = b"\x80\x05" + b"(" * METADATA_LIMIT
    for arguments in (
        (),
        (metadata, 1),
        (bytearray(metadata), 1, None),
        (metadata, "1", None),
        (metadata, 1.0, None),
        (metadata, 1, [3]),
        (metadata, 1, ("3",)),
        (metadata, 1, (None,)),
    ):
        with pytest.raises(TypeError):
            encoder.remember(*arguments)
    for arguments in (
        (metadata, 1, ()),
        (metadata, 1, (3, 3)),
        (b"", 1, None),
        (metadata[:-1], 1, None),
        (too_long, 1, None),
    ):
        with pytest.raises(ValueError):
            encoder.remember(*arguments)
    for arguments in ((metadata, -1, None), (metadata, 1 << 64, None), (metadata, 1, (1 << 63,))):
        with pytest.raises(OverflowError):
            encoder.remember(*arguments)
    for arguments in (
        (),
        ({"a": 1}, memory, None, 0),
        ({"a": 1}, memory, object(), 0, True),
        ({"a": 1}, memory, encoder, 0, True),
        ({"a": 1}, memory, new_slots(), "0", True),
    ):
        with pytest.raises(TypeError):
            encoder.encode_into(*arguments)
    for slot, error in ((64, ValueError), (-1, OverflowError), (1 << 64, OverflowError)):
        with pytest.raises(error):
            encoder.encode_into({"a": 1}, memory, new_slots(), slot, True)
    for other in (object(), None, {}):
        with pytest.raises(AttributeError):
            encoder.encode_into({"a": 1}, other, None, 0, True)
    with pytest.raises(TypeError):
        core.TreeEncoder()  # type: ignore[call-arg]
    assert (memory.payload == 0xAA).all() and memory.written_schema is None
    assert type(encoder.encode_into({"x": np.ones(3)}, memory, None, 0, True)) is bytes  # nothing was remembered


def test_the_first_wrong_size_ends_the_reading_of_sizes() -> None:
    class Size:
        def __index__(self) -> int:
            asked.append(self)
            raise LookupError("no size today")

    asked: list[Size] = []
    with pytest.raises(LookupError, match="no size today"):
        encoder_of().remember(metadata_of([b"", b"", b""]), 1, (Size(), Size(), Size()))  # type: ignore[arg-type]

    assert len(asked) == 1


def test_memory_that_cannot_be_written_is_refused() -> None:
    tree = {"a": np.ones(3)}
    encoder = encoder_of(tree)
    for payload, metadata, error in (
        (_LOCKED, np.zeros(4096, np.uint8), ValueError),
        (np.zeros(4096, np.uint8), _LOCKED, ValueError),
        (bytearray(4096), np.zeros(4096, np.uint8), TypeError),
        (np.zeros(512, np.uint64), np.zeros(4096, np.uint8), TypeError),
        (np.zeros(4096, np.uint8), memoryview(bytearray(4096)), TypeError),
        (np.zeros(4096, np.uint8).view(np.recarray), np.zeros(4096, np.uint8), TypeError),
    ):
        memory = slot_memory()
        memory.payload, memory.metadata = payload, metadata  # type: ignore[assignment]
        with pytest.raises(error):
            put(encoder, tree, memory)


def test_a_decoder_refuses_wrong_arguments() -> None:
    kind: Any = core.TreeDecoder
    given: Any
    tree = {"a": np.ones(3), "s": "text"}
    for given in (None, "text", 7, np.zeros(4), bytearray(metadata_of(tree))):
        with pytest.raises(TypeError):
            kind(given)
    for given in (b"", b"\x80\x05", b"\x80\x05N", b"\x80\x05N..", metadata_of(tree)[:-1], b"\0" * (METADATA_LIMIT + 1)):
        with pytest.raises(ValueError):
            kind(given)
    decoder: Any = kind(metadata_of(tree))
    memory = slot_memory()
    payload_bytes = put(encoder_of(tree), tree, memory)[2]
    views = decoder.views(memory.payload, payload_bytes)
    for call in (
        decoder.decode,
        decoder.views,
        decoder.decode_over,
        lambda: decoder.decode(memory.payload),
        lambda: decoder.decode(memory.payload, "1"),
        lambda: decoder.views(memory.payload, 1.0),
        lambda: decoder.decode_over(memory.payload, payload_bytes, tuple(views), None),
        lambda: decoder.decode_over(memory.payload, payload_bytes, [], None),
        lambda: decoder.decode_over(memory.payload, payload_bytes, [*views, *views], None),
        lambda: decoder.decode_over(memory.payload, payload_bytes, [None], None),
        lambda: decoder.decode_over(memory.payload, payload_bytes, views, 7),
        lambda: core.stage(memory.payload, payload_bytes, memory.payload, views, 0),
        lambda: core.stage(memory.payload, payload_bytes, memory.payload, None, "0"),  # type: ignore[arg-type]
        lambda: core.stage(memory.payload, payload_bytes),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()
    lies = (0, 8, payload_bytes - 1, payload_bytes + 1, 4097, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1)
    for lie in lies:
        for call in (
            lambda: decoder.decode(memory.payload, lie),  # noqa: B023
            lambda: decoder.views(memory.payload, lie),  # noqa: B023
            lambda: decoder.decode_over(memory.payload, lie, views, None),  # noqa: B023
        ):
            with pytest.raises(ValueError):
                call()
    for lie in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            decoder.decode(memory.payload, lie)
    with pytest.raises(ValueError, match="read"):
        core.stage(memory.payload, 10, _LOCKED, None, 0)
    with pytest.raises(ValueError, match="more bytes"):
        core.stage(memory.payload, 1 << 63, memory.payload, None, 0)


# Code that runs in the middle of a call


def test_an_array_that_shrinks_while_the_next_value_is_converted_is_not_read() -> None:
    first, memory = np.ones(3), slot_memory()

    def shrink() -> float:
        first.resize(0, refcheck=False)
        return 1.0

    assert put(encoder_with(shrink, [first, 1.0]), [first, Odd()], memory) is None

    assert (memory.payload == 0xAA).all()


def test_an_array_that_grows_while_the_next_value_is_converted_is_not_written_beyond_its_place() -> None:
    first, memory = np.asfortranarray(np.ones((2, 3))), slot_memory()

    def grow() -> float:
        first.resize((4, 3), refcheck=False)
        return 1.0

    assert put(encoder_with(grow, [first, 1.0]), [first, Odd()], memory) is None

    assert (memory.payload == 0xAA).all()


def test_an_array_whose_dtype_or_shape_changes_while_the_next_value_is_converted_stays_in_its_place() -> None:
    def again(dtype: Any, shape: Any) -> Callable[[], float]:
        def change() -> float:
            first.dtype, first.shape = dtype, shape  # type: ignore[misc]
            return 1.0

        return change

    for dtype, shape, found in (("<i8", (6,), type(None)), ("<f8", (3, 2), tuple), ("<f8", (6,), tuple)):
        first, memory = np.arange(6.0).reshape(2, 3), slot_memory()
        encoder = encoder_with(again(dtype, shape), [first, 1.0])

        assert type(put(encoder, [first, Odd()], memory)) is found
        assert (memory.payload[24 + 64 + 48 :] == 0xAA).all()


def test_a_payload_that_moves_while_a_value_is_converted_is_written_where_it_is() -> None:
    tree, memory = [np.ones(3), np.full(3, 2.0)], slot_memory()

    def move() -> Any:
        memory.payload.resize(1 << 22, refcheck=False)
        return tree[1]

    assert put(encoder_with(move, tree), [tree[0], Odd()], memory)[2] == 128 + 24

    assert memory.payload[64:88].view(F8).tolist() == [1.0] * 3
    assert memory.payload[128:152].view(F8).tolist() == [2.0] * 3


@pytest.mark.parametrize("kind", [dict, list])
def test_a_container_that_is_emptied_while_it_is_written_is_written_as_it_was(kind: type) -> None:
    tree: Any = {"a": Odd(), "b": np.ones(3)} if kind is dict else [Odd(), np.ones(3)]
    plain: Any = {"a": 1.0, "b": np.ones(3)} if kind is dict else [1.0, np.ones(3)]
    memory = slot_memory()

    def clear() -> float:
        tree.clear()
        return 1.0

    assert put(encoder_with(clear, plain), tree, memory)[2] == 64 + 24

    assert memory.payload[64:88].view(F8).tolist() == [1.0] * 3


def test_an_encoder_that_is_used_while_a_value_is_converted_writes_both_trees() -> None:
    inner, outer = {"inner": np.arange(40.0), "text": "inside"}, {"first": np.ones(5), "odd": 2.5, "text": "outside"}
    memories = [slot_memory(), slot_memory()]

    def encode_again() -> float:
        assert put(encoder, inner, memories[1])[0] == 1
        assert encoder.describe(inner) == metadata_of(inner)
        return 2.5

    encoder = encoder_with(encode_again, inner, outer)
    found = put(encoder, {**outer, "odd": Odd()}, memories[0])

    for tree, memory, schema in ((inner, memories[1], 1), (outer, memories[0], 2)):
        assert repr(decoders_of(tree)[1].decode(memory.payload, put(encoder_of(tree), tree, slot_memory())[2])) == repr(
            tree
        )
        assert memory.written_schema == schema
    assert found[0] == 2


def test_structures_that_are_forgotten_while_a_value_is_converted_are_unknown() -> None:
    tree, memory = {"odd": 1.0}, slot_memory()

    def forget() -> float:
        encoder.forget()
        return 1.0

    encoder = encoder_with(forget, tree)

    assert put(encoder, {"odd": Odd()}, memory) == metadata_of(tree)


def test_structures_that_are_remembered_while_a_value_is_converted_are_known() -> None:
    tree, memory = {"odd": 1.0}, slot_memory()

    def remember() -> float:
        for number in range(64):
            encoder.remember(metadata_of({f"key {number}": 1}), number, None)
        encoder.remember(metadata_of(tree), 99, None)
        return 1.0

    encoder = encoder_with(remember)

    assert put(encoder, {"odd": Odd()}, memory)[0] == 99


class Memory:
    """Memory of a slot that runs code when one of its attributes is read or set."""

    def __init__(self, code: dict[str, Callable[[], Any]], payload_bytes: int = 4096) -> None:
        self.__dict__.update(vars(slot_memory(payload_bytes)), code=code)

    def __getattribute__(self, name: str) -> Any:
        values: Any = object.__getattribute__(self, "__dict__")
        if name == "__dict__":
            return values
        code = values["code"].get(name)
        if code is not None:
            code()
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        code = self.__dict__["code"].get(f"set {name}")
        if code is not None:
            code()
        self.__dict__[name] = value


@pytest.mark.parametrize("when", ["payload", "metadata", "written_schema", "set written_schema", "wake"])
def test_structures_that_memory_forgets_while_it_is_written_are_written_once_more(when: str) -> None:
    tree = {"a": np.arange(40_000.0), "key" * 100: 1}
    encoder = encoder_of(tree)

    def forget() -> None:
        encoder.forget()
        encoder.remember(metadata_of({"other": 1}), 2, None)
        encoder.remember(metadata_of({"another": 1}), 3, None)

    memory: Any = Memory({when: forget}, 1 << 20)

    found = put(encoder, tree, memory, new_slots())

    assert found[0] == 1 and memory.metadata[: found[1]].tobytes() == metadata_of(tree)
    assert type(put(encoder, tree, memory)) is bytes


@pytest.mark.parametrize("when", ["payload", "metadata", "written_schema", "set written_schema", "wake"])
@pytest.mark.parametrize("size", [0, 1 << 22])
def test_memory_that_moves_while_it_is_written_is_not_written_where_it_was(when: str, size: int) -> None:
    tree = {"a": np.arange(40_000.0), "key" * 100: 1}

    def move() -> None:
        for name in ("payload", "metadata"):
            memory.__dict__[name].resize(size, refcheck=False)

    memory: Any = Memory({when: move}, 1 << 20)

    found = put(encoder_of(tree), tree, memory, new_slots())

    assert len(found) == (4 if size else 2)
    if size:
        assert memory.metadata[: found[1]].tobytes() == metadata_of(tree)
        assert memory.payload[64 : 64 + 320_000].view(F8)[-1] == 39_999.0


@pytest.mark.parametrize("name", ["payload", "metadata", "written_schema", "set written_schema", "wake"])
def test_an_exception_of_the_memory_s_own_code_is_raised(name: str) -> None:
    tree = {"a": np.arange(40_000.0)}

    def fail() -> None:
        raise KeyError(name)

    memory: Any = Memory({name: fail}, 1 << 20)

    with pytest.raises(KeyError, match=name):
        put(encoder_of(tree), tree, memory, new_slots())
    del memory.__dict__["code"][name]
    assert put(encoder_of(tree), tree, memory, new_slots())[0] == 1


def test_a_segment_that_is_closed_while_its_engine_is_woken_is_not_written_to() -> None:
    tree = {"a": np.arange(40_000.0)}
    slots, memory = new_slots(), slot_memory(1 << 20)
    memory.wake = slots.close

    with pytest.raises(TypeError, match="expected open slots"):
        put(encoder_of(tree), tree, memory, slots)


def test_a_slot_that_an_array_s_end_moves_is_written_where_it_is() -> None:
    memory = slot_memory()
    tree = {"a": np.arange(40, dtype=np.uint8), "b": np.arange(8.0)}

    def view_of_the_slot() -> Any:
        view = memory.payload[8:48].view()
        ended.append(weakref.ref(view, lambda _: memory.payload.resize(1 << 24, refcheck=False)))
        return view

    ended: list[Any] = []
    encoder = encoder_with(view_of_the_slot, tree)

    found = put(encoder, {"a": Odd(), "b": tree["b"]}, memory)

    assert found[0] == 1 and memory.payload.size == 1 << 24
    assert memory.payload[64:104].tolist() == [0xAA] * 40
    assert memory.payload[128:192].view(F8).tolist() == list(range(8))


@pytest.mark.parametrize(
    "given",
    [None, 1, (), (0,), (0, 1, 2), ("0", 1), (0.0, 1), [0, 1]],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", repr(given)),
)
def test_a_conversion_that_gives_something_else_is_refused(given: Any) -> None:
    encoder = core.TreeEncoder(lambda value: given)

    with pytest.raises(TypeError, match="a conversion gives"):
        encoder.describe(Odd())


@pytest.mark.parametrize(
    "given",
    [
        (0, Odd()),
        (0, {Odd(): 1}),
        (0, {1.5: 1}),
        (0, np.array([object()])),
        (0, np.zeros(2, ">f8")),
        (0, 1 << 70),
        (1, np.zeros(2)),
        (1, 7),
        (2, None),
        (3, bytearray(9)),
        (3, b"\1" * 17),
        (-1, 1),
        (99, 1),
    ],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", repr(given)),
)
def test_a_conversion_to_a_value_that_is_not_carried_either_describes_nothing(given: Any) -> None:
    assert core.TreeEncoder(lambda value: given).describe(Odd()) is None


@pytest.mark.parametrize(
    "given",
    [(2, np.zeros((2, 3), np.uint16)), (99, np.zeros(3, np.uint16)), (3, b""), (3, b"\1"), (3, b"\0" * 9)],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", repr(given)),
)
def test_a_conversion_to_a_leaf_that_metadata_does_not_have_is_never_remembered(given: Any) -> None:
    encoder = core.TreeEncoder(lambda value: given)
    metadata = encoder.describe(Odd())

    assert metadata is not None
    with pytest.raises(ValueError):
        encoder.remember(metadata, 1, None)
    with pytest.raises(ValueError):
        core.TreeDecoder(metadata)


def test_a_conversion_s_code_is_refused_where_it_has_no_number() -> None:
    with pytest.raises(OverflowError):
        core.TreeEncoder(lambda value: (1 << 70, 1)).describe(Odd())
    with pytest.raises(TypeError):
        core.TreeEncoder(7).describe(Odd())  # type: ignore[arg-type]


def test_an_exception_of_a_value_s_own_code_is_raised_and_the_encoder_works_on() -> None:
    def fail() -> None:
        raise KeyError("broken")

    tree, memory = [np.ones(3), "x", 1.0], slot_memory()
    encoder = encoder_with(fail, tree)
    for _ in range(3):
        with pytest.raises(KeyError, match="broken"):
            put(encoder, [np.ones(3), "x", Odd()], memory)
        with pytest.raises(KeyError, match="broken"):
            encoder.describe([np.ones(3), "x", Odd()])

    assert put(encoder, tree, memory)[0] == 1


def test_trees_that_are_too_deep_or_too_large_or_circles_are_not_carried() -> None:
    encoder = core.TreeEncoder(carried)
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = None
    for _ in range(33):
        deep = [deep]
    for tree in (
        circle,
        deep,
        [None] * (NODE_LIMIT + 1),
        {str(number): None for number in range(NODE_LIMIT + 1)},
        [[None] * (NODE_LIMIT // 2)] * 2,
        [np.float32(1)] * (NODE_LIMIT - 1),  # more metadata than the limit
        np.zeros((1,) * 17),
    ):
        assert encoder.describe(tree) is None
    assert encoder.describe(deep[0]) == metadata_of(deep[0])
    assert encoder.describe([None] * (NODE_LIMIT - 1)) == metadata_of([None] * (NODE_LIMIT - 1))


def test_a_payload_that_a_wrapper_moves_is_read_where_it_is() -> None:
    tree = {"a": np.arange(4.0), "n": 7, "s": "text" * 1000, "list": [0.5] * 500}
    memory = slot_memory(1 << 14)
    payload_bytes = put(encoder_of(tree), tree, memory)[2]
    decoder = decoders_of(tree)[1]
    views = decoder.views(memory.payload, payload_bytes)

    def grow(view: npt.NDArray[Any]) -> Any:
        memory.payload.resize(1 << 24, refcheck=False)
        return 5

    def shrink(view: npt.NDArray[Any]) -> Any:
        memory.payload.resize(0, refcheck=False)
        return 5

    assert decoder.decode_over(memory.payload, payload_bytes, views, grow) == {**tree, "a": 5}
    with pytest.raises(ValueError, match="are needed"):
        decoder.decode_over(memory.payload, payload_bytes, views, shrink)


def test_views_that_a_wrapper_removes_are_an_error() -> None:
    tree, memory = [np.arange(4.0), np.arange(4.0)], slot_memory()
    payload_bytes = put(encoder_of(tree), tree, memory)[2]
    decoder = decoders_of(tree)[1]
    views = decoder.views(memory.payload, payload_bytes)

    def clear(view: npt.NDArray[Any]) -> Any:
        views.clear()
        return view

    with pytest.raises(RuntimeError, match="changed while it was read"):
        decoder.decode_over(memory.payload, payload_bytes, views, clear)

    def replace(view: Any) -> Any:
        views[:] = [None, None]  # type: ignore[list-item]
        return view

    views = decoder.views(memory.payload, payload_bytes)
    assert decoder.decode_over(memory.payload, payload_bytes, views, replace)[1] is None


def test_an_exception_of_a_wrapper_is_raised() -> None:
    tree, memory = [np.arange(4.0)], slot_memory()
    payload_bytes = put(encoder_of(tree), tree, memory)[2]
    decoder = decoders_of(tree)[1]

    def fail(view: npt.NDArray[Any]) -> Any:
        raise KeyError("no tensor")

    with pytest.raises(KeyError, match="no tensor"):
        decoder.decode_over(memory.payload, payload_bytes, decoder.views(memory.payload, payload_bytes), fail)


def test_memory_at_an_odd_address_gives_views_that_say_so() -> None:
    tree, memory = [np.arange(4.0)], slot_memory()
    payload_bytes = put(encoder_of(tree), tree, memory)[2]
    odd = np.zeros(4097, np.uint8)[1:]
    odd[:payload_bytes] = memory.payload[:payload_bytes]

    (view,) = decoders_of(tree)[1].views(odd, payload_bytes)

    assert view.tolist() == [0, 1, 2, 3] and not view.flags.aligned
    again = slot_memory()
    again.payload = odd
    assert put(encoder_of([np.arange(6.0).reshape(2, 3).T]), [np.arange(6.0).reshape(2, 3).T], again)[0] == 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="cycles are collected between two operations of the program")
def test_watches_that_a_collection_of_cycles_ends_are_not_looked_at() -> None:
    words = np.zeros(4, np.uint64)
    pollers = [core.CounterPoller(words.view(np.uint8), 0)]
    words[0] = 1

    class Ending:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            pollers.clear()

    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Ending()
        gc.set_threshold(1)
        kept: list[list[int]] = [[] for _ in range(200)]  # more than Python keeps for the next list
        gc.enable()
        found = core.poll_all(pollers)
    finally:
        gc.enable()
        gc.set_threshold(*before)

    assert (found, pollers, len(kept)) == ([], [], 200)


def test_as_many_watches_as_a_service_has_clients_are_looked_at_together() -> None:
    words = np.zeros(CHANNEL_LIMIT + 4, np.uint64)
    pollers = [core.CounterPoller(words.view(np.uint8), place) for place in range(CHANNEL_LIMIT + 1)]
    words[CHANNEL_LIMIT - 1 : CHANNEL_LIMIT + 1] = 1
    for look in (
        core.poll_first,
        core.poll_all,
        lambda pollers: core.spin(pollers, 0),
        lambda pollers: core.spin_unless_blocked(pollers, 0),
    ):
        with pytest.raises(TypeError, match="256 at most"):
            look(pollers)

    del pollers[-1]

    assert core.poll_all(pollers) == [core.poll_first(pollers)] == [core.spin(pollers, 0)] == [CHANNEL_LIMIT - 1]


def test_a_list_of_watches_holds_nothing_else() -> None:
    words = np.zeros(200, np.uint64).view(np.uint8)
    others: tuple[Any, ...] = (object(), core.Slots(words, 8, 16, 56, 2), np.zeros(4, np.uint64), None)
    for other in others:
        for look in (
            core.poll_first,
            core.poll_all,
            lambda pollers: core.spin(pollers, 0),
            lambda pollers: core.spin_unless_blocked(pollers, 0),
        ):
            with pytest.raises(TypeError, match="something else"):
                look([core.CounterPoller(words, 0), other])


def test_memory_that_words_cannot_lie_in_is_refused() -> None:
    memory = np.zeros(16384, np.uint8)
    for make in (
        lambda memory: core.Slots(memory, 8, 16, 56, 2),
        lambda memory: core.CounterPoller(memory, 0),
        lambda memory: core.Histograms(memory, 0),
        lambda memory: core.CutThroughCopier(memory, 64, 256, 512, 2, 100),
    ):
        make(memory).close()
        for other in (memory[1:], memory[::2]):
            with pytest.raises(ValueError):
                make(other)
        with pytest.raises(TypeError):
            make("memory")
    for place in (-1, 2048, sys.maxsize):
        with pytest.raises(ValueError):
            core.CounterPoller(memory, place)
        with pytest.raises(ValueError):
            core.Histograms(memory, place)


def test_durations_that_are_too_long_together_count_as_the_longest() -> None:
    stats = Stats(create_stats_memory())

    stats.record((1 << 64) - 1, 1, 0, 0)

    assert stats.distribution(Stage.TOTAL).counts[-1] == 1
    stats.close()


def test_a_slot_that_the_segment_does_not_have_is_not_touched() -> None:
    slots = core.Slots(np.zeros(2048, np.uint8), 8, 16, 56, 2)

    assert slots.request(RequestHead, 66) is None
    for call in (
        lambda: slots.publish((66, *[0] * 11)),
        lambda: slots.complete(66, *[0] * 10),
        lambda: slots.take((1 << 64) - 1),
        lambda: slots.cancelled(66),
        lambda: slots.reply(ReplyHead, 66),
    ):
        with pytest.raises(IndexError, match=r"slot \d+ of 2"):
            call()
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            slots.take(number)


def test_a_structure_with_as_many_leaves_as_metadata_has_room_for_is_carried() -> None:
    tree: dict[str, Any] = {f"array {place}": np.full(2, place) for place in range(300)}
    tree |= {f"nested {place}": [np.float32(place), place] for place in range(60)}
    schema, payload_bytes = described(tree, "tree")
    slot = SlotMemory(np.zeros(len(schema.metadata), np.uint8), np.zeros(payload_bytes, np.uint8))
    encoder, decoder = Encoder(), Decoder()
    for _ in range(2):  # described, then recognised
        encoded = encoder.encode(tree, slot)

    assert repr(decoder.decode(slot, *encoded)) == repr(tree)


def test_a_copier_of_slots_that_are_not_in_its_memory_is_refused() -> None:
    memory = np.zeros(2048, np.uint8)
    core.CutThroughCopier(memory, 64, 256, 896, 2, 896).close()
    for places in (
        (-8, 256, 896, 2, 896),
        (60, 256, 896, 2, 896),
        (2040, 256, 896, 2, 896),
        (64, -1, 896, 2, 896),
        (64, 257, 896, 2, 896),
        (64, 256, 897, 2, 896),
        (64, 256, 895, 2, 896),
        (64, 256, 896, 3, 896),
        (64, 256, 896, 0, 896),
        (64, 256, sys.maxsize, 2, 896),
        (64, 256, 896, 2, -1),
    ):
        with pytest.raises(ValueError):
            core.CutThroughCopier(memory, *places)


def test_copiers_are_told_from_what_is_none() -> None:
    words = np.zeros(8, np.uint64).view(np.uint8)
    for other in (object(), core.CounterPoller(words, 0), None):
        with pytest.raises(TypeError, match="something else"):
            core.spin([core.CounterPoller(words, 0)], 0, [other])  # type: ignore[list-item]
    for call in (core.bytes_in_flight, core.abandon):
        with pytest.raises(TypeError):
            call(None)  # type: ignore[arg-type]
    copier = core.CutThroughCopier(np.zeros(2048, np.uint8), 64, 256, 896, 2, 896)
    locked = np.zeros(10, np.uint8)
    locked.flags.writeable = False
    for arena in (locked, np.zeros((2, 5), np.uint8), b"0" * 10):
        with pytest.raises((TypeError, ValueError)):
            copier.set_target(arena)  # type: ignore[arg-type]


def test_a_long_spin_handles_signals_and_releases_the_memory() -> None:
    words = np.zeros(8, np.uint64)
    poller = core.CounterPoller(words.view(np.uint8), 0)

    def interrupt(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            core.spin_unless_blocked([poller], 1 << 62)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert sys.getrefcount(poller) == 2
    poller.close()
    words.resize(16)  # nothing views it any more


def test_a_long_spin_yields_the_cpu_to_the_writer() -> None:
    words = np.zeros(8, np.uint64)
    poller = core.CounterPoller(words.view(np.uint8), 0)
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        words[COUNTER_LINE.offset("processor") // 8] = here + 1

        assert core.spin_unless_blocked([poller], 1 << 62) == 0

        words[0] = 1
        assert core.spin_unless_blocked([poller], 1 << 62) > 0
        assert core.spin_unless_blocked([poller], 0) > 0
    finally:
        os.sched_setaffinity(0, allowed)
