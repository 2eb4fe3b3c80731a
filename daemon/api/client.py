"""io.shmserve.Client: attach, resize, describe, compare a robot's statement. The connection is the lease."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from typing import Any

from shmserve.errors import ContractMismatch, InvalidArgument
from shmserve.layout import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, slot_of
from shmserve.protocol import WIRE_VERSION
from shmserve.robot_contract import RobotContract, listed_differences, versions_of
from shmserve.varlink import INVALID_PARAMETER, Reply, VarlinkError, optional, required

from ..clients import AreaUnavailable, AttachRateLimit, Lease, LeaseRefused, TimeShare, Wanted
from ..supervisor import ServiceState, Supervisor
from ..varlink.interface import Connection, Interface, Method
from ..varlink.peer import Peer

log = logging.getLogger(__name__)

NAME = "io.shmserve.Client"
#: Delay of a refusal for too many attaches: a process that retries at once must not keep the supervisor busy.
_SLOW_REFUSAL_S = 0.1
#: Longest time between two steps of a robot that can be compared: about three centuries.
_LONGEST_STEP_NS = 1 << 63

DESCRIPTION = """\
# Calls of a robot process. Inference requests themselves never cross this socket.
interface io.shmserve.Client

type Identity (epoch: int, channel: int, generation: int)

# Names of POSIX shared-memory objects and semaphores.
type ChannelNames (requests: string, replies: string, request_bell: string, reply_bell: string)

# Without names (transport `sealed`) file descriptors come with the reply: memory of the requests, memory of
# the replies (for reading), and with Attach the pipe to ring the service and the pipe that it rings.
type ChannelInfo (identity: Identity, names: ?ChannelNames)

# What one slot of each direction must hold, in bytes; 0 for whatever the model's example needs.
type Wanted (slots: int, request_metadata: int, request_bytes: int, reply_metadata: int, reply_bytes: int)

# A channel for this connection, for as long as the connection lives.
method Attach(wire_version: int, wanted: Wanted, program: ?string) -> (channel_info: ChannelInfo, trusted: bool, state: string)

# The same channel with larger slots. `published` is the last sequence used; `deferred` are the
# sequences answered RESIZE_REQUIRED, whose replies the engine delivers in the new generation.
method Resize(wanted: Wanted, published: int, deferred: []int) -> (channel_info: ChannelInfo)

# GPU memory for arrays of the requests, `area_bytes` for each slot. It replaces the memory from before: no request may be in
# flight. Its file descriptor comes with the reply (CUDA's virtual memory); the area of slot n begins at n * area_bytes.
# `gpu` is the GPU's UUID in hexadecimal.
method ShareDeviceMemory(area_bytes: int) -> (area_bytes: int, slots: int, bytes: int, gpu: string)

# The service and its model; `model` is null until one is ready.
method Describe() -> (service: string, state: string, epoch: int, model: ?object)

# What a robot states of its numbers, with the keys of [contract] in model.toml, compared with the model. `versions` are those
# that replies of this model have: its own; of a link the remote's and the fallback's, too. Empty until a model is ready.
# `step_ns`: time between two steps of a robot that plays the rows of an action one after another.
method CheckRobot(robot: object, step_ns: ?int) -> (versions: []string)

error ProtocolMismatch (wire_version: int)
error AlreadyAttached ()
error NotAttached ()
# `reason` is one of evicted, too_often, too_many_clients, too_large, too_many_bytes, no_shared_memory.
# Bytes are of shared memory: needed by this channel, and free for it. A banned process may attach again after `retry_after_s`.
error Refused (reason: string, message: string, needed_bytes: ?int, limit_bytes: ?int, retry_after_s: ?float)
error Stopping ()
# Robot and model state different things: `differences` has a line for each field, `message` all of them and the remedy.
error ContractMismatch (message: string, differences: []string, versions: []string)
# The statement of a robot is itself invalid.
error InvalidRobot (message: string)
# `reason` is one of off, no_gpu, not_ready, numpy, too_large, too_many_bytes, no_memory, failed.
# Bytes are of GPU memory. After not_ready the same call may succeed a moment later.
error DeviceMemoryRefused (reason: string, message: string, needed_bytes: ?int, limit_bytes: ?int)

