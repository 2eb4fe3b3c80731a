"""Leases: the channels of attached clients, and the limits on them.

The connection is the lease. A channel is created when its client attaches, replaced by a larger generation when the client
asks for it, and removed when the connection closes. Limits apply before memory is allocated: bans, the number of clients,
bytes of one channel, of one user and of all, and the headroom of the control group.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shmserve.channel import ChannelInfo, ChannelNames, create_channel, unlink_channel
from shmserve.doorbell import exists_doorbell
from shmserve.layout import CACHE_LINE, MAX_METADATA_BYTES, Geometry, aligned
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity

from ..config.config import Config
from ..host.cgroup_memory import group_without_headroom
from ..ipc.messages import Suspicion
from ..varlink.peer import Peer
from .bans import Bans
from .device_areas import DeviceArea
from .engine_deaths import Deaths
from .shm_names import NameRegistry

_PAGE = 4096
_MIN_METADATA = 4096
#: Released generations whose clients are still known: an engine may be running a request of one.
_MAX_RELEASED = 1024
_MIN_PAYLOAD = 64 * 1024
_REMOVED = (
    "the service's objects were removed from /dev/shm (logind does so at a user's last logout: RemoveIPC= in "
    "logind.conf); attached clients are still served; restart shmserved to give new channels"
)


@dataclass(frozen=True)
class Wanted:
    """Slots and bytes that a client asks for; 0 bytes: as many as the model's example needs."""

    slots: int
    request_metadata: int = 0
    request_bytes: int = 0
    reply_metadata: int = 0
    reply_bytes: int = 0


@dataclass
class Lease:
    """One client's channel, for the lifetime of its connection."""

    channel_info: ChannelInfo
    peer: Peer
    program: str
    trusted: bool
    attached_ns: int
    wanted: Wanted
    #: Sequences whose replies did not fit the earlier generation.
    deferred: tuple[int, ...] = ()
    #: Of the channel, as granted.
    slots: int = 1
    #: Shared memory of both directions.
    bytes: int = 0
    #: The channel's descriptors, of transport `sealed`.
    sealed: SealedChannelFds | None = None
    #: Serial of the engine that holds the reply waiting for room, by sequence; the serving engine has the others.
    holders: dict[int, int] = field(default_factory=dict)
    #: GPU memory for arrays of the requests; None: the client has asked for none.
    area: DeviceArea | None = None
    #: Of an area that is being allocated.
    reserved_device_bytes: int = 0

    @property
    def channel(self) -> int:
        return self.channel_info.identity.channel

    @property
    def device_bytes(self) -> int:
        """GPU memory that counts against the limits."""
        return max(self.reserved_device_bytes, self.area.bytes if self.area is not None else 0)

    def use_area(self, area: DeviceArea | None) -> None:
        """Replace the area; the descriptor of the earlier one is closed."""
        before, self.area = self.area, area
        if before is not None:
            before.close()


