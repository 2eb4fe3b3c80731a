"""Fuzz target for a client's stream on its socket: it is cut into messages, decoded, and answered by the real methods.

Every call gets a reply or one of varlink's typed errors. The methods run without a daemon; their calls to it are checked.
An input is the length of the first piece, and the stream.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from fuzz.target import Target
from shmserve.channel import ChannelInfo
from shmserve.daemon.api.client import ClientService
from shmserve.daemon.clients.leases import Wanted
from shmserve.daemon.supervisor.status import ServiceState
from shmserve.daemon.varlink.interface import InterfaceTable, ServiceInfo
from shmserve.daemon.varlink.peer import Peer
from shmserve.layout import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, MAX_SLOTS
from shmserve.protocol import WIRE_VERSION
from shmserve.segment import Identity
from shmserve.varlink import (
    MESSAGE_LIMIT,
    Call,
    Framer,
    VarlinkProtocolError,
    decode_call,
    decode_reply,
    encode_call,
    encode_error,
    encode_reply,
)

_PEER = Peer(os.getpid(), os.getuid(), os.getgid(), frozenset())


class _Leases:
    """Gives the same channel to everybody, and looks at what it is asked for."""

    def __init__(self) -> None:
        self.lease = SimpleNamespace(
            channel_info=ChannelInfo(Identity(1, 0, 1), None), peer=_PEER, trusted=False, channel=0
        )

    def grant(self, peer: Peer, program: str, wanted: Wanted, now_ns: int) -> tuple[Any, list[int]]:
        assert len(program) <= 64
        _check(wanted)
        return self.lease, []

    def resize(self, lease: Any, wanted: Wanted, published: int, deferred: list[int]) -> list[int]:
        _check(wanted)
        assert 0 <= published < 1 << 62 and all(0 < sequence <= published for sequence in deferred)
        return []


def _check(wanted: Wanted) -> None:
    assert 1 <= wanted.slots <= MAX_SLOTS
    for field, most in (("metadata", MAX_METADATA_BYTES), ("bytes", MAX_PAYLOAD_BYTES)):
        for direction in ("request", "reply"):
            assert 0 <= getattr(wanted, f"{direction}_{field}") <= most


class _Log:
    """Handler for which a failure that the peer gets as an internal error is a finding."""

    def warning(self, text: str, *arguments: object) -> None:
        pass

    def exception(self, text: str, *arguments: object) -> None:
        raise  # noqa: PLE0704  the error that is being handled


_ARM: dict[str, Any] = {"state": {"dtype": "float32", "shape": [6]}, "ranges": {"type": "list[float]", "length": 8}}
_MODEL = {
    "name": "arm",
    "version": "3f",
    "remote": {"version": "a0", "fallback_version": None},
    "contract": {
        "observation": {**_ARM, "points": {"dtype": "float32", "shape": [-1, 3]}, "step": {"type": "int"}},
        "action": _ARM,
        "meaning": {"rate_hz": 50, "action": {"state": {"units": "deg", "names": list("abcdef")}}},
    },
}


def _service() -> tuple[InterfaceTable, ClientService]:
    supervisor = SimpleNamespace(
        state=ServiceState.READY,
        epoch=1,
        config=SimpleNamespace(name="fuzzed", max_slots=MAX_SLOTS),
        leases=_Leases(),
        detach=lambda channel: None,
        send_lease=lambda lease: None,
        model=_MODEL,
        engines=SimpleNamespace(channels=SimpleNamespace(attach=lambda lease: None), model=None),
    )
    service = ClientService(cast("Any", supervisor))
    info = ServiceInfo("shmserve", "shmserved", "0", "https://example.org")
    return InterfaceTable(info, [service.interface()]), service


_TABLE, _SERVICE = _service()


def run(data: bytes) -> None:
    first, stream = int.from_bytes(data[:2], "little"), data[2:]
    framer = Framer()
    messages = []
    with contextlib.suppress(VarlinkProtocolError):
        for piece in (stream[:first], stream[first:]):
            messages += framer.feed(piece)
    ended: list[Any] = []
    closed = SimpleNamespace(done=lambda: False, add_done_callback=ended.append)
    connection = SimpleNamespace(number=1, peer=_PEER, closed=closed)
    for message in messages:
        with contextlib.suppress(VarlinkProtocolError):
            decode_reply(message)
        try:
            call = decode_call(message)
        except VarlinkProtocolError:
            continue
        for reply in _answers(_TABLE, call, connection):
            assert reply.endswith(b"\0") and len(reply) <= MESSAGE_LIMIT
            decode_reply(reply[:-1])
    for end in ended:
        end(None)


def _answers(table: InterfaceTable, call: Call, connection: Any) -> list[bytes]:
    replies = table.replies(call, connection, [], cast("Any", _Log()))
    found: list[bytes] = []
    while True:
        try:
            data, _ = _at_once(replies.__anext__())
        except StopAsyncIteration:
            return found
        found.append(data)


def _at_once(awaitable: Any) -> Any:
    """Run a coroutine that never waits, without an event loop, and return its result."""
    coroutine: Coroutine[Any, Any, Any] = awaitable
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    raise AssertionError("the method waits for something")


_WANTED = {"slots": 4, "request_metadata": 0, "request_bytes": 921600, "reply_metadata": 0, "reply_bytes": 4096}


def seeds() -> list[bytes]:
    client = "io.shmserve.Client"
    attach = encode_call(f"{client}.Attach", {"wire_version": WIRE_VERSION, "wanted": _WANTED, "program": "robot.py"})
    resize = encode_call(f"{client}.Resize", {"wanted": _WANTED, "published": 12, "deferred": [9, 10]})
    check = f"{client}.CheckRobot"
    arm = {"units": ["deg"] * 5 + ["%"], "names": list("abcdef"), "shape": [6]}
    frame = {"frame_size": [480, 640], "colour_order": "rgb"}
    streams = [
        encode_call(check, {"robot": {"rate_hz": 50, "observation": {"state": arm, "points": [-1, 3]}}}),
        encode_call(check, {"robot": {"action_horizon": 16, "action": {"state": {"units": "rad"}, "other": frame}}}),
        attach,
        attach + resize,
        attach + attach,
        resize,
        encode_call(f"{client}.Describe"),
        encode_call("org.varlink.service.GetInfo"),
        encode_call("org.varlink.service.GetInterfaceDescription", {"interface": client}),
        encode_call(f"{client}.Describe", more=True) + encode_call("org.varlink.service.GetInfo", oneway=True),
        encode_reply({"channel_info": {"identity": {"epoch": 1, "channel": 0, "generation": 1}, "names": None}}),
        encode_reply({"stage": "loading"}, continues=True) + encode_error(f"{client}.Refused", {"reason": "too_large"}),
        b'{"method":"\\ud800.\\u0000.A","parameters":{"a":[[[{"b":1e308}]],-9223372036854775808,null,true]}}\0',
    ]
    return [bytes((7, 0)) + stream for stream in streams]


WORDS = (
    *(b"\0", b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"-1", b"1e999", b"18446744073709551616"),
    *(b'"method":', b'"parameters":', b'"more":true', b'"oneway":true', b'"upgrade":true', b'"wanted":', b'"slots":'),
    *(
        b'"published":',
        b'"deferred":',
        b'"robot":',
        b'"units":',
        b'"observation":',
        b'"program":',
        b'"wire_version":',
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
        b"[" * 40,
    ),
)
TARGET = Target(run, seeds, WORDS)
