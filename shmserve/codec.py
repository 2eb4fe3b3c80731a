"""Codec between a tree of arrays and the bytes of a slot.

Metadata (the structure, as safe pickle-5 bytes) is written to a slot only when the slot last held another structure; after
that a request costs its payload bytes alone, whatever the lengths of its arrays and texts. Every slot holds the metadata of
its own request, so a new engine needs nothing from the old one to read it.

>>> import numpy as np
>>> slot = SlotMemory(np.zeros(256, np.uint8), np.zeros(256, np.uint8))
>>> encoded = Encoder().encode({"state": np.array([1, 2], np.uint16), "step": 7}, slot)
>>> encoded.metadata_bytes, encoded.payload_bytes
(49, 68)
>>> bytes(slot.payload[:16]).hex(" ", 8), bytes(slot.payload[64:68]).hex(" ")   # the size, the number; then the array
('0200000000000000 0700000000000000', '01 00 02 00')
>>> Decoder().decode(slot, *encoded)
{'state': array([1, 2], dtype=uint16), 'step': 7}
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .backend import TreeDecoder, TreeEncoder
from .base_values import plain_tree
from .carried_values import BFLOAT16, carried
from .errors import DeviceArrayRefused, RequestRejected, UnsupportedType
from .flatten import changed_error, flatten
from .metadata import NODE_LIMIT, MetadataError
from .objects import pickled, unpickled
from .schema import Array, LeafPlace, Schema
from .tree_reader import leaf_value

if TYPE_CHECKING:
    from .backend import Slots

#: Structures that one side remembers, those that were used last; a robot uses one or two.
SCHEMA_MEMORY: Final = 64
#: Structures of the peer that are forgotten once there are too many.
_FORGOTTEN: Final = 8
#: Length of the result of `encode_into` for a tree that is larger than its slot.
_NEEDED: Final = 2


class Encoded(NamedTuple):
    """Contents of a slot, as its head describes them."""

    schema: int
    metadata_bytes: int
    payload_bytes: int
    pickled: bool = False


#: Contents of the slot of a request without a tree: a reset.
NOTHING: Final = Encoded(0, 0, 0)


class DoesNotFit(Exception):
    """The tree needs a larger slot, with this room for metadata and payload, and for arrays in GPU memory."""

    def __init__(self, metadata_bytes: int, payload_bytes: int, device_bytes: int = 0) -> None:
        on_device = f" and {device_bytes} in GPU memory" if device_bytes else ""
        super().__init__(f"{metadata_bytes} bytes of metadata and {payload_bytes} of payload{on_device}")
        self.metadata_bytes = metadata_bytes
        self.payload_bytes = payload_bytes
        self.device_bytes = device_bytes


class SlotMemory:
    """Metadata and payload of one slot."""

    def __init__(self, metadata: npt.NDArray[np.uint8], payload: npt.NDArray[np.uint8]) -> None:
        self.metadata = metadata
        self.payload = payload
        #: Bytes of payload.
        self.room = payload.size
        #: The payload's bytes.
        self.raw = payload.data
        self.written_schema: int | None = None
        #: The segment whose words announce the progress of a large write; None: not announced. `slot`: the slot's number.
        self.progress_words: Slots | None = None
        self.slot = 0
        #: Wakes the other side during a very large write.
        self.wake: Callable[[], object] | None = None
        #: The id of the announced write that filled the payload; 0: it was not announced.
        self.write_id = 0


#: Examines the first tree of each structure, and each tree of other sizes than it has returned: for each size the one that
#: is declared, or -1.
Examine = Callable[[Any], "tuple[int, ...] | None"]


def _nothing() -> None:
    """Take no arrays in GPU memory."""


class OnDevice(Protocol):
    """Takes the arrays in GPU memory that an encoder meets, whose bytes the codec does not copy."""

    def begin(self) -> None:
        """Forget the arrays of an earlier walk."""

    def convert(self, value: Any, /) -> tuple[int, Any]:
        """As `carried`, or ON_DEVICE and (dtype, shape); raises DeviceArrayRefused."""


class Encoder:
    """Writes trees into slots; one for each direction of a channel, across its generations."""

    def __init__(
        self,
        *,
        numbers: Iterator[int] | None = None,
        allow_pickle: bool = False,
        tensors_as_arrays: bool = False,
        name: str = "observation",
        on_device: OnDevice | None = None,
    ) -> None:
        #: Of the structures; shared by all encoders whose receiver may be the same. None: from 1.
        self._numbers = itertools.count(1) if numbers is None else numbers
        self.allow_pickle = allow_pickle
        #: For pickled objects; the safe form carries tensors as arrays.
        self._tensors_as_arrays = tensors_as_arrays
        self._name = name
        self._ids: OrderedDict[bytes, int] = OrderedDict()
        #: Describes and copies, in the backend's own code; remembers SCHEMA_MEMORY structures.
        self._convert = carried if on_device is None else on_device.convert
        self._begin: Callable[[], None] = _nothing if on_device is None else on_device.begin
        self.trees = TreeEncoder(self._convert)
        #: Called with a tree as its receiver will see it, before any byte is written; `encode` lets its exceptions through.
        self.examine: Examine | None = None

    def forget(self) -> None:
        """Examine every structure anew."""
        self.trees.forget()

    def encode(self, tree: Any, slot: SlotMemory) -> Encoded:
        """Write `tree` into `slot` with one copy of its arrays.

        An array that lies in its place in the slot already is not copied. Raises DoesNotFit (nothing was published, the slot
        may be written again), UnsupportedType or RequestRejected.
        """
        found = self._encode(tree, slot, self.examine)
        if found is not None:
            return found
        tree = plain_tree(tree, self._name)  # the types of the safe form, wherever it has one
        if self.examine is not None:
            self.examine(tree)
        self._begin()  # a pickle has the bytes of every array
        data, buffers = pickled(tree, self._name, tensors_as_arrays=self._tensors_as_arrays)
        parts = (np.frombuffer(data, np.uint8), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])
        encoded = self._encode(parts, slot, None)
        if encoded is None:
            raise RequestRejected(f"{self._name} is made of more than {NODE_LIMIT} buffers")
        return encoded._replace(pickled=True)

    def _encode(self, tree: Any, slot: SlotMemory, examine: Examine | None) -> Encoded | None:
        """Encode in the safe form; return None for a tree that has to be pickled."""
        slot.write_id = 0
        self._begin()
        failure: Exception | None = None
        found: Any = None
        try:
            found = self.trees.encode_into(tree, slot, slot.progress_words, slot.slot, examine is None)
        except Exception as error:  # noqa: BLE001  a value's own code, or a change during the read
            failure = error
        if type(found) is bytes:
            expected = None if examine is None else examine(plain_tree(tree, self._name))
            self.trees.remember(found, self._id(found), expected)
            failure, found = None, self._write(tree, slot)
        if type(found) is not tuple:
            self._refuse(tree, failure)
            return None
        if len(found) == _NEEDED:
            raise DoesNotFit(*found)
        *described, slot.write_id = found
        return Encoded(*described)

    def learn(self, tree: Any) -> bool:
        """Examine and remember the structure of a tree, for the fast path; return False where `encode` would raise."""
        try:
            metadata = self.trees.describe(tree)
            if metadata is None:
                return False
            expected = None if self.examine is None else self.examine(plain_tree(tree, self._name))
            self.trees.remember(metadata, self._id(metadata), expected)
        except Exception:  # noqa: BLE001  of the tree's own code, or a refusal that `encode` raises again
            return False
        return True

    def _write(self, tree: Any, slot: SlotMemory) -> Any:
        """Write a tree of a structure that is remembered, whatever its sizes are."""
        self._begin()
        try:
            return self.trees.encode_into(tree, slot, slot.progress_words, slot.slot, True)
        except Exception as error:
            raise changed_error(self._name, error) from error

    def _refuse(self, tree: Any, failure: Exception | None) -> None:
        """Raise the reason why a tree cannot be carried, or return None where it may be pickled."""
        if self.allow_pickle and failure is None:
            return
        try:
            flatten(tree, self._name, self._convert)
        except (MemoryError, DeviceArrayRefused):
            raise
        except RequestRejected:
            if not self.allow_pickle:
                raise
            return
        raise changed_error(self._name, failure) from failure

    def _id(self, metadata: bytes) -> int:
        schema_id = self._ids.get(metadata)
        if schema_id is None:
            schema_id = next(self._numbers)
            self._ids[metadata] = schema_id
            if len(self._ids) > SCHEMA_MEMORY:
                self._ids.popitem(last=False)
        else:
            self._ids.move_to_end(metadata)
        return schema_id

    def lay_out(self, example: Any, slot: SlotMemory) -> tuple[Any, list[Array]]:
        """Write `example`; returns a copy of its tree whose arrays are memory of the slot, and these arrays.

        Every other leaf keeps its value, and so does bfloat16, for which numpy has no dtype.
        """
        encoded = self.encode(example, slot)
        if encoded.pickled:
            raise UnsupportedType(f"a loan cannot be made for this {self._name}: it holds objects that are pickled")
        schema = schema_of(slot.metadata[: encoded.metadata_bytes].tobytes())
        if schema.reader.has_device:
            raise UnsupportedType(
                f"a loan cannot be made for this {self._name}: it has arrays in GPU memory; send those with infer() or submit()"
            )
        arrays: list[Array] = []

        def read_leaf(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
            if place.kind != "array" or place.dtype == BFLOAT16:
                return owned_leaf(place, payload)
            arrays.append(place.view(payload)[...])  # a new array, to be made read-only when the loan ends
            return arrays[-1]

        return read_tree(schema, slot.payload, encoded.payload_bytes, read_leaf), arrays


def unpickle_parts(parts: Any, name: str = "observation") -> Any:
    """Rebuild the object from the two parts that `Encoder` made of it; only for a trusted sender.

    Raises UnsupportedType for a class that cannot be imported here, or whose own code raises.
    """
    data, buffers = parts
    return unpickled(data.tobytes(), [np.asarray(buffer) for buffer in buffers], name)


@functools.lru_cache(maxsize=SCHEMA_MEMORY)
def schema_of(metadata: bytes) -> Schema:
    """Return the schema of these bytes, those that were used last without reading them again; raises MetadataError."""
    return Schema(metadata)


def described(tree: Any, name: str) -> tuple[Schema, int]:
    """Return the schema of a tree that errors call `name`, and the bytes of its payload; raises as `Encoder.encode`."""
    flat = flatten(tree, name)
    schema = Schema(flat.metadata)
    try:
        return schema, schema.reader.payload_bytes(flat.sizes)
    except ValueError as error:
        raise RequestRejected(f"{name}: {error}") from error


class Schemas:
    """Schemas that a peer has sent on one channel, by the peer's numbers for them."""

    def __init__(self) -> None:
        #: Those that were read.
        self.known: dict[int, Schema] = {}
        #: Their decoders, for the fast path.
        self.decoders: dict[int, TreeDecoder] = {}

    def get(self, schema_id: int, metadata_bytes: int, slot: SlotMemory) -> Schema:
        """Return the schema of a slot: remembered, or read from a private copy of the slot's metadata.

        Raises MetadataError for metadata that cannot be read or does not match the length given.
        """
        schema = self.known.get(schema_id)
        if schema is not None:
            return schema
        if not 0 < metadata_bytes <= slot.metadata.size:
            raise MetadataError(f"{metadata_bytes} bytes of metadata in a slot of {slot.metadata.size}")
        schema = Schema(slot.metadata[:metadata_bytes].tobytes())
        if len(self.known) >= SCHEMA_MEMORY:
            # Several at once: to find the oldest takes as long as to read a structure.
            for oldest in sorted(self.decoders, key=lambda number: self.decoders[number].last_used)[:_FORGOTTEN]:
                self.known.pop(oldest, None)
                del self.decoders[oldest]
        self.known[schema_id], self.decoders[schema_id] = schema, schema.decoder
        return schema


