"""The engine's main loop: wait, pick, stage, infer, reply.

In the steady state the loop reuses its memory and formats no log line, and it makes no system call while requests keep
coming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shmserve.backend import (
    abandon,
    bytes_in_flight,
    mark_asleep,
    mark_awake,
    poll_first,
    same_cpu_writers,
    sleeping_writers,
    spin,
)
from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.layout import COUNTER_LINE
from shmserve.spin import SpinBudget

from ...ipc.stats import Counter, Stats
from ..channel.channel_state import BrokenChannel, ChannelState
from ..channel.mapped_channel import MappedChannel
from ..requests.recording import RecordedServing
from ..requests.serving import QueuedRequest, Serving
from .doorbells import Doorbells
from .poll_set import PollSet
from .schedule import charge, next_of
from .wake_ahead import LONGEST_NS, Expected, WakeAhead, leave_processor

#: Longest wait, in case a ring was lost; four times as long if no client has sent a request for a second.
LONGEST_WAIT_NS = 50_000_000
_LONGEST_IDLE_WAIT_NS = 200_000_000
#: A channel that was silent this long is idle: it is polled only after a ring or the longest wait.
_IDLE_AFTER_NS = 1_000_000_000
#: Requests served between two looks at the doorbell, which idle channels ring; sooner if they take long.
_SERVED_PER_TAKE, _TAKE_AFTER_NS = 4, 200_000
#: Shortest time between two scans of all channels, for each channel, where a ring does not name its channel. A look
#: takes 0.1 us, so that scans take at most a twentieth of a busy engine's time.
_SCAN_AFTER_NS = 2_000
#: Longest time that the engine polls for a request that its client is writing, and for a client that makes no progress.
_WRITING_NS, _STANDSTILL_NS = 5_000_000, 100_000
#: A client that was active within this time is likely to prepare its next request.
_ABOUT_NS = 2_000_000
#: Time spent polling the active channels alone, between two looks at the doorbell and at the supervisor's control word.
_LOOKING_NS = 5_000
#: A look takes longer only if another program, or another virtual machine, has the CPU meanwhile.
_LONGEST_LOOK_NS = 100_000
#: A client that its reply wakes on another CPU has noted it by then: one that has not waits for this CPU.
_WAKING_NS = 100_000
#: A request that was running when an engine died is tried again once no other client has sent one for this long.
_QUIET_NS = 500_000_000
_PROCESSOR = COUNTER_LINE.names.index("processor")
_HEARTBEAT_NS, _CONTROL = int(Counter.HEARTBEAT_NS), int(Counter.CONTROL)


class EngineLoop:
    """Serves the channels until `stopped`.

    `control(timeout_s)` handles the supervisor's messages, waiting that long for the first, and returns whether it left
    some for its next call; `broken` is called with each channel that was given up, and the reason.
    """

    def __init__(
        self,
        bell: Doorbells,
        stats: Stats,
        serving: Serving,
        budget: SpinBudget,
        control: Callable[[float], bool],
        broken: Callable[[ChannelInfo, str], None],
        let_go: Callable[[EngineChannel], None] = EngineChannel.close,
        ahead: WakeAhead | None = None,
        longest_wait_ns: int = LONGEST_WAIT_NS,
    ) -> None:
        """Remember the collaborators; `let_go` closes a channel that is not served now, at once or between requests.

        `ahead` knows which request is expected; without it the engine sleeps until a client rings.

        After `longest_wait_ns` an engine with active channels polls all of them, even without a ring.
        """
        self._longest_wait_ns = longest_wait_ns
        self._bell = bell
        self._words = stats.words
        self._serving: Serving | RecordedServing = serving
        self._budget = budget
        self._control = control
        self._broken = broken
        self._control_seen = 0
        self._more_control = False
        self.states: dict[int, ChannelState] = {}
        self._all = PollSet()
        self._let_go = let_go
        self._ahead = ahead
        self._is_late = False  # the engine was awake for a request that has not come yet
        self._active = PollSet()
        self._waiting: list[ChannelState] = []
        #: Channels whose requests wait for a point in time rather than for their turn, and that time.
        self._resting: dict[ChannelState, int] = {}
        self._scanned_ns = 0
        self._taken_ns = 0
        self._waited_ns = 0  # length of the last wait that a request ended while the loop spun; not in the budget yet
        #: Whether a ring of an unknown channel was taken and not all channels were polled since. Rings are not
        #: counted against requests: a client that publishes without ringing could make the sum come out as it likes.
        self._rung = False
        self.serving = False
        self.stopped = False
        self._draining = False

    def add(self, state: ChannelState) -> None:
        """Serve this channel from now on."""
        self.states[state.number] = state
        self._all.add(state)
        self._bell.watch(state)
        if self.serving:
            self._open(state)

    def remove(self, number: int) -> None:
        """Close a channel without answering its waiting requests, because its client is gone."""
        state = self.states.pop(number, None)
        if state is None:
            return
        self._forget(state)
        self._bell.forget(state)
        state.close(self._let_go)

    def client_left(self, number: int) -> None:
        """Remove the channel of a client that left for good, and its state in the model: the number may be reused."""
        self.remove(number)
        self._serving.client_left(number)

    def move(self, state: ChannelState, mapped: MappedChannel, deferred: Sequence[int]) -> None:
        """Continue a channel in its new generation."""
        self._forget(state)
        self._bell.forget(state)
        state.resume(mapped, deferred, serving=True, let_go=self._let_go)
        self._all.add(state)
        self._bell.watch(state)
        self._activate(state)
        if state.waiting:
            self._waiting.append(state)

    def serve(self) -> None:
        """Begin to take requests: find those that are due in every channel."""
        self.serving = True
        for state in list(self.states.values()):
            self._open(state)

    def serve_through(self, serving: Serving | RecordedServing) -> None:
        """Run requests through `serving` from the next one on."""
        self._serving = serving

    def pause(self) -> None:
        """Take no further request; waiting requests stay in their slots for the next engine."""
        self.serving = False
        for state in self.states.values():
            state.waiting.clear()
        self._waiting.clear()
        self._resting.clear()
        self._active.keep([])

    def drain(self) -> int:
        """Answer the requests published until now, then stop; later requests are refused.

        Returns the number of requests to answer, with the deferred replies for which a client has yet to make room.
        """
        if not self.serving:
            self.stopped = True
            return 0
        now_ns = time.monotonic_ns()
        for state in list(self.states.values()):
            self._look(state, now_ns)
        self._draining = True
        self._end_rests(now_ns)
        return sum(len(state.waiting) + len(state.deferred_replies) for state in self.states.values())

    def run(self) -> None:
        """Serve until stopped."""
        words = self._words
        untaken = 0  # requests served since the last look at the doorbell
        while not self.stopped:
            now_ns = time.monotonic_ns()
            words[_HEARTBEAT_NS] = now_ns
            if not self.serving:
                # The doorbell belongs to the serving engine: a ring taken here would be missed there.
                self._control(self._longest_wait_ns / 1e9)
                continue
            if self._draining:
                self._drain_on()
                continue
            if words[_CONTROL] != self._control_seen or self._more_control:
                self._control_seen = words[_CONTROL]
                self._more_control = self._control(0)
                if not self._more_control or not self.serving or self._draining or self.stopped:
                    continue
            served = self._look_at_active(now_ns)
            if self._resting:
                self._end_rests(now_ns)
            if self._waiting:
                self._serve_next()
                served = True
            if served:
                # After the reply, so that the client does not wait for it.
                untaken += 1
                if untaken < _SERVED_PER_TAKE and now_ns - self._taken_ns < _TAKE_AFTER_NS:
                    continue
            untaken = 0
            self._taken_ns = now_ns
            if self._rung or self._bell.count() > 0 or now_ns - self._scanned_ns > self._longest_wait_ns:
                self._take_rings(now_ns)
                if poll_first(self._active.pollers) >= 0:
                    continue
            if not self._waiting and not self._more_control and not self.stopped:
                self._idle(now_ns)

    def _drain_on(self) -> None:
        self._refuse_new(time.monotonic_ns())
        if self._waiting:
            self._serve_next()
        elif any(state.deferred_replies for state in self.states.values()):
            self._control(self._longest_wait_ns / 1e9)  # deferred replies wait for their clients to make room
        else:
            self.stopped = True

    def _refuse_new(self, now_ns: int) -> None:
        """Refuse new requests at once, so that their clients do not wait for a service that is stopping."""
        for state in list(self.states.values()):
            try:
                state.refuse_new(now_ns)
            except BrokenChannel as error:
                self._give_up(state, str(error))

    def _open(self, state: ChannelState) -> None:
        try:
            state.open()
        except BrokenChannel as error:
            self._give_up(state, str(error))
            return
        if state.waiting:
            self._activate(state)
            self._waiting.append(state)

    def _activate(self, state: ChannelState) -> None:
        if state not in self._active:
            state.active_ns = time.monotonic_ns()
            self._active.add(state)

    def _forget(self, state: ChannelState) -> None:
        self._all.remove(state)
        self._active.remove(state)
        self._resting.pop(state, None)
        if state in self._waiting:
            self._waiting.remove(state)

    def _give_up(self, state: ChannelState, reason: str) -> None:
        self._broken(state.channel_info, reason)
        self.remove(state.number)
        self._more_control = True  # the channel's memory is to be released now

    def _look(self, state: ChannelState, now_ns: int) -> bool:
        queued = bool(state.waiting)
        try:
            if not state.look(now_ns):
                return False
        except BrokenChannel as error:
            self._give_up(state, str(error))
            return False
        if state.waiting and not queued:
            self._waiting.append(state)
        return True

    def _look_at_active(self, now_ns: int) -> bool:
        """Admit the requests of active clients, and serve a single one at once; return whether one was served."""
        changed = self._active.changed()
        if len(changed) == 1 and not self._waiting and not self._resting:
            self._serve_found(changed[0], now_ns)
            return True
        for state in changed:
            self._look(state, now_ns)
        return False

    def _admit_active(self, now_ns: int) -> None:
        """Admit the requests of active clients and serve none; for callers that are serving others."""
        for state in self._active.changed():
            self._look(state, now_ns)

    def _take_rings(self, now_ns: int) -> None:
        """Use up the rings, and poll the channels that may have rung."""
        rang = self._bell.take()
        if rang is None:
            self._rung = True
        else:
            for state in rang:
                self._look_unless_active(state, now_ns)
        since_ns = now_ns - self._scanned_ns
        # At once if no request waits: the client that rang may be the next one to serve.
        soon = self._rung and (not self._waiting or since_ns > _SCAN_AFTER_NS * len(self.states))
        if not soon and since_ns <= self._longest_wait_ns:
            return
        self._rung = False
        self._scanned_ns = now_ns
        self._active.keep([each for each in self._active.states if now_ns - each.active_ns < _IDLE_AFTER_NS])
        for state in self._all.changed():
            self._look_unless_active(state, now_ns)
        self._bell.unmute(now_ns)

    def _serve_found(self, state: ChannelState, now_ns: int) -> None:
        """Serve a request that was found while no other waited, on the fast path if the client has one, and need not rest."""
        may_rest = state.overhead.until_ns and self._is_beside_others(state)
        slow = state.waiting or state.deferred_replies or may_rest
        if not slow and self._serving.serve_fast(state):
            state.active_ns = time.monotonic_ns()  # from the reply on: the client prepares its next request now
            if state not in self._active:
                self._active.add(state)
            return
        self._look_at_idle(state, now_ns)
        if len(self._waiting) == 1:
            self._serve_next()

    def _look_unless_active(self, state: ChannelState, now_ns: int) -> None:
        """Leave an active client's request to the next turn of the loop, which may serve it on the fast path."""
        if state not in self._active:
            self._look_at_idle(state, now_ns)

    def _look_at_idle(self, state: ChannelState, now_ns: int) -> None:
        if self._look(state, now_ns) and state not in self._active:
            self._active.add(state)

    def _serve_next(self) -> None:
        waiting = self._waiting
        batch: list[QueuedRequest] = []
        began_ns = 0
        for _ in range(self._serving.max_batch):
            state = next_of(waiting) if len(waiting) > 1 else waiting[0]
            if state.overhead.until_ns or state.behind_ns:  # the test in `_next`, which saves the call for most
                found = self._next()
                if found is None or (batch and found.behind_ns):
                    break
                state = found
            if batch and batch[0][0].behind_ns:
                break  # a suspected client runs alone
            batch.append((state, state.waiting.popleft()))
            if not state.waiting:
                waiting.remove(state)
                if not waiting:
                    break
            state.last_served_ns = began_ns = time.monotonic_ns()
        if not batch:
            return
        self._serving.serve(batch)
        if waiting:
            # From the end of its turn: a client with one request in flight can send its next only now.
            now_ns = time.monotonic_ns()
            # Each request of a batch is charged its part of the time.
            began_ns = now_ns - (now_ns - began_ns) // len(batch)
            for state, _ in batch:
                charge(state, began_ns, now_ns, others=len(waiting) - bool(state.waiting))

    def _next(self) -> ChannelState | None:
        """Return the client whose turn it is, or None if all waiting clients have to rest."""
        waiting = self._waiting
        while waiting:
            state = next_of(waiting) if len(waiting) > 1 else waiting[0]
            if not (state.overhead.until_ns or state.behind_ns) or not self._rests(state):
                return state
            waiting.remove(state)
        return None

    def _rests(self, state: ChannelState) -> bool:
        """Make the request rest if overhead or suspicion demands it while others are active; return whether it does."""
        now_ns = time.monotonic_ns()
        suspect = state.is_suspect(now_ns)
        state.may_try_again = True
        if state.overhead.until_ns <= now_ns:
            state.overhead.until_ns = 0
        if self._draining or not self._is_beside_others(state):
            return False
        until_ns = state.overhead.until_ns
        if suspect and state.blamed and state.channel.replies.attempts(state.waiting[0].sequence):
            if not state.quiet_since_ns:
                state.quiet_since_ns = now_ns
                until_ns = max(until_ns, now_ns + _QUIET_NS)
            else:
                others = (each.active_ns for each in self._active.states if each is not state)
                state.may_try_again = max(others) <= state.quiet_since_ns
        if until_ns <= now_ns:
            return False
        self._resting[state] = until_ns
        return True

    def _is_beside_others(self, state: ChannelState) -> bool:
        """Return whether other clients have used the service within the last second."""
        return len(self._active) > (state in self._active)

    def _end_rests(self, now_ns: int) -> None:
        for state, until_ns in list(self._resting.items()):
            if until_ns <= now_ns or self._draining or not self._is_beside_others(state):
                del self._resting[state]
                self._waiting.append(state)

    def _idle(self, began_ns: int) -> None:
        """Poll for as long as a request is likely to come soon, then sleep."""
        if self._waited_ns:  # recorded now and not when the request came, because its client was waiting then
            self._budget.waited(self._waited_ns)
            self._waited_ns = 0
        if bytes_in_flight(self._all.copiers) >= 0:
            if self._look_at_written(began_ns):
                return
        elif self._spin(began_ns):
            return
        self._words[Counter.WAKES] += 1
        longest_ns = self._longest_wait_ns if self._active else _LONGEST_IDLE_WAIT_NS
        if self._resting:
            longest_ns = min(longest_ns, max(0, min(self._resting.values()) - time.monotonic_ns()))
        expected = self._expected()
        if expected is not None:
            longest_ns = min(longest_ns, expected.wake_ns - time.monotonic_ns())
        writers = self._active.writers
        rung = False
        if longest_ns > 0:
            mark_asleep(writers)
            rung = self._bell.wait(longest_ns)
            mark_awake(writers)
        if expected is not None and not rung and time.monotonic_ns() >= expected.wake_ns:
            # The budget learns how long it was until this request, and not how late the request then was.
            self._budget.waited(max(expected.due_ns - began_ns, LONGEST_NS))
            self._is_late = not self._meets(expected)
        elif rung:
            self._rung = not self._bell.names_channels  # the ring that ended the wait is used up
            now_ns = time.monotonic_ns()
            # At once, as in _spin: after a sleep each call takes two to three times as long.
            if len(self._active.states) == 1 and poll_first(self._active.pollers) >= 0:
                self._serve_found(self._active.states[0], now_ns)
            if not self._is_late:
                self._budget.waited(now_ns - began_ns)
            self._is_late = False
        elif not self._waiting and not self._resting:
            self._budget.waited(longest_ns)

    def _expected(self) -> Expected | None:
        """Return the request to be awake for; None if none is, or while others wait or rest."""
        if self._ahead is None or self._resting or self._waiting:
            return None
        return self._ahead.next(self._active.states, time.monotonic_ns())

    def _meets(self, expected: Expected) -> bool:
        """Be awake for a request that is due now, for a bounded time; return whether one came and was served."""
        ahead, active, words, control_seen = self._ahead, self._active, self._words, self._control_seen
        now_ns = began_ns = time.monotonic_ns()
        assert ahead is not None
        ahead.began(expected)
        if same_cpu_writers([expected.state.poller]):
            words_of_client, line = expected.state.words, expected.state.counter
            if leave_processor(words_of_client[line + _PROCESSOR] - 1):
                mark_awake(active.writers)
        if self._serving.warm(expected.state):
            ahead.came(expected, 0, time.monotonic_ns() - began_ns)
            return True
        ready_ns = now_ns = words[_HEARTBEAT_NS] = time.monotonic_ns()
        until_ns = max(ready_ns, began_ns + LONGEST_NS)
        while True:
            looked_ns = now_ns
            # Yielding: the client, whose timer fires just now, may wake up on this processor.
            place = spin(active.pollers, min(until_ns, now_ns + _LOOKING_NS), active.copiers, True)
            now_ns = time.monotonic_ns()
            mark_awake(active.writers)  # a thread that yields may have been moved
            if place >= 0:
                state = active.states[place]
                ahead.came(expected, now_ns - ready_ns, now_ns - began_ns)
                self._serve_found(state, now_ns)
                return True
            if bytes_in_flight(active.copiers) >= 0:
                ahead.came(expected, now_ns - ready_ns, now_ns - began_ns)
                return self._look_at_written(now_ns)
            if now_ns >= until_ns or words[_CONTROL] != control_seen or now_ns - looked_ns > _LONGEST_LOOK_NS:
                break  # the last: another program wants this processor
        ahead.came_not(expected, now_ns, now_ns - began_ns)
        return False

    def _spin(self, began_ns: int) -> bool:
        """Poll the active channels for as long as the last waits suggest; return whether there is anything to do."""
        active, words, control_seen, count = self._active, self._words, self._control_seen, self._bell.count
        until_ns = began_ns + self._budget.ns
        now_ns = began_ns
        lost_ns = 0  # time during which another program had this CPU: it says nothing of the clients
        while now_ns < until_ns:
            blocked = same_cpu_writers(active.pollers)
            if not blocked and now_ns - began_ns > _WAKING_NS:
                blocked = sleeping_writers(active.pollers)
            if blocked and _in_the_way(active, blocked, now_ns):
                return False
            looked_ns = now_ns
            place = spin(active.pollers, min(until_ns, now_ns + _LOOKING_NS), active.copiers)
            now_ns = time.monotonic_ns()
            if now_ns - looked_ns > _LONGEST_LOOK_NS:
                lost_ns += now_ns - looked_ns
            if place >= 0:
                words[_HEARTBEAT_NS] = now_ns
                self._waited_ns = max(1, now_ns - began_ns - lost_ns)
                # A single client's request is served at once, without another turn of the loop.
                if len(active.states) == 1:
                    self._serve_found(active.states[0], now_ns)
                return True
            if count() > 0 or words[_CONTROL] != control_seen:
                self._budget.waited(now_ns - began_ns - lost_ns)
                return True
        return False

    def _look_at_written(self, began_ns: int) -> bool:
        """Poll for an announced request with cut-through copying; return whether there is anything to do.

        This lasts only while the client makes progress: a client that makes none may be waiting for this CPU.
        """
        all_channels, words, control_seen = self._all, self._words, self._control_seen
        now_ns = moved_ns = began_ns
        there = -1
        while (bytes_there := bytes_in_flight(all_channels.copiers)) >= 0:
            if bytes_there != there:
                there, moved_ns = bytes_there, now_ns
            if (
                now_ns - moved_ns > _STANDSTILL_NS
                or now_ns - began_ns > _WRITING_NS
                or ((near := same_cpu_writers(all_channels.pollers)) and _in_the_way(all_channels, near, now_ns))
            ):
                # A later publish is still found. A client that announces and does not write delays no other one.
                abandon(all_channels.copiers)
                return False
            place = spin(all_channels.pollers, now_ns + _LOOKING_NS, all_channels.copiers)
            now_ns = words[_HEARTBEAT_NS] = time.monotonic_ns()
            if place >= 0:
                state = all_channels.states[place]
                # At once, as in _spin.
                self._serve_found(state, now_ns)
                state.expectation.note_write(state.submitted_ns() - began_ns)
                return True
            if words[_CONTROL] != control_seen:
                return True
        return False


def _in_the_way(channels: PollSet, blocked: list[int], now_ns: int) -> bool:
    """Return whether one of these writers belongs to a recently active client, which then waits for this CPU."""
    return any(now_ns - channels.states[place].active_ns < _ABOUT_NS for place in blocked)
