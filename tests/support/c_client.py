"""libshmserve from Python, by ctypes: the C calls one by one, with trees made of entries and entries made of trees."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmserve.layout import HEADER, Geometry
from tests.support.c_library import library
from tests.support.c_trees import LONG, MAX_DIMS, NONE, CEntry, CView, Entry, entries_of, tree_of
from tests.support.daemon_process import Daemon

if TYPE_CHECKING:
    from typing_extensions import Self

ANY_SIZE = (1 << 64) - 1

#: Statuses, as enum shmserve_status has them.
OK, RESIZE_REQUIRED, EXPIRED, CANCELLED, SUPERSEDED, STALE, REJECTED, FAILED, ENGINE_LOST, STOPPING = range(10)
TIMEOUT, EXHAUSTED, RESTARTED, UNAVAILABLE, FOREIGN, PROTOCOL, MISMATCH, TOO_LARGE, ARGUMENT, MEMORY = range(
    -1, -11, -1
)
EVICTED, ENDED, RUNNING, FORKED = range(-11, -15, -1)

_u32, _u64, _size, _text, _pointer = (
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_size_t,
    ctypes.c_char_p,
    ctypes.c_void_p,
)


class COptions(ctypes.Structure):
    """`shmserve_options`."""

    _fields_ = [
        ("size", _size),
        ("service", _text),
        ("runtime_dir", _text),
        ("program", _text),
        ("slots", _u32),
        ("max_retries", _u32),
        ("retry_delay_ns", _u64),
        ("request_bytes", _u64),
        ("reply_bytes", _u64),
        ("period_ns", _u64),
        ("spin_ns", ctypes.c_int64),
        ("check_contract", _u32),
        ("lock_memory", _u32),
        ("robot", _text),
    ]


class CTerms(ctypes.Structure):
    """`shmserve_terms`."""

    _fields_ = [
        ("deadline_ns", _u64),
        ("capture_ns", _u64),
        ("max_age_ns", _u64),
        ("supersede", _u32),
        ("repeatable", _u32),
        ("real_time_chunking", _u32),
        ("reserved", _u32),
    ]


class CRequest(ctypes.Structure):
    """`shmserve_request`."""

    _fields_ = [
        ("sequence", _u64),
        ("schema", _pointer),
        ("places", ctypes.POINTER(CView)),
        ("payload", _pointer),
        ("payload_bytes", _u64),
    ]


class CReply(ctypes.Structure):
    """`shmserve_reply`."""

    _fields_ = [
        ("sequence", _u64),
        ("status", ctypes.c_int),
        ("clamped", _u32),
        ("in_place", _u32),
        ("stateful", _u32),
        ("attempts", _u32),
        ("source", _u32),
        ("model_version", _u64),
        ("queued_ns", _u64),
        ("staged_ns", _u64),
        ("infer_ns", _u64),
        ("copied_ns", _u64),
        ("schema", _pointer),
        ("views", ctypes.POINTER(CView)),
        ("payload", _pointer),
        ("payload_bytes", _u64),
        ("error_type", _text),
        ("error_text", _text),
        ("structure", _u64),
    ]


class COutput(ctypes.Structure):
    """`shmserve_output`."""

    _fields_ = [
        ("path", _text),
        ("kind", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("into", _pointer),
        ("room", _u64),
        ("bytes", _u64),
        ("dims", _u32),
        ("shape", _u64 * MAX_DIMS),
    ]


class CStats(ctypes.Structure):
    """`shmserve_stats`."""

    _fields_ = [
        (name, _u64) for name in ("published", "late_replies", "attached", "resized", "request_bytes", "reply_bytes")
    ] + [("slots", _u32), ("is_attached", _u32)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "status_text": (_text, [ctypes.c_int]),
    "last_error": (_text, [_pointer]),
    "default_options": (None, [_pointer, _size]),
    "open": (ctypes.c_int, [_pointer, _pointer, _u64]),
    "recover": (ctypes.c_int, [_pointer, _u64]),
    "close": (None, [_pointer]),
    "alive": (ctypes.c_int, [_pointer]),
    "pollable": (ctypes.c_int, [_pointer, _pointer, _pointer]),
    "is_stateful": (ctypes.c_int, [_pointer]),
    "get_stats": (None, [_pointer, _pointer, _size]),
    "describe": (ctypes.c_int, [_pointer, _pointer, _pointer, _u64]),
    "declare": (ctypes.c_int, [_pointer, _pointer, _size, _pointer]),
    "declare_as_model": (ctypes.c_int, [_pointer, _pointer]),
    "entries": (_size, [_pointer, _pointer]),
    "sizes": (_size, [_pointer]),
    "find": (ctypes.c_int, [_pointer, _text]),
    "loan": (ctypes.c_int, [_pointer, _pointer, _pointer, _pointer]),
    "publish": (ctypes.c_int, [_pointer, _u64, _pointer]),
    "give_back": (ctypes.c_int, [_pointer, _u64]),
    "expect": (ctypes.c_int, [_pointer, _u64]),
    "state_period": (ctypes.c_int, [_pointer, _u64, _u64]),
    "cancel": (ctypes.c_int, [_pointer, _u64]),
    "abandon": (ctypes.c_int, [_pointer, _u64]),
    "reset": (ctypes.c_int, [_pointer, _u64]),
    "wait": (ctypes.c_int, [_pointer, _u64, _u64, _pointer]),
    "release": (ctypes.c_int, [_pointer, _u64]),
    "infer": (ctypes.c_int, [_pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _size]),
}


@functools.cache
def functions() -> Any:
    """The library's functions, by their names without the prefix."""
    loaded = ctypes.CDLL(str(library()))
    found = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, f"shmserve_{name}")
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return type("Functions", (), {name: staticmethod(function) for name, function in found.items()})