# Sent without a call, before the service closes the connection of a client that broke its channel or crashed the engine
# again and again.
error Evicted (message: string, retry_after_s: ?float)
"""


class ClientService:
    """The methods, for one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._leases: dict[int, Lease] = {}  # by the connection's number
        self._connections: dict[int, Connection] = {}
        self._rate_limit = AttachRateLimit()
        self._time_share = TimeShare()

    def interface(self) -> Interface:
        methods: dict[str, Method] = {
            "Attach": self.attach,
            "Resize": self.resize,
            "ShareDeviceMemory": self.share_device_memory,
            "Describe": self.describe,
            "CheckRobot": self.check_robot,
        }
        return Interface(NAME, DESCRIPTION, methods)

    async def attach(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> Reply:
        version = required(parameters, "wire_version", int)
        if version != WIRE_VERSION:
            raise VarlinkError(f"{NAME}.ProtocolMismatch", {"wire_version": WIRE_VERSION})
        if connection.number in self._leases:
            raise VarlinkError(f"{NAME}.AlreadyAttached")
        if self._supervisor.state is ServiceState.DRAINING:
            raise VarlinkError(f"{NAME}.Stopping")
        wanted = _wanted(required(parameters, "wanted", dict))
        program = "".join(filter(str.isprintable, (optional(parameters, "program", str) or "")[:64]))
        await self._wait_for_turn(connection.peer)
        try:
            lease, given = self._supervisor.leases.grant(connection.peer, program, wanted, time.monotonic_ns())
        except LeaseRefused as refusal:
            raise _refused(refusal) from refusal
        self._charge(lease)
        self._leases[connection.number] = lease
        self._connections[connection.number] = connection
        connection.closed.add_done_callback(functools.partial(self._ended, connection.number))
        self._supervisor.send_lease(lease)
        log.info("client %d attached: %s, %.64r", lease.channel, connection.peer, program)
        reply = {
            "channel_info": lease.channel_info.to_json(),
            "trusted": lease.trusted,
            "state": self._supervisor.state.value,
        }
        return Reply(reply, fds=tuple(given))

    async def resize(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> Reply:
        lease = self._leases.get(connection.number)
        if lease is None:
            raise VarlinkError(f"{NAME}.NotAttached")
        wanted = _wanted(required(parameters, "wanted", dict))
        published = required(parameters, "published", int)
        deferred = required(parameters, "deferred", list)
        if not 0 <= published < 1 << 62:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "published"})
        # A deferred reply is looked for in the slot that its sequence names, so two must not share one.
        slots = min(wanted.slots, self._supervisor.config.max_slots)
        if (
            len(deferred) > 64
            or not all(type(sequence) is int and 0 < sequence <= published for sequence in deferred)
            or len({slot_of(sequence) for sequence in deferred}) != len(deferred)
            or any(slot_of(sequence) >= slots for sequence in deferred)
        ):
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "deferred"})
        await self._wait_for_turn(connection.peer)
        try:
            given = self._supervisor.leases.resize(lease, wanted, published, deferred)
        except LeaseRefused as refusal:
            raise _refused(refusal) from refusal
        self._charge(lease)
        self._supervisor.send_lease(lease)
        return Reply({"channel_info": lease.channel_info.to_json()}, fds=tuple(given))

    async def share_device_memory(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> Reply:
        lease = self._leases.get(connection.number)
        if lease is None:
            raise VarlinkError(f"{NAME}.NotAttached")
        area_bytes = required(parameters, "area_bytes", int)
        if not 1 <= area_bytes <= MAX_PAYLOAD_BYTES:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "area_bytes"})
        await self._wait_for_turn(connection.peer)
        try:
            area = await self._supervisor.device_areas.share(lease, area_bytes)
        except AreaUnavailable as refusal:
            facts = {"reason": refusal.reason, "message": str(refusal), **refusal.facts}
            raise VarlinkError(f"{NAME}.DeviceMemoryRefused", facts) from refusal
        reply = {"area_bytes": area.area_bytes, "slots": area.slots, "bytes": area.bytes, "gpu": area.gpu}
        return Reply(reply, fds=(os.dup(area.descriptor),))

    async def _wait_for_turn(self, peer: Peer) -> None:
        """Raise Refused, after a delay, for a user whose processes attach too often.

        A refused attempt counts as well, because refusing is work, too.
        """
        if _is_exempt(peer):
            return
        config = self._supervisor.config
        burst = 4 * (config.max_clients_per_user or config.max_clients)
        rate = config.max_attach_rate_per_user
        wait_s = self._rate_limit.wait_s(peer.uid, rate, burst=burst, now_s=time.monotonic())
        if wait_s:
            await asyncio.sleep(_SLOW_REFUSAL_S)
            raise _refused(
                LeaseRefused(
                    "too_often",
                    f"uid {peer.uid} attaches or grows its channels too often; again in {wait_s:.1f} s "
                    f"(max_attach_rate_per_user = {rate:g})",
                    retry_after_s=wait_s,
                )
            )

    def _charge(self, lease: Lease) -> None:
        if not _is_exempt(lease.peer):
            self._rate_limit.charge(lease.peer.uid, lease.bytes)

    async def describe(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        supervisor = self._supervisor
        return {
            "service": supervisor.config.name,
            "state": supervisor.state.value,
            "epoch": supervisor.epoch,
            "model": supervisor.model,
        }

    async def check_robot(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        statement = required(parameters, "robot", dict)
        step_ns = optional(parameters, "step_ns", int)
        if step_ns is not None and not 0 < step_ns < _LONGEST_STEP_NS:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "step_ns"})
        uid = connection.peer.uid
        # Again after each pause, because other connections of this user may have called meanwhile.
        while wait_s := self._time_share.wait_s(uid, time.monotonic()):
            await asyncio.sleep(wait_s)
        began_s = time.thread_time()
        try:
            return {"versions": self._compared(statement, step_ns)}
        finally:
            if not _is_exempt(connection.peer):
                self._time_share.charge(uid, time.thread_time() - began_s, time.monotonic())

    def _compared(self, statement: dict[str, Any], step_ns: int | None) -> list[str]:
        """Return the versions that agree with a robot's statement; raises VarlinkError."""
        model = self._supervisor.model
        try:
            robot = RobotContract(statement).at_rate(None if step_ns is None else 1e9 / step_ns)
            if model is None:
                return []
            robot.check(self._supervisor.config.name, model)
        except InvalidArgument as error:
            raise VarlinkError(f"{NAME}.InvalidRobot", {"message": str(error)}) from error
        except ContractMismatch as error:
            assert model is not None
            found = {
                "message": str(error),
                "differences": listed_differences(error.differences),
                "versions": versions_of(model),
            }
            raise VarlinkError(f"{NAME}.ContractMismatch", found) from error
        return versions_of(model)

    def evict(self, lease: Lease, reason: str) -> None:
        """Ban a client that broke its channel or crashed engines, and close its connection."""
        for number, held in self._leases.items():
            if held is lease:
                log.warning("client %d is evicted: %s", lease.channel, reason)
                self._supervisor.ban(lease.peer, reason)
                farewell = {"message": reason, "retry_after_s": self._supervisor.config.ban_s}
                self._connections[number].say_farewell(f"{NAME}.Evicted", farewell)
                return

    def detach(self, lease: Lease) -> None:
        """Close the connection of a client that is to attach again."""
        for number, held in self._leases.items():
            if held is lease:
                self._connections[number].close("it must attach again")
                return

    def _ended(self, number: int, _closed: object) -> None:
        lease = self._leases.pop(number)
        self._connections.pop(number)
        self._supervisor.detach(lease.channel)
        log.info("client %d is gone", lease.channel)


def _is_exempt(peer: Peer) -> bool:
    return peer.uid in (0, os.getuid())


def _refused(refusal: LeaseRefused) -> VarlinkError:
    return VarlinkError(f"{NAME}.Refused", {"reason": refusal.reason, "message": str(refusal), **refusal.facts})


def _wanted(fields: dict[str, Any]) -> Wanted:
    limits = {
        "slots": 64,
        "request_metadata": MAX_METADATA_BYTES,
        "request_bytes": MAX_PAYLOAD_BYTES,
        "reply_metadata": MAX_METADATA_BYTES,
        "reply_bytes": MAX_PAYLOAD_BYTES,
    }
    wanted = {name: optional(fields, name, int) or 0 for name in limits}
    for name, limit in limits.items():
        if not (1 if name == "slots" else 0) <= wanted[name] <= limit:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": f"wanted.{name}"})
    return Wanted(**wanted)
