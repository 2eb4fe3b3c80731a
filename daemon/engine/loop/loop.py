"""The engine's one thread: wait, pick, stage, infer, reply.

Nothing here allocates what it can use again, formats a log line in the steady state, or makes a
system call while requests keep coming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.counter_poller import abandon, bytes_in_flight, same_cpu_writers, spin
from shmserve.spin import SpinBudget

from ...ipc.stats import Counter, Stats
from ..channel.channel_state import BrokenChannel, ChannelState
from ..channel.mapped_channel import MappedChannel
from ..requests.recording import RecordedServing
from ..requests.serving import QueuedRequest, Serving
from .doorbells import Doorbells
from .poll_set import PollSet
from .schedule import charge, next_of

#: No wait is longer, whatever rings were lost; four times as long after a second without requests.
LONGEST_WAIT_NS = 50_000_000
_LONGEST_IDLE_WAIT_NS = 200_000_000
#: A channel that was silent this long is looked at only when a token or the clock says so.
_IDLE_AFTER_NS = 1_000_000_000
#: Requests served between two looks at the doorbell, which idle channels ring; sooner if they take long.
_SERVED_PER_TAKE, _TAKE_AFTER_NS = 4, 200_000
#: Where it cannot be known which client rang: no two looks at every channel are closer together, for each channel. A look
#: takes 0.1 us, so that they take a twentieth of a busy engine's time at most.
_SCAN_AFTER_NS = 2_000
#: While a client writes a request the engine looks for it; no longer than this, and not if the client stands still.
_WRITING_NS, _STANDSTILL_NS = 5_000_000, 100_000
#: A client that was answered no longer ago is likely to be making its next request.
_ABOUT_NS = 2_000_000
#: Of looking at the active channels alone, between two looks at the tokens and at the supervisor's word.
_LOOKING_NS = 5_000
#: A request that was in hand when an engine died is tried again after this long without requests of other clients.
_QUIET_NS = 500_000_000
_HEARTBEAT_NS, _CONTROL = int(Counter.HEARTBEAT_NS), int(Counter.CONTROL)


class EngineLoop:
    """Serves the channels until `stopped`.

    `control(timeout_s)` handles the supervisor's messages, waiting that long for the first, and returns whether it left some
    for its next call; `broken` gets a channel that was given up, and the reason.
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
        longest_wait_ns: int = LONGEST_WAIT_NS,
    ) -> None:
        """`let_go` closes a channel that is no longer served, at once or between requests. After `longest_wait_ns` an
        active engine reads the counters of requests without a ring."""
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
        self._active = PollSet()
        self._waiting: list[ChannelState] = []
        #: Those whose requests wait for a time rather than for their turn, and until when.
        self._resting: dict[ChannelState, int] = {}
        self._scanned_ns = 0
        self._taken_ns = 0
        self._waited_ns = 0  # how long the last wait was that news ended while it spun; not learnt from yet
        #: A ring of an unknown client was taken, and not every channel was looked at since. Rings are not counted
        #: against requests: a client that publishes and does not ring could make the sum come out at will.
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
        """Let go of a channel; what waits in it is not answered, its client is gone."""
        state = self.states.pop(number, None)
        if state is None:
            return
        self._forget(state)
        self._bell.forget(state)
        state.close(self._let_go)

    def client_left(self, number: int) -> None:
        """The client of a channel is gone for good, and the next one may have its number."""
        self.remove(number)
        self._serving.client_left(number)

    def move(self, state: ChannelState, mapped: MappedChannel, carried: Sequence[int]) -> None:
        """The channel goes on in a new generation."""
        self._forget(state)
        self._bell.forget(state)
        state.move(mapped, carried, serving=True, let_go=self._let_go)
        self._all.add(state)
        self._bell.watch(state)
        self._activate(state)
        if state.waiting:
            self._waiting.append(state)

    def serve(self) -> None:
        """Begin to take requests: find what is due in every channel."""
        self.serving = True
        for state in list(self.states.values()):
            self._open(state)

    def serve_through(self, serving: Serving | RecordedServing) -> None:
        """Run requests through this from the next one on."""
        self._serving = serving

    def pause(self) -> None:
        """Take no further request; what waits stays in its slots for the next engine."""
        self.serving = False
        for state in self.states.values():
            state.waiting.clear()
        self._waiting.clear()
        self._resting.clear()
        self._active.keep([])

    def drain(self) -> int:
        """Answer what has been published until now, then stop; later requests are refused.

        Returns how many requests there are to answer, and results for which a client has yet to make room.
        """
        if not self.serving:
            self.stopped = True
            return 0
        now_ns = time.monotonic_ns()
        for state in list(self.states.values()):
            self._look(state, now_ns)
        self._draining = True
        self._end_rests(now_ns)
        return sum(len(state.waiting) + len(state.held) for state in self.states.values())

    def run(self) -> None:
        """Serve until stopped."""
        words = self._words
        untaken = 0  # requests served since the tokens were last looked at
        while not self.stopped:
            now_ns = time.monotonic_ns()
            words[_HEARTBEAT_NS] = now_ns
            if not self.serving:
                # The bell is the serving engine's: a token taken here would be its request's.
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
            self._look_at_active(now_ns)
            if self._resting:
                self._end_rests(now_ns)
            if self._waiting:
                self._serve_next()
                # Off the path of the request just answered, which is what the client waits for.
                untaken += 1
                if untaken < _SERVED_PER_TAKE and now_ns - self._taken_ns < _TAKE_AFTER_NS:
                    continue
            untaken = 0
            self._taken_ns = now_ns
            if self._rung or self._bell.count() > 0 or now_ns - self._scanned_ns > self._longest_wait_ns:
                self._take_rings(now_ns)
            if not self._waiting and not self._more_control and not self.stopped:
                self._idle(now_ns)

    def _drain_on(self) -> None:
        self._refuse_new(time.monotonic_ns())
        if self._waiting:
            self._serve_next()
        elif any(state.held for state in self.states.values()):
            self._control(self._longest_wait_ns / 1e9)  # results that did not fit wait for their clients to make room
        else:
            self.stopped = True

    def _refuse_new(self, now_ns: int) -> None:
        """At once, or their clients would wait for a service that does not come back to them."""
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
        self._more_control = True  # the callback that got it, and releases its memory, has work now

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

    def _look_at_active(self, now_ns: int) -> None:
        for state in self._active.changed():
            self._look(state, now_ns)

    def _take_rings(self, now_ns: int) -> None:
        """Use up the tokens, and look at the channels that they may be of."""
        rang = self._bell.take()
        if rang is None:
            self._rung = True
        else:
            for state in rang:
                self._look_at_idle(state, now_ns)
        since_ns = now_ns - self._scanned_ns
        # Without other work at once: the next request may be of the client that rang.
        soon = self._rung and (not self._waiting or since_ns > _SCAN_AFTER_NS * len(self.states))
        if not soon and since_ns <= self._longest_wait_ns:
            return
        self._rung = False
        self._scanned_ns = now_ns
        for state in self._all.changed():
            self._look_at_idle(state, now_ns)
        self._active.keep([each for each in self._active.states if now_ns - each.active_ns < _IDLE_AFTER_NS])
        self._bell.unmute(now_ns)

    def _serve_found(self, state: ChannelState, now_ns: int) -> None:
        """Serve a request that this client has published while no other waited, by the fast path if it has one."""
        if not state.waiting and not state.held and self._serving.serve_fast(state):
            state.active_ns = now_ns
            if state not in self._active:
                self._active.add(state)
            return
        self._look_at_idle(state, now_ns)
        if len(self._waiting) == 1:
            self._serve_next()

    def _look_at_idle(self, state: ChannelState, now_ns: int) -> None:
        if self._look(state, now_ns) and state not in self._active:
            self._active.add(state)

    def _serve_next(self) -> None:
        waiting = self._waiting
        batch: list[QueuedRequest] = []
        began_ns = 0
        for _ in range(self._serving.max_batch):
            state = next_of(waiting) if len(waiting) > 1 else waiting[0]
            if state.overhead.until_ns or state.behind_ns:  # as `_next`, without the call for most
                found = self._next()
                if found is None or (batch and found.behind_ns):
                    break
                state = found
            if batch and batch[0][0].behind_ns:
                break  # a suspected client shares no batch
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
            # From the end of its turn: a client with one request out can send its next only now.
            now_ns = time.monotonic_ns()
            # A request of a batch took its part of the time.
            began_ns = now_ns - (now_ns - began_ns) // len(batch)
            for state, _ in batch:
                charge(state, began_ns, now_ns, others=len(waiting) - bool(state.waiting))

    def _next(self) -> ChannelState | None:
        """The client whose turn it is; None if those that wait have to rest."""
        waiting = self._waiting
        while waiting:
            state = next_of(waiting) if len(waiting) > 1 else waiting[0]
            if not (state.overhead.until_ns or state.behind_ns) or not self._rests(state):
                return state
            waiting.remove(state)
        return None

    def _rests(self, state: ChannelState) -> bool:
        """Whether this client's request is to wait for the sake of the others that use the service now, and note it."""
        now_ns = time.monotonic_ns()
        suspect = state.is_suspect(now_ns)
        state.may_try_again = True
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
            state.overhead.until_ns = 0
            return False
        self._resting[state] = until_ns
        return True

    def _is_beside_others(self, state: ChannelState) -> bool:
        """Whether others have used the service within the last second."""
        return len(self._active) > (state in self._active)

    def _end_rests(self, now_ns: int) -> None:
        for state, until_ns in list(self._resting.items()):
            if until_ns <= now_ns or self._draining or not self._is_beside_others(state):
                del self._resting[state]
                self._waiting.append(state)

    def _idle(self, began_ns: int) -> None:
        """Look for as long as news is likely soon, then sleep."""
        if self._waited_ns:  # learned from now, not when the news came: then a client was waiting
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
        if self._bell.wait(longest_ns):
            self._rung = not self._bell.names_channels  # the token that ended the wait is gone
            self._budget.waited(time.monotonic_ns() - began_ns)
        elif not self._waiting and not self._resting:
            self._budget.waited(longest_ns)

    def _spin(self, began_ns: int) -> bool:
        """Look at the active channels for as long as the last waits suggest; whether there is anything to do."""
        active, words, control_seen, count = self._active, self._words, self._control_seen, self._bell.count
        until_ns = began_ns + self._budget.ns
        now_ns = began_ns
        while now_ns < until_ns:
            if (near := same_cpu_writers(active.pollers)) and _in_the_way(active, near, now_ns):
                return False
            place = spin(active.pollers, min(until_ns, now_ns + _LOOKING_NS), active.copiers)
            if place >= 0:
                now_ns = words[_HEARTBEAT_NS] = time.monotonic_ns()
                self._waited_ns = now_ns - began_ns
                # A lone client need not wait for a whole turn of the loop.
                if len(active.states) == 1:
                    self._serve_found(active.states[0], now_ns)
                return True
            now_ns = time.monotonic_ns()
            if count() > 0 or words[_CONTROL] != control_seen:
                self._budget.waited(now_ns - began_ns)
                return True
        return False

    def _look_at_written(self, began_ns: int) -> bool:
        """Look for what a client has announced, and copy it meanwhile; whether there is anything to do.

        Only while the client gets on with it: if it does not, it may be waiting for this very processor.
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
                # It is found all the same, if it comes; a client that announces and does not write takes no other client's turn.
                abandon(all_channels.copiers)
                return False
            place = spin(all_channels.pollers, now_ns + _LOOKING_NS, all_channels.copiers)
            now_ns = words[_HEARTBEAT_NS] = time.monotonic_ns()
            if place >= 0:
                state = all_channels.states[place]
                # As in _spin.
                self._serve_found(state, now_ns)
                return True
            if words[_CONTROL] != control_seen:
                return True
        return False


def _in_the_way(channels: PollSet, near: list[int], now_ns: int) -> bool:
    """Whether one of those that were seen on this processor is of a client that is about: it waits for this very one."""
    return any(now_ns - channels.states[place].active_ns < _ABOUT_NS for place in near)