class CError(Exception):
    """A call that did not return OK."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class CClient:
    """One client of libshmserve. Every call raises CError for a status that is not OK."""

    def __init__(
        self, service: str, runtime_dir: Path | None = None, *, timeout: float = 30.0, **settings: Any
    ) -> None:
        self.calls = functions()
        self.handle = _pointer()
        options = COptions()
        self.calls.default_options(ctypes.byref(options), ctypes.sizeof(options))
        options.service = service.encode()
        options.runtime_dir = str(runtime_dir).encode() if runtime_dir is not None else None
        for name, value in settings.items():
            setattr(options, name, value)
        status = self.calls.open(ctypes.byref(self.handle), ctypes.byref(options), int(timeout * 1e9))
        if status:
            text = self.last_error
            self.close()
            raise CError(status, text)

    @classmethod
    def of(cls, daemon: Daemon, **settings: Any) -> CClient:
        """Return a client of a daemon of the tests."""
        return cls(daemon.name, daemon.runtime_dir, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        handle, self.handle = self.handle, _pointer()
        self.calls.close(handle)

    @property
    def last_error(self) -> str:
        text: bytes = self.calls.last_error(self.handle)
        return text.decode()

    def check(self, status: int) -> None:
        """Raise CError unless it is OK."""
        if status:
            raise CError(status, self.last_error)

    # Structures

    def declare(self, entries: Sequence[Entry], *, shapes: bool = True) -> int:
        """Return the schema; with `shapes` the sizes of the entries are those of a loan that gives none."""
        array = (CEntry * len(entries))()
        constants = []
        for index, entry in enumerate(entries):
            given = array[index]
            given.path, given.kind, given.dtype = entry.path.encode(), entry.kind, entry.dtype
            given.dims = len(entry.sizes)
            for dimension, size in enumerate(entry.sizes[:MAX_DIMS]):
                given.shape[dimension] = size if shapes else ANY_SIZE
            if entry.kind == LONG:
                constants.append(ctypes.create_string_buffer(entry.data, len(entry.data)))
                given.constant = ctypes.cast(constants[-1], _pointer)
                given.constant_bytes = len(entry.data)
        schema = _pointer()
        self.check(self.calls.declare(self.handle, array, len(entries), ctypes.byref(schema)))
        assert schema.value is not None
        return schema.value

    def declare_as_model(self) -> int:
        schema = _pointer()
        self.check(self.calls.declare_as_model(self.handle, ctypes.byref(schema)))
        assert schema.value is not None
        return schema.value

    def entries(self, schema: int) -> list[CEntry]:
        found = ctypes.POINTER(CEntry)()
        count = self.calls.entries(schema, ctypes.byref(found))
        return [found[index] for index in range(count)]

    # Requests

    def loan(self, schema: int, sizes: Sequence[int] | None = None) -> CRequest:
        request = ctypes.POINTER(CRequest)()
        given = None if sizes is None else (_u64 * max(1, len(sizes)))(*sizes)
        self.check(self.calls.loan(self.handle, schema, given, ctypes.byref(request)))
        return request.contents

    def fill(self, request: CRequest, entries: Sequence[Entry]) -> None:
        """Write the values of these entries into a loan."""
        for index, entry in enumerate(entries):
            place = request.places[index]
            assert place.bytes == (0 if entry.kind >= NONE else len(entry.data))
            if place.bytes:
                ctypes.memmove(place.data, entry.data, len(entry.data))

    def lend(self, tree: Any) -> CRequest:
        """Declare a tree, lend a slot for it and fill it in."""
        entries = list(entries_of(tree))
        schema = self.declare(entries, shapes=False)
        sizes = [size for entry in entries for size in entry.sizes]
        while True:
            try:
                request = self.loan(schema, sizes)
            except CError as error:
                if error.status != RESIZE_REQUIRED:
                    raise
                self.recover()
                continue
            self.fill(request, entries)
            return request

    def publish(self, sequence: int, **terms: int) -> None:
        self.check(self.calls.publish(self.handle, sequence, ctypes.byref(CTerms(**terms))))

    def submit(self, tree: Any, **terms: int) -> int:
        """Send a tree; return its sequence."""
        sequence = int(self.lend(tree).sequence)
        self.publish(sequence, **terms)
        return sequence

    def head(self, sequence: int, timeout: float = 30.0) -> CReply:
        """Wait for the reply, which is held then."""
        reply = ctypes.POINTER(CReply)()
        until_ns = time.monotonic_ns() + int(timeout * 1e9) if timeout else 0
        self.check(self.calls.wait(self.handle, sequence, until_ns, ctypes.byref(reply)))
        return reply.contents

    def result(self, sequence: int, timeout: float = 30.0) -> Any:
        """Wait for the reply, growing where it must; return its tree, which is released."""
        while True:
            try:
                reply = self.head(sequence, timeout)
                break
            except CError as error:
                if error.status != RESIZE_REQUIRED:
                    raise
                self.recover()
        tree = tree_of(self.entries(reply.schema), reply.views) if reply.schema else None
        self.release(sequence)
        return tree

    def infer(self, tree: Any, **terms: int) -> Any:
        return self.result(self.submit(tree, **terms))

    def release(self, sequence: int) -> None:
        self.check(self.calls.release(self.handle, sequence))

    def recover(self, timeout: float = 30.0) -> None:
        self.check(self.calls.recover(self.handle, int(timeout * 1e9)))

    def stats(self) -> CStats:
        stats = CStats()
        self.calls.get_stats(self.handle, ctypes.byref(stats), ctypes.sizeof(stats))
        return stats

    def slot_bytes(self, request: CRequest) -> tuple[bytes, bytes, bytes]:
        """Return head, metadata and payload of the slot of a request, as they lie in the segment."""
        return slot_bytes(mapping_of(request.payload), request.sequence & 63)


def slot_bytes(memory: memoryview, slot: int) -> tuple[bytes, bytes, bytes]:
    """Return head, metadata and payload of one slot of a mapped segment."""
    words = HEADER.packed.unpack_from(memory)
    geometry = Geometry(*words[-3:])
    places = (geometry.slot_offset(slot), geometry.metadata_offset(slot), geometry.payload_offset(slot))
    ends = (places[1], places[2], places[2] + geometry.payload_bytes)
    head, metadata, payload = (bytes(memory[start:end]) for start, end in zip(places, ends, strict=True))
    return head, metadata, payload


def mapping_of(address: int) -> memoryview:
    """Return the mapped segment that an address lies in, its bytes writable if the mapping is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return memoryview((ctypes.c_char * (end - begin)).from_address(begin)).cast("B")
    raise AssertionError("this address is not mapped")
