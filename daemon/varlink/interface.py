"""Interfaces of a varlink socket: the methods behind their names, and the standard interface that describes them."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

from shmserve.varlink import (
    EXPECTED_MORE,
    INTERFACE_NOT_FOUND,
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    METHOD_NOT_IMPLEMENTED,
    NAME_LIMIT,
    PERMISSION_DENIED,
    Call,
    Reply,
    VarlinkError,
    encode_error,
    encode_reply,
    required,
)
from shmserve.varlink_socket import close_fds

from .log_limit import ProvokedLog
from .peer import Peer


class Connection(Protocol):
    """The caller of a method: one peer's connection."""

    @property
    def peer(self) -> Peer:
        """The process that connected."""

    @property
    def number(self) -> int:
        """Counts the server's connections."""

    @property
    def closed(self) -> asyncio.Future[str]:
        """Done once the connection is over; its result is the reason."""

    def close(self, reason: str) -> None:
        """May be called twice. The method in hand is cancelled, calls that wait are dropped."""

    def say_farewell(self, error: str, parameters: Mapping[str, Any]) -> None:
        """Send one error that answers no call, and close."""


Answer: TypeAlias = "dict[str, Any] | Reply"
Method: TypeAlias = "Callable[[Connection, dict[str, Any], list[int]], Awaitable[Answer] | AsyncIterator[Answer]]"
"""Called with the connection, the call's parameters and the descriptors that came with it.

Descriptors left in the list are closed when the method is done: one that it keeps, it pops. Descriptors in a Reply are
closed once sent: one to be kept, it duplicates. It raises VarlinkError for its typed errors; the peer learns nothing
of any other exception. It is cancelled when the connection closes.

An async generator answers a call that asks for `more`: every Reply with `continues` goes out at once, a dict or a
Reply without it is the last. If it ends without one, an empty reply is the last.
"""


def _refuse_nobody(peer: Peer, method: str) -> str | None:
    return None


@dataclass(frozen=True)
class Interface:
    """`description` is the interface's .varlink text (https://varlink.org/Interface-Definition)."""

    name: str
    description: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    #: Returns the setting that denies a peer this method of the interface, or None. It is asked for each call.
    refusal: Callable[[Peer, str], str | None] = _refuse_nobody

    def __post_init__(self) -> None:
        if re.findall(r"^interface\s+(\S+)", self.description, re.MULTILINE) != [self.name]:
            raise ValueError(f"the description of {self.name} does not say 'interface {self.name}'")
        if undeclared := self.methods.keys() - self.declared:
            raise ValueError(f"{self.name}: its description lacks {', '.join(sorted(undeclared))}")

    @property
    def declared(self) -> frozenset[str]:
        return frozenset(re.findall(r"^method\s+(\w+)", self.description, re.MULTILINE))


@dataclass(frozen=True)
class ServiceInfo:
    """The reply of org.varlink.service.GetInfo."""

    vendor: str
    product: str
    version: str
    url: str


