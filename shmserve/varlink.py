"""Varlink messages: calls and replies encoded, decoded and cut out of a stream, without a socket.

A message is one JSON object and a NUL byte (https://varlink.org/Method-Call):

>>> encode_call("io.shmserve.Admin.UpdateModel", {"device": "cpu"}, more=True)
b'{"method":"io.shmserve.Admin.UpdateModel","parameters":{"device":"cpu"},"more":true}\\x00'
>>> encode_reply({"stage": "loading"}, continues=True)
b'{"parameters":{"stage":"loading"},"continues":true}\\x00'
>>> decode_reply(b'{"error":"org.varlink.service.ExpectedMore"}')
Reply(parameters={}, continues=False, error='org.varlink.service.ExpectedMore', fds=())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shmserve.strict_json import StrictJsonError, decode_json_object, encode_json

MESSAGE_LIMIT = 64 * 1024  # bytes of one message on the wire, its NUL included, in either direction
NAME_LIMIT = 256  # characters of a method's or an error's name: an error that echoes it still fits a message

INTERFACE_NOT_FOUND = "org.varlink.service.InterfaceNotFound"
METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"
METHOD_NOT_IMPLEMENTED = "org.varlink.service.MethodNotImplemented"
INVALID_PARAMETER = "org.varlink.service.InvalidParameter"
PERMISSION_DENIED = "org.varlink.service.PermissionDenied"
EXPECTED_MORE = "org.varlink.service.ExpectedMore"
INTERNAL_ERROR = "io.shmserve.InternalError"
PROTOCOL_VIOLATION = "io.shmserve.ProtocolViolation"
TOO_MANY_CONNECTIONS = "io.shmserve.TooManyConnections"

T = TypeVar("T")


class VarlinkProtocolError(ValueError):
    """Bytes that are not a varlink message. The text holds nothing that the peer sent, so it may be logged and shown."""


class DescriptorsLost(VarlinkProtocolError):
    """File descriptors that came with a message found no room in this process, and the kernel has dropped them."""


class VarlinkError(Exception):
    """A method's typed error, raised on the answering side and again on the calling side."""

    def __init__(self, error: str, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(error, dict(parameters or {}))
        self.error = error
        self.parameters = dict(parameters or {})

    def __str__(self) -> str:
        return f"{self.error} {self.parameters}" if self.parameters else self.error


@dataclass(frozen=True)
class Call:
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    more: bool = False
    oneway: bool = False
    upgrade: bool = False

    @property
    def interface(self) -> str:
        """
        >>> Call("io.shmserve.Client.Attach").interface
        'io.shmserve.Client'
        """
        return self.method.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.method.rpartition(".")[2]


@dataclass(frozen=True)
class Reply:
    """`fds` are open file descriptors that travel beside the message; the holder of the reply owns them."""

    parameters: dict[str, Any] = field(default_factory=dict)
    continues: bool = False
    error: str | None = None
    fds: tuple[int, ...] = ()


class Framer:
    """Cuts a stream into messages, whatever pieces it arrives in, holding at most one unfinished message."""

    def __init__(self) -> None:
        self._unfinished = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of a message whose end has not arrived."""
        return len(self._unfinished)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, without their NUL.

        Raises VarlinkProtocolError for a message above MESSAGE_LIMIT; the stream cannot be followed after that.
        """
        *ends, rest = data.split(b"\0")
        messages = []
        for end in ends:
            self._extend(end)
            messages.append(bytes(self._unfinished))
            self._unfinished.clear()
        self._extend(rest)
        return messages

    def _extend(self, data: bytes) -> None:
        if len(self._unfinished) + len(data) >= MESSAGE_LIMIT:  # >=: the NUL counts too
            raise VarlinkProtocolError(f"a message is longer than {MESSAGE_LIMIT} bytes")
        self._unfinished += data


def encode_call(
    method: str, parameters: Mapping[str, Any] | None = None, *, more: bool = False, oneway: bool = False
) -> bytes:
    call: dict[str, Any] = {"method": method, "parameters": dict(parameters or {})}
    if more:
        call["more"] = True
    if oneway:
        call["oneway"] = True
    return _encode(call)


def encode_reply(parameters: Mapping[str, Any] | None = None, *, continues: bool = False) -> bytes:
    reply: dict[str, Any] = {"parameters": dict(parameters or {})}
    if continues:
        reply["continues"] = True
    return _encode(reply)


def encode_error(error: str, parameters: Mapping[str, Any] | None = None) -> bytes:
    return _encode({"error": error, "parameters": dict(parameters or {})})


def decode_call(message: bytes) -> Call:
    """Raises VarlinkProtocolError, and nothing else, for whatever is not a call; keys it does not know are ignored."""
    members = _decode(message)
    method = _member(members, "method", str, None)
    if method is None:
        raise VarlinkProtocolError("a call names no method")
    call = Call(
        _name(method, "method"),
        _member(members, "parameters", dict, {}),
        _member(members, "more", bool, False),
        _member(members, "oneway", bool, False),
        _member(members, "upgrade", bool, False),
    )
    if call.more + call.oneway + call.upgrade > 1:
        raise VarlinkProtocolError("a call asks for more than one of more, oneway and upgrade")
    return call


def decode_reply(message: bytes) -> Reply:
    """Raises VarlinkProtocolError, and nothing else, for whatever is not a reply; keys it does not know are ignored."""
    members = _decode(message)
    error = _member(members, "error", str, None)
    reply = Reply(
        _member(members, "parameters", dict, {}),
        _member(members, "continues", bool, False),
        error if error is None else _name(error, "error"),
    )
    if reply.error is not None and reply.continues:
        raise VarlinkProtocolError("an error reply says that it continues")
    return reply


def required(parameters: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """`parameters[name]`, of exactly this JSON type; else VarlinkError org.varlink.service.InvalidParameter.

    >>> required({"timeout": 3}, "timeout", int)
    3
    """
    value = optional(parameters, name, kind)
    if value is None:
        raise VarlinkError(INVALID_PARAMETER, {"parameter": name})
    return value


def optional(parameters: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """As required(), but None where it is missing or null, which are the same in varlink."""
    value = parameters.get(name)
    if kind is float and type(value) is int:
        value = float(value)  # JSON does not tell 3 from 3.0
    if value is not None and type(value) is not kind:  # not isinstance: JSON's true is not an int
        raise VarlinkError(INVALID_PARAMETER, {"parameter": name})
    return value


def _encode(message: dict[str, Any]) -> bytes:
    data = encode_json(message) + b"\0"
    if len(data) > MESSAGE_LIMIT:
        raise VarlinkProtocolError(f"a message of {len(data)} bytes is to be sent; the limit is {MESSAGE_LIMIT}")
    return data


def _decode(message: bytes) -> dict[str, Any]:
    if len(message) >= MESSAGE_LIMIT:
        raise VarlinkProtocolError(f"a message is longer than {MESSAGE_LIMIT} bytes")
    try:
        return decode_json_object(message)
    except StrictJsonError as error:
        raise VarlinkProtocolError(f"a message {error}") from None


def _member(members: dict[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    value = members.get(name)
    if value is None:  # varlink: null is the same as absent
        return default
    if type(value) is not kind:
        raise VarlinkProtocolError(f"a message's member {name!r} is not of JSON type {_JSON_TYPE[kind]}")
    return value


def _name(name: str, what: str) -> str:
    if len(name) > NAME_LIMIT:
        raise VarlinkProtocolError(f"a name of a {what} has {len(name)} characters; the limit is {NAME_LIMIT}")
    return name


_JSON_TYPE = {str: "string", dict: "object", bool: "boolean"}
