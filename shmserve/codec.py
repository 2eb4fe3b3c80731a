"""Codec between a tree of arrays and the bytes of a slot.

Metadata (the schema, as safe pickle-5 bytes) is written to a slot only when the slot last held
another schema; after that a request costs its payload bytes alone. Every slot holds the metadata of
its own request, so a new engine needs nothing from the old one to read it.

>>> import numpy as np
>>> slot = SlotMemory(np.zeros(256, np.uint8), np.zeros(256, np.uint8))
>>> encoded = Encoder().encode({"state": np.array([1, 2], np.uint16), "step": 7}, slot)
>>> encoded.metadata_bytes, encoded.payload_bytes
(64, 68)
>>> bytes(slot.payload[:8]).hex(" "), bytes(slot.payload[64:68]).hex(" ")   # the number, then the array
('07 00 00 00 00 00 00 00', '01 00 02 00')
>>> Decoder().decode(slot, *encoded)
{'state': array([1, 2], dtype=uint16), 'step': 7}
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .backend import NATIVE, core
from .base_values import error_text, plain_tree
from .errors import RequestRejected, UnsupportedType
from .metadata import MetadataError
from .objects import pickled, unpickled
from .schema import BFLOAT16, Array, LeafLayout, Schema
from .structure_guard import ContainerGuard, StructureGuard, infer_schema

_copy = np.ndarray.copy
#: Result of `TreeEncoder.encode_into` for a tree that is larger than its slot; a greater one is the id of an announced write.
_TOO_LARGE = 2

#: Structures that one side remembers; a robot uses one or two.
SCHEMA_MEMORY = 64
#: Latest structures whose guards a tree is checked against before its schema is inferred anew.
GUARD_MEMORY = 4


class Encoded(NamedTuple):
    """Contents of a slot, as its head describes them."""

    schema: int
    metadata_bytes: int
    payload_bytes: int
    pickled: bool = False


class DoesNotFit(Exception):
    """The tree needs a larger slot, with this room for metadata and payload."""

    def __init__(self, metadata_bytes: int, payload_bytes: int) -> None:
        super().__init__(f"{metadata_bytes} bytes of metadata and {payload_bytes} of payload")
        self.metadata_bytes = metadata_bytes
        self.payload_bytes = payload_bytes


class _LeafViews(dict[Schema, list[Array]]):
    """Views of each structure's arrays in one slot's payload, made once. A hit of the dict costs no call."""

    def __init__(self, payload: npt.NDArray[np.uint8]) -> None:
        self._payload = payload

    def __missing__(self, schema: Schema) -> list[Array]:
        if len(self) >= GUARD_MEMORY:
            del self[next(iter(self))]
        views = self[schema] = [place.view(self._payload) for place in schema.arrays]
        return views


class _PrefixViews(dict[int, Array]):
    """Views of the first n bytes of one slot's payload, by n."""

    def __init__(self, payload: npt.NDArray[np.uint8]) -> None:
        self._payload = payload

    def __missing__(self, size: int) -> Array:
        if len(self) >= GUARD_MEMORY:
            del self[next(iter(self))]
        prefix = self[size] = self._payload[:size]
        return prefix


class SlotMemory:
    """Metadata and payload of one slot, with the cached views of them."""

    def __init__(self, metadata: npt.NDArray[np.uint8], payload: npt.NDArray[np.uint8]) -> None:
        self.metadata = metadata
        self.payload = payload
        #: Bytes of payload.
        self.room = payload.size
        #: The payload's bytes, for the numbers at its start.
        self.raw = payload.data
        self.written_schema: int | None = None
        #: The segment whose words announce the progress of a large write; None: not announced. `slot`: the slot's number.
        self.progress_words: core.Slots | None = None
        self.slot = 0
        #: Wakes the other side during a very large write.
        self.wake: Callable[[], object] | None = None
        #: The id of the announced write that filled the payload; 0: it was not announced.
        self.write_id = 0
        self.leaf_views = _LeafViews(payload)
        self.prefix_views = _PrefixViews(payload)