class InterfaceTable:
    """Finds the method that a call names, runs it, and turns all that may come of it into encoded replies."""

    def __init__(self, info: ServiceInfo, interfaces: Iterable[Interface]) -> None:
        self._info = info
        methods: dict[str, Method] = {
            "GetInfo": self._get_info,
            "GetInterfaceDescription": self._get_interface_description,
        }
        self._interfaces: dict[str, Interface] = {}
        own = (Interface("org.varlink.service", _SERVICE, methods), Interface("io.shmserve", _ERRORS))
        for interface in (*own, *interfaces):
            if self._interfaces.setdefault(interface.name, interface) is not interface:
                raise ValueError(f"two interfaces are named {interface.name}")

    async def replies(
        self, call: Call, connection: Connection, fds: list[int], log: ProvokedLog
    ) -> AsyncGenerator[tuple[bytes, tuple[int, ...]], None]:
        """Each reply's bytes and descriptors, now the caller's to close. The last is the last that the peer gets."""
        try:
            self._check_permission(call, connection.peer, log)
            async with aclosing(self._answers(call, connection, fds)) as answers:
                async for reply in answers:
                    yield _encoded(reply)
        except asyncio.CancelledError as error:
            if connection.closed.done():
                raise
            # Not this call, but something that its method waited for was cancelled.
            yield self._failure(error, call, connection, log), ()
        except Exception as error:  # noqa: BLE001  a method may fail in any way; the service goes on
            yield self._failure(error, call, connection, log), ()

    def _failure(self, error: BaseException, call: Call, connection: Connection, log: ProvokedLog) -> bytes:
        if isinstance(error, VarlinkError):
            with suppress(TypeError, ValueError):  # its parameters may be no JSON, or too long
                return encode_error(error.error, error.parameters)
        log.exception("%.64r failed for %s", call.method, connection.peer)
        return encode_error(INTERNAL_ERROR)

    async def _answers(self, call: Call, connection: Connection, fds: list[int]) -> AsyncGenerator[Reply, None]:
        method = self._find(call)
        if not inspect.isasyncgenfunction(method):
            yield _reply(await cast("Awaitable[Answer]", method(connection, call.parameters, fds)))
            return
        if not call.more:
            raise VarlinkError(EXPECTED_MORE)
        async with aclosing(method(connection, call.parameters, fds)) as answers:
            async for answer in answers:
                reply = _reply(answer)
                yield reply
                if not reply.continues:
                    return
        yield Reply()

    def _check_permission(self, call: Call, peer: Peer, log: ProvokedLog) -> None:
        interface = self._interface(call.interface)
        setting = interface.refusal(peer, call.name) if call.name in interface.methods else None
        if setting is not None:
            log.warning("refusing %s to %s, which may only look: %s does not name this user", call.name, peer, setting)
            raise VarlinkError(PERMISSION_DENIED, {"setting": setting, "method": call.method})

    def _find(self, call: Call) -> Method:
        interface = self._interface(call.interface)
        method = interface.methods.get(call.name)
        if method is None:
            declared = call.name in interface.declared
            raise VarlinkError(METHOD_NOT_IMPLEMENTED if declared else METHOD_NOT_FOUND, {"method": call.method})
        if call.upgrade:  # no method here leaves varlink for another protocol
            raise VarlinkError(METHOD_NOT_IMPLEMENTED, {"method": call.method})
        return method

    def _interface(self, name: str) -> Interface:
        if name not in self._interfaces:
            raise VarlinkError(INTERFACE_NOT_FOUND, {"interface": name[:NAME_LIMIT]})
        return self._interfaces[name]

    async def _get_info(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> Answer:
        return {**vars(self._info), "interfaces": list(self._interfaces)}

    async def _get_interface_description(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> Answer:
        return {"description": self._interface(required(parameters, "interface", str)).description}


def _reply(answer: Answer) -> Reply:
    return answer if isinstance(answer, Reply) else Reply(answer)


def _encoded(reply: Reply) -> tuple[bytes, tuple[int, ...]]:
    try:
        return encode_reply(reply.parameters, continues=reply.continues), reply.fds
    except BaseException:
        close_fds(reply.fds)
        raise


_SERVICE = """\
# Every varlink service has this interface: it describes the service and its other interfaces.
interface org.varlink.service

# The implementation, and the names of the interfaces that this service provides.
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

# The description of one interface that this service provides.
method GetInterfaceDescription(interface: string) -> (description: string)

# The service does not provide this interface.
error InterfaceNotFound (interface: string)

# The interface has no such method.
error MethodNotFound (method: string)

# The interface has the method, but this service does not implement it, or not in the way it was called.
error MethodNotImplemented (method: string)

# A parameter is missing, of the wrong type, or has a value that is not allowed.
error InvalidParameter (parameter: string)

# The service does not serve this user, or with `method` not this call; `setting` is the one that would have to name the user.
error PermissionDenied (setting: string, method: ?string)

# The method answers with several replies and must be called with 'more'.
error ExpectedMore ()
"""

_ERRORS = """\
# Errors that any call to this service may give.
interface io.shmserve

# The service failed to answer; its log says why.
error InternalError ()

# What was sent is not varlink; the service closes the connection.
error ProtocolViolation (reason: string)

# The service, or one user of it, has as many connections as it may; this one is closed.
error TooManyConnections (limit: int)
"""
