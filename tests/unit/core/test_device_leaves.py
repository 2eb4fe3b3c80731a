"""Arrays in GPU memory in the codec: described and laid out, not copied, and refused by whoever has no such memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shmserve import pure
from shmserve.carried_values import ON_DEVICE, carried
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.errors import DeviceArrayRefused
from shmserve.metadata import Leaf, MetadataError, dump
from shmserve.schema import Schema
from tests.support.native import NATIVE, core

ENCODERS: list[Any] = [pure.TreeEncoder, core.TreeEncoder] if NATIVE else [pure.TreeEncoder]


class OnGpu:
    """What a client's own conversion takes for an array in GPU memory."""

    def __init__(self, dtype: str, *shape: int) -> None:
        self.described = dtype, shape


class Taker:
    """Of an encoder: what it met since `begin`."""

    def __init__(self, refusal: str | None = None) -> None:
        self.met: list[OnGpu] = []
        self._refusal = refusal

    def begin(self) -> None:
        self.met = []

    def convert(self, value: Any) -> tuple[int, Any]:
        if type(value) is not OnGpu:
            return carried(value)
        if self._refusal is not None:
            raise DeviceArrayRefused(self._refusal, reason="off")
        self.met.append(value)
        return ON_DEVICE, value.described


def tree() -> dict[str, Any]:
    return {
        "image": OnGpu("|u1", 480, 640, 3),
        "state": np.arange(5, dtype=np.float32),
        "nested": [OnGpu("<bf2", 3), {"step": 7, "empty": OnGpu("<f4", 0, 4), "scalar": OnGpu("<f8")}],
        "task": "fold",
    }


def slot() -> SlotMemory:
    return SlotMemory(np.zeros(1024, np.uint8), np.full(4096, 0xEE, np.uint8))


def test_their_sizes_are_words_and_their_bytes_lie_elsewhere() -> None:
    memory, taker = slot(), Taker()

    encoded = Encoder(on_device=taker).encode(tree(), memory)

    assert [array.described for array in taker.met] == [
        ("|u1", (480, 640, 3)),
        ("<bf2", (3,)),
        ("<f4", (0, 4)),
        ("<f8", ()),
    ]
    schema = Schema(memory.metadata[: encoded.metadata_bytes].tobytes())
    places = schema.layout(memory.payload, encoded.payload_bytes)
    assert [(place.kind, place.dtype, place.shape, place.offset, place.size) for place in places] == [
        ("device", "|u1", (480, 640, 3), 0, 921_600),
        ("array", "<f4", (5,), 128, 20),
        ("device", "<bf2", (3,), 921_600, 6),
        ("device", "<f4", (0, 4), 921_856, 0),
        ("device", "<f8", (), 921_856, 8),
        ("str", "|u1", (4,), 192, 4),
    ]
    assert encoded.payload_bytes == 196
    assert memory.payload[128:148].view(np.float32).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("encoder_type", ENCODERS, ids=lambda kind: kind.__module__)
def test_every_backend_writes_the_same(encoder_type: Any) -> None:
    encoders = [kind(Taker().convert) for kind in (pure.TreeEncoder, encoder_type)]
    slots = [slot(), slot()]
    found = []
    for encoder, memory in zip(encoders, slots, strict=True):
        metadata: Any = encoder.describe(tree())
        encoder.remember(metadata, 3, None)
        found.append((metadata, encoder.encode_into(tree(), memory, None, 0, True)))

    assert found[0] == found[1]
    assert slots[0].metadata.tobytes() == slots[1].metadata.tobytes()
    assert slots[0].payload.tobytes() == slots[1].payload.tobytes()


@pytest.mark.skipif(not NATIVE, reason="of the native core")
@pytest.mark.parametrize(
    "described", [("<f4", (1,) * 17), ("float", (1,)), ("<f4", (-1,)), ("<f4", [1]), (1, (1,)), "<f4"]
)
def test_a_conversion_that_describes_no_array_is_refused(described: Any) -> None:
    encoder = core.TreeEncoder(lambda value: (ON_DEVICE, described))
    found: Any = None

    try:
        found = encoder.describe({"x": object()})
    except Exception as error:  # noqa: BLE001
        found = error

    assert found is None or isinstance(found, (TypeError, ValueError, OverflowError)), found


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_refused_one_is_named_by_its_place_and_never_pickled(allow_pickle: bool) -> None:
    encoder = Encoder(on_device=Taker("it stays there"), allow_pickle=allow_pickle)

    with pytest.raises(DeviceArrayRefused, match=r"observation\['a'\]\[0\]: it stays there") as refused:
        encoder.encode({"a": [OnGpu("<f4", 2)], "b": object()}, slot())

    assert refused.value.reason == "off"


def test_a_reader_without_gpu_memory_refuses_the_tree_and_says_what_to_send() -> None:
    memory = slot()
    encoded = Encoder(on_device=Taker()).encode(tree(), memory)

    for schema in (1, 2):
        with pytest.raises(MetadataError, match=r"lies in GPU memory.*\.cpu\(\)\.numpy\(\)"):
            Decoder().decode(memory, schema, encoded.metadata_bytes, encoded.payload_bytes)


def test_an_older_reader_refuses_the_kind() -> None:
    metadata = dump({"x": Leaf("device", "<f4", 1)})

    with pytest.raises(MetadataError, match=r"a leaf's kind cannot be 'devicf'"):
        Schema(metadata.replace(b"device", b"devicf"))