class CachedSchema(StructureGuard):
    """A structure that was sent before, with its guard and the description for a slot's head."""

    def __init__(self, schema: Schema, schema_id: int, guard: ContainerGuard) -> None:
        super().__init__(schema, schema_id, guard)
        self.encoded = Encoded(schema_id, len(schema.metadata), schema.payload_bytes)
        self.metadata_bytes = len(schema.metadata)
        #: The native encoder, which checks the guard and copies, and its method; None in pure Python.
        self.encoder: core.TreeEncoder | None = None
        self.encode_into: Callable[..., int] | None = None
        if NATIVE:
            places = tuple((place.offset, place.size, place.stored_as) for place in schema.arrays)
            self.encoder = core.TreeEncoder(guard.spec(), self.wrapped, places, schema.payload_bytes)
            self.encode_into = self.encoder.encode_into


class Encoder:
    """Writes trees into slots; one for each direction of a channel, across its generations."""

    def __init__(
        self,
        *,
        first_schema: int = 1,
        allow_pickle: bool = False,
        tensors_as_arrays: bool = False,
        name: str = "observation",
    ) -> None:
        self._next_schema = first_schema
        self.allow_pickle = allow_pickle
        #: For pickled objects; the safe form carries tensors as arrays.
        self._tensors_as_arrays = tensors_as_arrays
        self._name = name
        self._ids: OrderedDict[bytes, int] = OrderedDict()
        self._cached: list[CachedSchema] = []
        #: Called with the first tree of each structure, as its receiver will see it, before any byte is written; `encode`
        #: lets its exceptions through.
        self.examine: Callable[[Any], object] | None = None

    @property
    def latest(self) -> CachedSchema | None:
        """The most recently used cached schema, or None."""
        return self._cached[0] if self._cached else None

    def forget(self) -> None:
        """Infer and examine the schema of every structure anew."""
        self._cached = []

    def encode(self, tree: Any, slot: SlotMemory, *, lent: bool = False) -> Encoded:
        """Write `tree` into `slot` with one copy of its arrays.

        `lent` says that arrays in `tree` may be memory of this very slot: one that lies where it belongs
        is not copied. Raises DoesNotFit (nothing was published, the slot may be written again),
        UnsupportedType or RequestRejected.
        """
        slot.write_id = 0
        for cached in self._cached:
            try:
                if cached.encode_into is None or lent:
                    leaves = cached.flatten(tree)
                    if leaves is not None:
                        if cached is not self._cached[0]:
                            self._to_front(cached)
                        return self._write(cached, leaves, slot, lent=lent)
                elif found := cached.encode_into(tree, slot.payload, slot.progress_words, slot.slot, slot.wake):
                    if found == _TOO_LARGE or slot.written_schema != cached.schema_id:
                        self._write_metadata(cached, slot)
                    if found > _TOO_LARGE:
                        slot.write_id = found
                    if cached is not self._cached[0]:
                        self._to_front(cached)
                    return cached.encoded
            except DoesNotFit:
                raise
            except Exception:  # noqa: BLE001, S112
                continue  # a number beyond 64 bits, a tensor turned sparse, a change during the read: infer the schema anew
        return self._describe_and_write(tree, slot, lent=lent)

    def encode_apart(self, tree: Any, slot: SlotMemory) -> Encoded:
        """Encode a tree other than an observation: it is not examined and not remembered."""
        slot.write_id = 0
        cached = self._known(*infer_schema(tree, self._name))
        return self._write(cached, self._leaves(cached, tree), slot)

    def _describe_and_write(self, tree: Any, slot: SlotMemory, *, lent: bool) -> Encoded:
        try:
            schema, guard = infer_schema(tree, self._name)
        except RequestRejected:
            if not self.allow_pickle:
                raise
            return self._pickle(tree, slot, lent=lent)
        if self.examine is not None:
            self.examine(plain_tree(tree, self._name))
        cached = self._known(schema, guard)
        leaves = self._leaves(cached, tree)
        self._cached = [cached, *self._cached[: GUARD_MEMORY - 1]]
        return self._write(cached, leaves, slot, lent=lent)

    def _leaves(self, cached: CachedSchema, tree: Any) -> tuple[list[Any], list[Array]]:
        try:
            leaves = cached.flatten(tree)
        except (RequestRejected, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
                raise  # the device's, which is not the tree's fault
            raise UnsupportedType(f"{self._name}: a value cannot be carried ({error_text(error)})") from error
        if leaves is None:
            raise RequestRejected(f"{self._name} changed while it was read; do not write to it from another thread")
        return leaves

    def _known(self, schema: Schema, guard: ContainerGuard) -> CachedSchema:
        schema_id = self._ids.get(schema.metadata)
        if schema_id is None:
            schema_id = self._next_schema
            self._next_schema += 1
            self._ids[schema.metadata] = schema_id
            if len(self._ids) > SCHEMA_MEMORY:
                self._ids.popitem(last=False)
        return CachedSchema(schema, schema_id, guard)

    def _to_front(self, cached: CachedSchema) -> None:
        self._cached = [cached, *(other for other in self._cached if other is not cached)]

    def _write(
        self, cached: CachedSchema, leaves: tuple[list[Any], list[Array]], slot: SlotMemory, *, lent: bool = False
    ) -> Encoded:
        schema = cached.schema
        self._write_metadata(cached, slot)
        numbers, arrays = leaves
        views = slot.leaf_views[schema]
        if lent:
            arrays = [_apart(array, view, slot) for view, array in zip(views, arrays, strict=True)]
        if numbers:
            schema.numbers.pack_into(slot.raw, 0, *numbers)
        # Not memoryview assignment: numpy takes any strides and lets other threads run. np.copyto, which would do
        # the same, has more of a call around it.
        for view, array in zip(views, arrays):  # noqa: B905  the guard has flattened as many
            if array is not view:  # it is, where a loan was filled in
                view[...] = array
        return cached.encoded

    def _write_metadata(self, cached: CachedSchema, slot: SlotMemory) -> None:
        """Write the metadata unless the slot has it; raises DoesNotFit if the tree does not fit."""
        schema = cached.schema
        if schema.payload_bytes > slot.room or len(schema.metadata) > slot.metadata.size:
            raise DoesNotFit(len(schema.metadata), schema.payload_bytes)
        if slot.written_schema != cached.schema_id:
            slot.written_schema = None  # an interrupt may come between the bytes and this note
            slot.metadata[: len(schema.metadata)] = np.frombuffer(schema.metadata, np.uint8)
            slot.written_schema = cached.schema_id

    def lay_out(self, example: Any, slot: SlotMemory) -> tuple[Any, list[Array]]:
        """Write `example`; returns a copy of its tree whose arrays are memory of the slot, and these arrays.

        Every other leaf keeps its value, and so does bfloat16, for which numpy has no dtype.
        """
        encoded = self.encode(example, slot)
        if encoded.pickled:
            raise UnsupportedType(f"a loan cannot be made for this {self._name}: it holds objects that are pickled")
        schema = next(cached.schema for cached in self._cached if cached.schema_id == encoded.schema)
        views = slot.leaf_views[schema]
        arrays: list[Array] = []
        leaves = []
        for place, view in zip(schema.arrays, views, strict=True):
            if place.kind == "array" and place.dtype != BFLOAT16:
                arrays.append(view[...])  # a new array, to be made read-only when the loan ends
                leaves.append(arrays[-1])
            else:
                leaves.append(owned_array(place, view))
        return schema.unflatten(schema.numbers.unpack_from(slot.raw, 0), leaves), arrays

    def _pickle(self, tree: Any, slot: SlotMemory, *, lent: bool) -> Encoded:
        """Encode any Python object as (pickle bytes, out-of-band buffers), both in the safe form."""
        tree = plain_tree(tree, self._name)  # the types of the safe form, wherever it has one
        if self.examine is not None:
            self.examine(tree)
        data, buffers = pickled(tree, self._name, tensors_as_arrays=self._tensors_as_arrays)
        parts = (np.frombuffer(data, np.uint8), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])
        cached = self._known(*infer_schema(parts, self._name))
        encoded = self._write(cached, self._leaves(cached, parts), slot, lent=lent)
        return Encoded(encoded.schema, encoded.metadata_bytes, encoded.payload_bytes, pickled=True)


