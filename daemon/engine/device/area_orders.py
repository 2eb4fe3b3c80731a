"""The supervisor's orders about GPU memory of channels (areas.py)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from ...ipc.messages import AllocateArea, AreaAllocated, AreaRefused, MapArea, encode
from ..channel.channel_state import BrokenChannel
from ..loop.loop import EngineLoop
from .areas import Area, Areas
from .interface import SharingFailed
from .loop import DeviceLoop

_TAKES_NONE = "the model that serves takes numpy arrays, or runs elsewhere"


class AreaOrders:
    """Carries them out between two batches."""

    def __init__(self, areas: Areas | None, loop: EngineLoop, broken: Callable[..., None]) -> None:
        """Without `areas` this engine takes no arrays from GPU memory. `broken` reports a channel that cannot be served."""
        self._areas = areas
        self._loop = loop
        self._broken = broken

    def carry_out(self, order: AllocateArea | MapArea, descriptors: Sequence[int]) -> None:
        """Carry out one order, whose descriptors become this function's."""
        try:
            if not descriptors:
                return  # this process had no room for it; the supervisor sees the end of the socket
            if isinstance(order, AllocateArea):
                self._allocate(order, descriptors[0])
            elif self._areas is not None:
                self._map(self._areas, order, descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def forget(self, channel: int) -> None:
        """Unmap the memory of a client that has left."""
        if self._areas is not None:
            self._areas.forget(channel)

    def _allocate(self, order: AllocateArea, answer_to: int) -> None:
        area: Area | None = None
        memory: list[int] = []
        answer: AreaAllocated | AreaRefused = AreaRefused("numpy", _TAKES_NONE)
        try:
            if self._areas is not None:
                gpu = self._areas.gpu
                area, descriptor = self._areas.allocate(order.area_bytes, order.slots)
                memory.append(descriptor)
                self._make_room(order)
                answer = AreaAllocated(area.memory.size, gpu)
        except SharingFailed as error:
            answer = AreaRefused("no_memory" if error.is_short else "failed", str(error))
        except BrokenChannel as error:
            answer = AreaRefused("no_memory", str(error))
        try:
            is_taken = _send(answer_to, answer, memory if isinstance(answer, AreaAllocated) else [])
        finally:
            for descriptor in memory:
                os.close(descriptor)
        if area is None or self._areas is None:
            return
        if is_taken and isinstance(answer, AreaAllocated):
            self._areas.use(order.channel, area)
        else:  # the channel keeps the memory that it had
            area.memory.close()

    def _map(self, areas: Areas, order: MapArea, descriptor: int) -> None:
        try:
            areas.use(order.channel, areas.map(descriptor, order.bytes, order.area_bytes, order.slots))
            self._make_room(order)
        except (SharingFailed, BrokenChannel) as error:
            areas.forget(order.channel)
            state = self._loop.states.get(order.channel)
            if state is not None:  # it may attach again, and ask anew
                reason = "its GPU memory cannot be mapped"
                self._broken(state.channel_info, reason, blame=False, detail=f"cannot have GPU memory: {error}")

    def _make_room(self, order: AllocateArea | MapArea) -> None:
        if isinstance(self._loop, DeviceLoop):
            self._loop.make_room_for(order.channel, order.area_bytes)


def _send(to: int, answer: AreaAllocated | AreaRefused, descriptors: Sequence[int]) -> bool:
    """Answer the supervisor; return whether it still waits."""
    try:
        with socket.socket(fileno=os.dup(to)) as sock:
            sock.setblocking(False)
            socket.send_fds(sock, [encode(answer, len(descriptors))], descriptors)
    except OSError:
        return False
    return True
