"""Engine loop for a device: the next batch is copied in while the device works on the current one.

Requests are staged or on the device only inside `_serve_next`. The loop handles the supervisor's messages only outside
of it, so a channel never changes during a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ...ipc.stats import Counter
from ..channel.channel_state import BrokenChannel, ChannelState
from ..channel.mapped_channel import MappedChannel
from ..loop.loop import EngineLoop
from .context import DeviceContext
from .errors import raise_if_lost
from .interface import Device
from .serving import DeviceServing

#: Minimum time between an idle engine's checks of its device.
_QUERY_INTERVAL_NS = 2_000_000_000
#: Batches between two checks of the doorbell, which idle channels ring.
_BATCHES_PER_TAKE = 4


class IdleDevice:
    """Check that detects a lost device while the engine is idle, before a client does."""

    def __init__(self, device: Device, query_interval_ns: int = _QUERY_INTERVAL_NS) -> None:
        self._device = device
        self._query_interval_ns = query_interval_ns
        self._event = device.event()
        self._asked_ns = time.monotonic_ns()

    def look(self, now_ns: int) -> None:
        """Check the device if the last check is long enough ago; raises DeviceLost."""
        if now_ns - self._asked_ns < self._query_interval_ns:
            return
        self._asked_ns = now_ns
        try:
            self._event.query()  # recorded by the previous check
            self._device.record(self._event)
        except RuntimeError as error:
            raise_if_lost(self._device, error)


class GuardedLoop(EngineLoop):
    """An `EngineLoop` for a model that uses a device by itself."""

    def __init__(self, *wiring: Any, context: DeviceContext) -> None:
        super().__init__(*wiring)
        self._context = context
        self._idle_device = IdleDevice(context.device)

    def _idle(self, began_ns: int) -> None:
        self._idle_device.look(began_ns)
        super()._idle(began_ns)


class DeviceLoop(GuardedLoop):
    """An `EngineLoop` that does not wait idly for the device."""

    def __init__(self, *wiring: Any, context: DeviceContext, report: Callable[[], None] = lambda: None) -> None:
        """`report` tells the supervisor what `context` reports."""
        super().__init__(*wiring, context=context)
        self._report = report
        assert isinstance(self._serving, DeviceServing)
        self._device_serving = self._serving
        self._busy = False
        self._broken_meanwhile: list[tuple[ChannelState, str]] = []

    def _idle(self, began_ns: int) -> None:
        if self._context.registrar.take_change():
            self._report()
        super()._idle(began_ns)

    def add(self, state: ChannelState) -> None:
        try:
            self._make_room(state)
        except BrokenChannel:
            state.close()  # it is in no set yet
            raise
        super().add(state)

    def move(self, state: ChannelState, mapped: MappedChannel, deferred: Sequence[int]) -> None:
        super().move(state, mapped, deferred)
        self._make_room(state)

    def make_room_for(self, number: int, area_bytes: int) -> None:
        """Make room for requests of this channel that have that many bytes in GPU memory; raises BrokenChannel."""
        state = self.states.get(number)
        if state is not None:
            self._make_room(state, area_bytes)

    def _make_room(self, state: ChannelState, area_bytes: int | None = None) -> None:
        areas, payload_bytes = self._context.areas, state.channel.requests.segment.geometry.payload_bytes
        if area_bytes is None:
            area_bytes = areas.area_bytes(state.number) if areas is not None else 0
        try:
            self._context.make_room(payload_bytes + area_bytes)
        except RuntimeError as error:
            raise_if_lost(self._context.device, error)
            raise BrokenChannel(f"the device has no memory for the requests of this client: {error}") from error

    def _serve_next(self) -> None:
        serving, words = self._device_serving, self._words
        if self._serving is not serving:  # a recorder is attached: one batch after the other
            super()._serve_next()
            return
        self._busy = True
        batches = 0
        try:
            self._fill(ahead=False)
            while serving.staged:
                # Once per batch and not while the device works, so that the watchdog notices a device that hangs.
                words[Counter.HEARTBEAT_NS] = now_ns = time.monotonic_ns()
                if self._resting:
                    self._end_rests(now_ns)
                if serving.launch():
                    serving.wait(self._look_meanwhile, self._sleep)
                    serving.finish(self._waiting)
                batches += 1
                if batches % _BATCHES_PER_TAKE == 0 and self._listens() and (self._rung or self._bell.count() > 0):
                    self._take_rings(time.monotonic_ns())
                if serving.staged:
                    self._fill(ahead=False)  # newer requests join the batch
        finally:
            self._busy = False
        while self._broken_meanwhile:
            state, reason = self._broken_meanwhile.pop()
            if self.states.get(state.number) is state:
                super()._give_up(state, reason)

    def _listens(self) -> bool:
        """Return whether further requests may start before the loop handles its messages."""
        return not self._draining and not self._broken_meanwhile and self._words[Counter.CONTROL] == self._control_seen

    def _fill(self, *, ahead: bool) -> None:
        """Stage requests in the order of their turns, until the batch is full."""
        serving = self._device_serving
        while self._waiting:
            state = self._next()
            if state is None or (ahead and state.behind_ns):
                return  # a suspected client's request is staged only when no other is
            head = state.waiting[0]
            if not serving.admits(head, state):
                return
            # A client with a request on the device could also take the next turn, before a client with one request at a
            # time can send its next: the former waits for the end of its request, unless no other client is active.
            if ahead and len(self._active) > 1 and serving.flies(state):
                return
            state.waiting.popleft()
            state.last_served_ns = time.monotonic_ns()
            if not state.waiting:
                self._waiting.remove(state)
            serving.stage(state, head, ahead=ahead)

    def _look_meanwhile(self) -> None:
        """Handle requests that arrive while the device works."""
        if not self._listens():
            return
        self._admit_active(time.monotonic_ns())
        # Requests are not staged beside one that may crash the engine.
        if self._waiting and self._listens() and not self._device_serving.flies_suspect:
            staged = self._device_serving.staged
            self._fill(ahead=True)
            if self._device_serving.staged > staged:
                self._device_serving.send_ahead()

    def _sleep(self, timeout_ns: int) -> None:
        """Sleep until a request arrives or the time is over."""
        if not self._listens():
            time.sleep(timeout_ns / 1e9)
        elif self._bell.wait(timeout_ns):
            self._rung = not self._bell.names_channels
            self._take_rings(time.monotonic_ns())

    def _give_up(self, state: ChannelState, reason: str) -> None:
        if not self._busy:
            super()._give_up(state, reason)
            return
        # Its requests may be staged or on the device: its memory stays until they are answered.
        self._forget(state)
        state.waiting.clear()
        self._broken_meanwhile.append((state, reason))