def _apart(array: Array, view: Array, slot: SlotMemory) -> Array:
    """Return `array` ready to be copied to `view`: a private copy if an earlier write could overwrite it."""
    if array is view or not np.may_share_memory(array, slot.payload):
        return array
    lies, belongs = array.__array_interface__, view.__array_interface__
    if all(lies[key] == belongs[key] for key in ("data", "strides", "shape", "typestr")):
        return view
    private: Array = array.copy()
    return private


def unpickle_parts(parts: Any, name: str = "observation") -> Any:
    """Rebuild the object from the two parts that `Encoder` made of it; only for a trusted sender.

    Raises UnsupportedType for a class that cannot be imported here, or whose own code raises.
    """
    data, buffers = parts
    return unpickled(data.tobytes(), [np.asarray(buffer) for buffer in buffers], name)


class Schemas:
    """Schemas that a peer has sent on one channel, by the peer's numbers for them."""

    def __init__(self) -> None:
        #: Those that were read; `get` checks a slot's head as well.
        self.known: OrderedDict[int, Schema] = OrderedDict()

    def get(self, schema_id: int, metadata_bytes: int, payload_bytes: int, slot: SlotMemory) -> Schema:
        """Return the schema of a slot: remembered, or read from a private copy of the slot's metadata.

        Raises MetadataError for metadata that cannot be read or does not match the lengths given.
        """
        schema = self.known.get(schema_id)
        if schema is None:
            if not 0 < metadata_bytes <= slot.metadata.size:
                raise MetadataError(f"{metadata_bytes} bytes of metadata in a slot of {slot.metadata.size}")
            schema = Schema.from_metadata(slot.metadata[:metadata_bytes].tobytes())
            self.known[schema_id] = schema
            if len(self.known) > SCHEMA_MEMORY:
                self.known.popitem(last=False)
        if schema.payload_bytes != payload_bytes or payload_bytes > slot.room:
            raise MetadataError(
                f"{payload_bytes} bytes of payload in a slot of {slot.room}; "
                f"the schema describes {schema.payload_bytes}"
            )
        return schema


