"""GPU memory for a client's arrays: the serving engine allocates it, and every engine that may serve later maps it.

The supervisor has no CUDA. It asks the serving engine on a socket of this one allocation, on which the answer comes with the
memory's descriptor: an answer cannot be taken for another's, and the end of the socket means that the engine died.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from shmserve.varlink_socket import close_fds, receive_with_fds

from ..clients import AreaUnavailable, DeviceArea, Lease, Leases
from ..clients.device_areas import check_room, rounded
from ..config.config import Config
from ..ipc.messages import AREA_ANSWERS, AllocateArea, AreaAllocated, InvalidMessage, decode
from .engine_pool import EnginePool
from .engine_process import EngineProcess

#: An engine in a long inference answers afterwards.
_LIMIT_S = 10.0
_ANSWER_BYTES = 4096


class DeviceAreas:
    """Gives leases their areas."""

    def __init__(self, config: Config, leases: Leases, engines: EnginePool) -> None:
        self._config = config
        self._leases = leases
        self._engines = engines

    async def share(self, lease: Lease, area_bytes: int) -> DeviceArea:
        """Return the lease's area with room for that many bytes in each slot, a new one if it has none or a smaller one.

        Raises AreaUnavailable; an area from before stays then.
        """
        if not self._config.device_leaves:
            raise AreaUnavailable("off", "device_leaves is false: set it, or start shmserved with --device-leaves")
        if self._config.device.startswith("cpu"):
            raise AreaUnavailable("no_gpu", f"the service runs on {self._config.device}")
        if lease.area is not None and lease.area.holds(area_bytes, lease.slots):
            return lease.area
        area_bytes, engine = rounded(area_bytes), self._engines.serving
        wanted = check_room(self._config, self._leases, lease.channel, area_bytes, lease.slots)
        if engine is None:
            raise AreaUnavailable("not_ready", "no model serves now: ask again")
        lease.reserved_device_bytes = wanted
        try:
            area = await _allocated(engine, lease.channel, area_bytes, lease.slots, self._engines.ring)
        finally:
            lease.reserved_device_bytes = 0
        if self._leases.get(lease.channel) is not lease or self._engines.serving is not engine:
            area.close()
            self._engines.channels.restore_area(lease, engine)
            raise AreaUnavailable("not_ready", "another engine took over meanwhile: ask again")
        lease.use_area(area)
        self._engines.channels.share_area(lease, beside=engine)
        return area


async def _allocated(
    engine: EngineProcess, channel: int, area_bytes: int, slots: int, ring: Callable[[], None]
) -> DeviceArea:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            ours.setblocking(False)
            engine.send(AllocateArea(channel, area_bytes, slots), fds=(theirs.fileno(),))
        ring()
        try:
            await asyncio.wait_for(_readable(ours), _LIMIT_S)
        except asyncio.TimeoutError:
            raise AreaUnavailable("not_ready", "the engine is busy: ask again") from None
        return _answer(ours, area_bytes, slots)


async def _readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _answer(ours: socket.socket, area_bytes: int, slots: int) -> DeviceArea:
    frame, descriptors, _ = receive_with_fds(ours, _ANSWER_BYTES, 1)
    try:
        if not frame:
            raise AreaUnavailable("not_ready", "the engine died: ask again")
        answer, _ = decode(frame.rstrip(b"\0"), AREA_ANSWERS)
        if not isinstance(answer, AreaAllocated):
            raise AreaUnavailable(answer.reason, answer.message)
        if not descriptors or answer.bytes < area_bytes * slots:
            raise AreaUnavailable("failed", "the engine gave no memory of this size")
        return DeviceArea(descriptors.pop(), area_bytes, slots, answer.bytes, answer.gpu)
    except InvalidMessage as error:
        raise AreaUnavailable("failed", f"the engine's answer cannot be read: {error}") from error
    finally:
        close_fds(descriptors)