#: Makes a leaf of its place and the payload.
LeafReader = Callable[[LeafPlace, "npt.NDArray[np.uint8]"], Any]


def read_tree(schema: Schema, payload: npt.NDArray[np.uint8], payload_bytes: int, read_leaf: LeafReader) -> Any:
    """Return the tree of a payload whose leaves `read_leaf` makes; raises MetadataError for sizes that cannot be."""
    places = schema.layout(payload, payload_bytes)
    leaves = [read_leaf(place, payload) for place in places]
    return schema.reader.unflatten(schema.reader.numbers(payload), leaves)


def plain_leaf(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
    """Return a leaf that is not an array: a numpy scalar, bytes, a string, or a list of numbers."""
    if place.dtype == BFLOAT16:
        return named_dtype(place, place.view(payload))[()]
    try:
        return leaf_value(place, payload)
    except UnicodeDecodeError as error:
        raise MetadataError(f"a string of {place.size} bytes is not UTF-8 at byte {error.start}") from None


def named_dtype(place: LeafPlace, view: Array) -> Array:
    """Return `view`, or for bfloat16 an array of ml_dtypes' dtype if that is loaded, else float32 of the same values."""
    if place.dtype != BFLOAT16:
        return view
    ml_dtypes = sys.modules.get("ml_dtypes")
    if ml_dtypes is not None:
        return view.view(ml_dtypes.bfloat16)
    return (view.astype(np.uint32) << 16).view(np.float32)


def owned_leaf(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
    """Return a leaf that owns its memory and is writable."""
    if place.kind != "array":
        return plain_leaf(place, payload)
    return named_dtype(place, place.view(payload).copy())


def owned_tree(schema: Schema, payload: npt.NDArray[np.uint8], payload_bytes: int) -> Any:
    """Return the tree of a payload, whose arrays the caller owns; raises MetadataError."""
    if schema.decoder.is_complete:
        return schema.decode(payload, payload_bytes)
    return read_tree(schema, payload, payload_bytes, owned_leaf)


class Decoder:
    """Reads trees out of slots; one for each direction of a channel, across its generations."""

    def __init__(self, *, allow_pickle: bool = False, name: str = "action") -> None:
        #: The structures that were read before.
        self.schemas = Schemas()
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
        schema = self.schemas.known.get(schema_id) or self.schemas.get(schema_id, metadata_bytes, slot)
        if read_leaf is None:
            tree = owned_tree(schema, slot.payload, payload_bytes)
        else:
            tree = read_tree(schema, slot.payload, payload_bytes, read_leaf)
        if not pickled:
            return tree
        if not self._allow_pickle:
            raise MetadataError("a pickled object from a peer that is not trusted")
        return unpickle_parts(tree, self._name)
