"""One request or reply as bytes, for a model on another machine: a head, and metadata and payload as in a slot.

    0      128        128 + aligned(metadata_bytes)
    +------+----------+---------------- ...
    | head | metadata | payload
    +------+----------+---------------- ...

Every word is little-endian. The metadata begins at byte 128, the payload at the next multiple of 64, and the message ends with
the payload, so that its length follows from the head. The reader is the slot's: the same grammar of the metadata, the same
check of the payload's sizes. No message carries a pickled object.

>>> import numpy as np
>>> ask = Request(Kind.INFER, 0, version=0x3F9C2D17A0B14E55, number=0xC5, client=3, budget_ns=80_000_000, age_ns=4_000_000)
>>> data = Packer("observation").request(ask, {"state": np.array([1, 2], np.uint16)})
>>> len(data), data[:16], data[128:160].hex(" ")  # doctest: +NORMALIZE_WHITESPACE
(260, b'shmsvreq\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00',
 '80 05 7d 28 8c 05 73 74 61 74 65 8c 05 61 72 72 61 79 8c 03 3c 75 32 4b 01 87 51 75 2e 00 00 00')
>>> head, tree = read_request(data)
>>> head == ask, tree
(True, {'state': array([1, 2], dtype=uint16)})
>>> [(name, REQUEST_HEAD.offset(name)) for name in REQUEST_HEAD.names]  # doctest: +NORMALIZE_WHITESPACE
[('magic', 0), ('message_version', 8), ('kind', 16), ('flags', 24), ('version', 32), ('number', 40), ('client', 48),
 ('budget_ns', 56), ('age_ns', 64), ('max_age_ns', 72), ('metadata_bytes', 80), ('payload_bytes', 88)]
>>> [(name, REPLY_HEAD.offset(name)) for name in REPLY_HEAD.names]  # doctest: +NORMALIZE_WHITESPACE
[('magic', 0), ('message_version', 8), ('status', 16), ('flags', 24), ('version', 32), ('number', 40), ('queued_ns', 48),
 ('infer_ns', 56), ('metadata_bytes', 64), ('payload_bytes', 72)]
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from .codec import DoesNotFit, Encoder, SlotMemory, owned_tree, schema_of
from .errors import RequestRejected
from .layout import CACHE_LINE, MAX_METADATA_BYTES, Words, aligned
from .metadata import MetadataError
from .protocol import Status

#: Moves with every change of the head, of the codec or of a meaning; peers do not negotiate.
MESSAGE_VERSION: Final = 1
#: Of a whole message. gRPC has a limit of 4 MiB unless both sides set another one: both set this.
MAX_MESSAGE_BYTES: Final = 64 << 20
HEAD_BYTES: Final = 2 * CACHE_LINE

_REQUEST_MAGIC = int.from_bytes(b"shmsvreq", "little")
_REPLY_MAGIC = int.from_bytes(b"shmsvrep", "little")

REQUEST_HEAD = Words(
    "magic",
    "message_version",
    "kind",
    "flags",
    "version",
    "number",
    "client",
    "budget_ns",
    "age_ns",
    "max_age_ns",
    "metadata_bytes",
    "payload_bytes",
)
REPLY_HEAD = Words(
    "magic",
    "message_version",
    "status",
    "flags",
    "version",
    "number",
    "queued_ns",
    "infer_ns",
    "metadata_bytes",
    "payload_bytes",
)
#: The words of a head are those of another machine: their order is fixed, where a segment's is this machine's.
_REQUEST = struct.Struct("<" + "Q" * len(REQUEST_HEAD.names))
_REPLY = struct.Struct("<" + "Q" * len(REPLY_HEAD.names))
_FIRST_PAYLOAD_BYTES = 1 << 16


class MessageError(MetadataError):
    """Bytes are not a message, or not one of this version."""


class Kind(IntEnum):
    """Kind of a request: run the model, or describe it."""

    INFER = 1
    #: Answered by the model's description and its example.
    DESCRIBE = 2
    #: Answered by nothing but the head: the model is there, and of this version.
    PROBE = 3


class Request(NamedTuple):
    """Head of a request, without what the message itself determines."""

    kind: int
    flags: int = 0  # none yet
    version: int = 0  # the first 8 bytes of the content address that must answer; 0: any
    number: int = 0  # the sender's; the reply names it
    client: int = 0  # of the sender's service
    budget_ns: int = 0  # left when the message was sent: an answer after it is of no use; 0: no limit
    age_ns: int = 0  # of the observation when the message was sent; 0: unknown
    max_age_ns: int = 0  # an older observation is answered STALE; 0: any


class Reply(NamedTuple):
    """Head of a reply, without what the message itself determines."""

    status: int
    flags: int = 0
    version: int = 0  # of the model that answers
    number: int = 0  # of the request
    queued_ns: int = 0
    infer_ns: int = 0


#: In place of a tree: the message has none. (None is a tree.)
NOTHING: Final = object()


class Packer:
    """Writes messages; each thread has its own."""

    def __init__(self, name: str) -> None:
        """`name`: what errors call a tree, "observation" or "action"."""
        self._name = name
        self._encoder = Encoder(tensors_as_arrays=True, name=name)
        self._slot = _slot(_FIRST_PAYLOAD_BYTES)
        self._used = 0

    def request(self, head: Request, tree: Any = NOTHING) -> bytes:
        """Return the message. Raises RequestRejected or UnsupportedType for what cannot be carried."""
        return self._packed(tree, lambda *sizes: _REQUEST.pack(_REQUEST_MAGIC, MESSAGE_VERSION, *head, *sizes))

    def reply(self, head: Reply, tree: Any = NOTHING) -> bytes:
        """Return the message. The tree of an error is (type, text). Raises as `request`."""
        return self._packed(tree, lambda *sizes: _REPLY.pack(_REPLY_MAGIC, MESSAGE_VERSION, *head, *sizes))

    def _packed(self, tree: Any, head_of: Any) -> bytes:
        if tree is NOTHING:
            return bytes(head_of(0, 0)).ljust(HEAD_BYTES, b"\0")
        # Gaps between the leaves keep what was there before: nothing of another robot's observation may go with this one.
        self._slot.payload[: self._used] = 0
        try:
            encoded = self._encoder.encode(tree, self._slot)
        except DoesNotFit as error:
            if error.metadata_bytes > MAX_METADATA_BYTES or _length(0, error.payload_bytes) > MAX_MESSAGE_BYTES:
                raise RequestRejected(
                    f"the {self._name} needs {error}; a message has {MAX_METADATA_BYTES} of metadata and "
                    f"{MAX_MESSAGE_BYTES} in all at most: send less, as a crop or a compressed image"
                ) from None
            self._slot = _slot(aligned(error.payload_bytes))
            encoded = self._encoder.encode(tree, self._slot)
        if _length(encoded.metadata_bytes, encoded.payload_bytes) > MAX_MESSAGE_BYTES:
            raise RequestRejected(f"the {self._name} needs a message of more than {MAX_MESSAGE_BYTES} bytes")
        self._used = encoded.payload_bytes
        metadata = self._slot.metadata[: encoded.metadata_bytes].tobytes()
        return b"".join(
            (
                bytes(head_of(encoded.metadata_bytes, encoded.payload_bytes)).ljust(HEAD_BYTES, b"\0"),
                metadata.ljust(aligned(len(metadata)), b"\0"),
                self._slot.payload[: encoded.payload_bytes].data,
            )
        )


def read_request(data: bytes) -> tuple[Request, Any]:
    """Return head and tree of a request, NOTHING for none; raises MetadataError for bytes that are none."""
    head, tree = _read(data, _REQUEST, _REQUEST_MAGIC, "request")
    request = Request(*head)
    if request.kind not in _KINDS:
        raise MessageError(f"a request of unknown kind {request.kind}")
    if (request.kind == Kind.INFER) != (tree is not NOTHING):
        raise MessageError(f"a request of kind {request.kind} {'without' if tree is NOTHING else 'with'} a tree")
    if request.flags:
        raise MessageError(f"a request with unknown flags {request.flags:#x}")
    return request, tree


def read_reply(data: bytes) -> tuple[Reply, Any]:
    """Return head and tree of a reply, NOTHING for none; raises MetadataError for bytes that are none."""
    head, tree = _read(data, _REPLY, _REPLY_MAGIC, "reply")
    reply = Reply(*head)
    if reply.status not in _STATUSES:
        raise MessageError(f"a reply of unknown status {reply.status}")
    if reply.flags:
        raise MessageError(f"a reply with unknown flags {reply.flags:#x}")
    if reply.status != Status.OK and tree is not NOTHING and not _is_error(tree):
        raise MessageError(f"a reply of status {reply.status} whose tree is not (type, text)")
    return reply, tree


_KINDS = frozenset(Kind)
_STATUSES = frozenset(Status) - {Status.RESIZE_REQUIRED}


def _is_error(tree: Any) -> bool:
    return type(tree) is tuple and len(tree) == 2 and all(type(text) is str for text in tree)


def _read(data: bytes, head: struct.Struct, magic: int, what: str) -> tuple[tuple[int, ...], Any]:
    if not HEAD_BYTES <= len(data) <= MAX_MESSAGE_BYTES:
        raise MessageError(f"a {what} of {len(data)} bytes; it has {HEAD_BYTES} to {MAX_MESSAGE_BYTES}")
    found, version, *words, metadata_bytes, payload_bytes = head.unpack_from(data)
    if found != magic:
        raise MessageError(f"bytes that are no {what}: they begin with {data[:8]!r}")
    if version != MESSAGE_VERSION:
        raise MessageError(
            f"a {what} of message version {version}, and this is {MESSAGE_VERSION}: install the same shmserve on both sides"
        )
    if metadata_bytes > MAX_METADATA_BYTES or payload_bytes > MAX_MESSAGE_BYTES:
        raise MessageError(f"a {what} of {metadata_bytes} bytes of metadata and {payload_bytes} of payload")
    if len(data) != _length(metadata_bytes, payload_bytes):
        raise MessageError(f"a {what} of {len(data)} bytes, whose head says {_length(metadata_bytes, payload_bytes)}")
    if not metadata_bytes:
        if payload_bytes:
            raise MessageError(f"a {what} with {payload_bytes} bytes of payload and no metadata")
        return tuple(words), NOTHING
    schema = schema_of(data[HEAD_BYTES : HEAD_BYTES + metadata_bytes])
    # A copy, because the core reads words in place and a message may lie anywhere in memory.
    payload = np.frombuffer(data, np.uint8, payload_bytes, len(data) - payload_bytes).copy()
    return tuple(words), owned_tree(schema, payload, payload_bytes)


def _length(metadata_bytes: int, payload_bytes: int) -> int:
    return HEAD_BYTES + aligned(metadata_bytes) + payload_bytes


def _slot(payload_bytes: int) -> SlotMemory:
    return SlotMemory(np.zeros(MAX_METADATA_BYTES, np.uint8), np.zeros(payload_bytes, np.uint8))