class LeaseRefused(Exception):
    """No channel: `reason` is one of evicted, too_often, too_many_clients, too_large, too_many_bytes, no_shared_memory.

    The facts beside the message are for programs: shared memory in bytes, and seconds until a banned process may attach.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        needed_bytes: int | None = None,
        limit_bytes: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.facts = {"needed_bytes": needed_bytes, "limit_bytes": limit_bytes, "retry_after_s": retry_after_s}


class Leases:
    """Creates, resizes and removes the channels of one daemon run."""

    def __init__(self, config: Config, names: NameRegistry, epoch: int, *, on_bell_removed: Callable[[], None]) -> None:
        """`on_bell_removed` is called when the request bell's name is gone and no client is attached."""
        self._config = config
        self._names = names
        self._epoch = epoch
        self._on_bell_removed = on_bell_removed
        #: The doorbell that every client of transport `named` rings.
        self.request_bell = names.fresh()
        self._generation = 0
        self._held: dict[int, Lease] = {}
        self.model_wants = Wanted(0)
        self.bans = Bans()
        self.deaths = Deaths(own_uids=(0, os.getuid()))
        self._released: OrderedDict[int, Lease] = OrderedDict()

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, channel: int) -> Lease | None:
        return self._held.get(channel)

    def of_generation(self, channel: int, generation: int) -> Lease | None:
        """Return the lease that this generation of a channel belongs or belonged to."""
        lease = self._held.get(channel)
        if lease is not None and lease.channel_info.identity.generation == generation:
            return lease
        return self._released.get(generation)

    def suspicion(self, lease: Lease) -> Suspicion | None:
        """Return the suspicion against this client now, or None."""
        return self.deaths.suspicion(lease.peer, lease.attached_ns / 1e9, time.monotonic())

    def grant(self, peer: Peer, program: str, wanted: Wanted, now_ns: int) -> tuple[Lease, list[int]]:
        """Return a channel for a new client and the descriptors to pass to it; raises LeaseRefused and keeps nothing."""
        refusal = self.bans.refusal(peer, self._config.ban_s, now_ns / 1e9)
        if refusal is not None:
            raise LeaseRefused("evicted", refusal.message, retry_after_s=refusal.left_s)
        if len(self._held) >= self._config.max_clients:
            raise LeaseRefused(
                "too_many_clients",
                f"{len(self._held)} clients are attached and max_clients is {self._config.max_clients}",
            )
        of_user = sum(lease.peer.uid == peer.uid for lease in self)
        if of_user >= (self._config.max_clients_per_user or self._config.max_clients):
            raise LeaseRefused(
                "too_many_clients",
                f"uid {peer.uid} has {of_user} clients attached and max_clients_per_user is "
                f"{self._config.max_clients_per_user}",
            )
        if not self._held and self._bell_removed():
            self._on_bell_removed()
        channel = next(number for number in range(self._config.max_clients) if number not in self._held)
        sealed = SealedChannelFds() if self._config.transport == "sealed" else None
        channel_info, given, size = self._create(channel, peer, wanted, sealed, published=0)
        trusted_uids = self._config.trusted_uids
        trusted = peer.uid == os.getuid() if trusted_uids is None else peer.uid in trusted_uids
        slots = self._slots(wanted)
        lease = Lease(channel_info, peer, program, trusted, now_ns, wanted, slots=slots, bytes=size, sealed=sealed)
        self._held[channel] = lease
        return lease, given

    def resize(self, lease: Lease, wanted: Wanted, published: int, deferred: Sequence[int]) -> list[int]:
        """Give the lease a new generation of its channel; returns the descriptors to pass to the client."""
        channel_info, given, size = self._create(lease.channel, lease.peer, wanted, lease.sealed, published=published)
        old = lease.channel_info
        self._remember_released(lease)
        lease.channel_info, lease.wanted, lease.deferred, lease.bytes = channel_info, wanted, tuple(deferred), size
        lease.slots = self._slots(wanted)
        lease.holders = {sequence: lease.holders[sequence] for sequence in deferred if sequence in lease.holders}
        if old.names is not None:
            unlink_channel(old)
        return given

    def release(self, channel: int) -> Lease | None:
        """Remove the names of a client that is gone."""
        lease = self._held.pop(channel, None)
        if lease is not None:
            self._remember_released(lease)
        if lease is not None and lease.channel_info.names is not None:
            unlink_channel(lease.channel_info)
        if lease is not None and lease.sealed is not None:
            lease.sealed.close()
        if lease is not None:
            lease.use_area(None)
        return lease

    def _slots(self, wanted: Wanted) -> int:
        return min(wanted.slots, self._config.max_slots)

    def _remember_released(self, lease: Lease) -> None:
        self._released[lease.channel_info.identity.generation] = lease
        if len(self._released) > _MAX_RELEASED:
            self._released.popitem(last=False)

    def _create(
        self, channel: int, peer: Peer, wanted: Wanted, sealed: SealedChannelFds | None, *, published: int
    ) -> tuple[ChannelInfo, list[int], int]:
        model = self.model_wants
        slots = self._slots(wanted)
        requests = _geometry(slots, wanted.request_metadata, max(wanted.request_bytes, model.request_bytes))
        replies = _geometry(slots, wanted.reply_metadata, max(wanted.reply_bytes, model.reply_bytes))
        total = requests.segment_bytes + replies.segment_bytes
        if total > self._config.max_channel_bytes:
            raise LeaseRefused(
                "too_large",
                f"{slots} slots of {requests.payload_bytes} and {replies.payload_bytes} bytes make {total} bytes; "
                f"max_channel_bytes is {self._config.max_channel_bytes}",
                needed_bytes=total,
                limit_bytes=self._config.max_channel_bytes,
            )
        self._check_room(channel, peer, total)
        self._check_memory(total)
        if self._bell_removed():
            raise LeaseRefused("no_shared_memory", _REMOVED)
        self._generation += 1
        identity = Identity(self._epoch, channel, self._generation)
        fresh = self._names.fresh
        names = None if sealed else ChannelNames(fresh(), fresh(), self.request_bell, fresh())
        channel_info = ChannelInfo(identity, names)
        try:
            if sealed is not None:
                return channel_info, sealed.create(identity, requests, replies, published=published), total
            create_channel(channel_info, requests, replies, published=published, group=self._config.serves_group)
        except OSError as error:
            free = os.statvfs("/dev/shm")
            raise LeaseRefused(
                "no_shared_memory",
                f"{total} bytes of shared memory are needed and /dev/shm has {free.f_bavail * free.f_frsize} free "
                f"({error.strerror}); enlarge it (docker run --shm-size), ask for fewer slots, or close other clients",
                needed_bytes=total,
                limit_bytes=free.f_bavail * free.f_frsize,
            ) from error
        return channel_info, [], total

    def _bell_removed(self) -> bool:
        return self._config.transport == "named" and not exists_doorbell(self.request_bell)

    def _check_memory(self, wanted_bytes: int) -> None:
        """Raise LeaseRefused if the kernel might kill engines or this process for the allocation."""
        headroom = group_without_headroom(wanted_bytes)
        if headroom is not None:
            raise LeaseRefused(
                "no_shared_memory",
                f"{wanted_bytes} bytes of shared memory are needed and of the daemon's memory limit, {headroom.limit} bytes, "
                f"{headroom.free} are free for channels; raise it (MemoryMax= of the unit, docker run --memory), ask for "
                "fewer slots, or close other clients",
                needed_bytes=wanted_bytes,
                limit_bytes=headroom.free,
            )

    def _check_room(self, channel: int, peer: Peer, wanted_bytes: int) -> None:
        """Raise LeaseRefused if all channels, or this user's, exceed their bytes with `channel` at this many."""
        others = [lease for lease in self if lease.channel != channel]
        of_user = sum(lease.bytes for lease in others if lease.peer.uid == peer.uid)
        limits: tuple[tuple[str, str, int, int | None], ...] = (
            (f"the channels of uid {peer.uid}", "max_bytes_per_user", of_user, self._config.max_bytes_per_user),
            (
                "all channels",
                "max_shared_bytes",
                sum(lease.bytes for lease in others),
                self._config.max_shared_bytes or _half_of_memory(),
            ),
        )
        for whose, setting, taken, limit in limits:
            if limit is not None and taken + wanted_bytes > limit:
                raise LeaseRefused(
                    "too_many_bytes" if taken else "too_large",
                    f"{whose} have {taken} bytes of shared memory, this one needs {wanted_bytes}; {setting} is {limit}",
                    needed_bytes=wanted_bytes,
                    limit_bytes=max(0, limit - taken),
                )


def _half_of_memory() -> int:
    """Return the size that Linux gives /dev/shm. Nothing else limits the memfds of transport `sealed`."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _geometry(slots: int, metadata_bytes: int, payload_bytes: int) -> Geometry:
    # With a margin of an eighth: an instruction that grows a little must not resize the channel each time.
    metadata = min(aligned(max(_MIN_METADATA, metadata_bytes + metadata_bytes // 8), CACHE_LINE), MAX_METADATA_BYTES)
    payload = aligned(max(_MIN_PAYLOAD, payload_bytes), _PAGE)
    return Geometry(slots, metadata, payload)
