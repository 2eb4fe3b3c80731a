"""Channels of the engines: reports leases to every warm engine, and records which engine holds a deferred reply."""

from __future__ import annotations

from collections.abc import Iterable

from ..clients import Lease, Leases
from ..config.config import Config
from ..ipc.messages import Attach, Detach, EndRecording, LimitRate, Lost, MapArea, Record, Suspect
from .engine_process import EngineProcess


class EngineChannels:
    """Tells every engine in `warm` of every channel."""

    def __init__(self, config: Config, leases: Leases) -> None:
        self._config = config
        self._leases = leases
        self._warm: list[EngineProcess] = []
        self._record_ring: tuple[int, int | None] | None = None  # descriptor, and the one channel that is recorded

    def open(self, engine: EngineProcess) -> None:
        """Tell an engine of every channel, and from now on of every change of them."""
        self._warm.append(engine)
        self._send_rate(engine)
        for lease in self._leases:
            self._send_lease(engine, lease)
            self._send_area(engine, lease)
        self._send_record_ring(engine)

    def close(self, engine: EngineProcess) -> None:
        """Tell it nothing more; may be called twice."""
        if engine in self._warm:
            self._warm.remove(engine)

    def attach(self, lease: Lease) -> None:
        """Tell every warm engine of a new lease, or of a lease's new generation."""
        for engine in self._warm:
            self._send_lease(engine, lease)

    def share_area(self, lease: Lease, *, beside: EngineProcess) -> None:
        """Let every warm engine but the one that has it map the lease's GPU memory."""
        for engine in self._warm:
            if engine is not beside:
                self._send_area(engine, lease)

    def restore_area(self, lease: Lease, engine: EngineProcess) -> None:
        """Let an engine use the lease's GPU memory again, after it has allocated other memory that was not taken."""
        if engine in self._warm and self._leases.get(lease.channel) is lease:
            self._send_area(engine, lease)

    def _send_area(self, engine: EngineProcess, lease: Lease) -> None:
        area = lease.area
        if area is not None:
            engine.send(MapArea(lease.channel, area.area_bytes, area.slots, area.bytes), fds=(area.descriptor,))

    def suspect(self, lease: Lease) -> None:
        """Tell every warm engine how long this client is suspected of what an engine died of."""
        suspicion = self._leases.suspicion(lease)
        if suspicion is not None:
            for engine in self._warm:
                engine.send(Suspect(lease.channel, suspicion))

    def detach(self, channel: int) -> None:
        """The client of `channel` is gone."""
        for engine in self._warm:
            engine.send(Detach(channel))

    def limit_rates(self) -> None:
        """`max_rate_per_user` has changed."""
        for engine in self._warm:
            self._send_rate(engine)

    def _send_rate(self, engine: EngineProcess) -> None:
        engine.send(LimitRate(self._config.max_rate_per_user))

    def _send_lease(self, engine: EngineProcess, lease: Lease) -> None:
        # A deferred reply is delivered by the engine that holds it. If that engine has ended, or none is
        # known, the serving engine delivers it or reports it as lost.
        others = {warm.serial for warm in self._warm if warm is not engine}
        deferred = [sequence for sequence in lease.deferred if lease.holders.get(sequence) not in others]
        fds = lease.sealed.engine_ends() if lease.sealed is not None else ()
        attach = Attach(
            channel_info=lease.channel_info,
            trusted=lease.trusted,
            uid=lease.peer.uid,
            deferred=tuple(deferred),
            suspicion=self._leases.suspicion(lease),
        )
        engine.send(attach, fds=fds)

    # Recording

    @property
    def recording(self) -> bool:
        """Whether a recorder is attached."""
        return self._record_ring is not None

    def record(self, record_ring: int, channel: int | None) -> None:
        """Tell every engine of a recorder's record ring; the descriptor stays the caller's, until `end_recording`."""
        self._record_ring = record_ring, channel
        for engine in self._warm:
            self._send_record_ring(engine)

    def end_recording(self) -> None:
        """Report the end of the recording to every engine."""
        self._record_ring = None
        for engine in self._warm:
            engine.send(EndRecording())

    def _send_record_ring(self, engine: EngineProcess) -> None:
        if self._record_ring is not None:
            engine.send(Record(self._record_ring[1]), fds=self._record_ring[:1])

    # Results that wait

    def note_deferred(self, engine: EngineProcess, deferred: Iterable[tuple[int, int]]) -> None:
        """An engine has paused and holds these (channel, sequence): a result that did not fit its reply slot waits in
        it for the client to make room."""
        for channel, sequence in deferred:
            lease = self._leases.get(channel)
            if lease is not None:
                lease.holders[sequence] = engine.serial

    def has_deferred(self, engine: EngineProcess) -> bool:
        """Whether a client has yet to make room for a result that this engine holds."""
        return any(
            serial == engine.serial and sequence not in lease.deferred
            for lease in self._leases
            for sequence, serial in lease.holders.items()
        )

    def report_lost(self, engine: EngineProcess) -> None:
        """Report the deferred replies of an engine that has ended, for which clients have made room, as lost."""
        for lease in self._leases:
            deferred = [sequence for sequence, serial in lease.holders.items() if serial == engine.serial]
            for sequence in deferred:
                del lease.holders[sequence]
            lost = [sequence for sequence in deferred if sequence in lease.deferred]
            if lost:
                identity = lease.channel_info.identity
                for warm in self._warm:
                    warm.send(Lost(identity.channel, identity.generation, tuple(lost)))