LeafReader = Callable[[LeafLayout, Array], Any]


def plain_leaf(place: LeafLayout, view: Array) -> Any:
    """Return a leaf that is not an array: a numpy scalar, bytes, a string, or a list of numbers."""
    if place.kind == "bytes":
        return view.tobytes()
    if place.kind == "str":
        try:
            return view.tobytes().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise MetadataError(f"a string of {place.size} bytes is not UTF-8 at byte {error.start}") from None
    if place.kind == "list":
        return view.tolist()
    return named_dtype(place, view)[()]


def named_dtype(place: LeafLayout, view: Array) -> Array:
    """Return `view`, or for bfloat16 an array of ml_dtypes' dtype if that is loaded, else float32 of the same values."""
    if place.dtype != BFLOAT16:
        return view
    ml_dtypes = sys.modules.get("ml_dtypes")
    if ml_dtypes is not None:
        return view.view(ml_dtypes.bfloat16)
    return (view.astype(np.uint32) << 16).view(np.float32)


def owned_array(place: LeafLayout, view: Array) -> Any:
    """Return a leaf that owns its memory and is writable."""
    if place.kind != "array":
        return plain_leaf(place, view)
    if place.dtype == BFLOAT16:
        return named_dtype(place, view.copy())
    return view.copy()


class Decoder:
    """Reads trees out of slots; one for each direction of a channel, across its generations."""

    def __init__(self, *, allow_pickle: bool = False, name: str = "action") -> None:
        self._schemas = Schemas()
        #: The structures that were read before, by the other side's number for them.
        self.known: Mapping[int, Schema] = self._schemas.known
        self._allow_pickle = allow_pickle
        self._name = name

    def decode(
        self,
        slot: SlotMemory,
        schema_id: int,
        metadata_bytes: int,
        payload_bytes: int,
        pickled: bool = False,
        read_leaf: LeafReader | None = None,
    ) -> Any:
        """Return the tree in `slot`, whose head says this (`Encoded`); raises MetadataError for invalid bytes.

        The caller owns its arrays, unless `read_leaf` makes something else of them.
        """
        schema = self._schemas.known.get(schema_id)
        if schema is None or schema.payload_bytes != payload_bytes or payload_bytes > slot.room:
            schema = self._schemas.get(schema_id, metadata_bytes, payload_bytes, slot)
        decoder = schema.decoder
        if decoder is not None and read_leaf is None and schema.is_all_arrays:
            tree = decoder.decode(slot.payload)
        else:
            views = slot.leaf_views[schema]
            if read_leaf is None and schema.is_all_arrays:
                arrays: list[Any] = [*map(_copy, views)]
            else:
                read_leaf = read_leaf or owned_array
                arrays = [read_leaf(place, view) for place, view in zip(schema.arrays, views, strict=True)]
            tree = schema.unflatten(schema.numbers.unpack_from(slot.raw, 0), arrays)
        if not pickled:
            return tree
        if not self._allow_pickle:
            raise MetadataError("a pickled object from a peer that is not trusted")
        return unpickle_parts(tree, self._name)
