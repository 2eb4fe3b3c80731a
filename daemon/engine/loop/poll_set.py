"""Channels whose counters are looked at together."""

from __future__ import annotations

from shmserve.backend import core
from shmserve.counter_poller import CounterPoller, poll_all

from ..channel.channel_state import ChannelState


class PollSet:
    """Some of the engine's channels, in the order in which they came, and their pollers beside them."""

    def __init__(self) -> None:
        self.states: list[ChannelState] = []
        self.pollers: list[CounterPoller] = []
        #: Those of them that copy what a client is still writing.
        self.copiers: list[core.CutThroughCopier] = []

    def __contains__(self, state: ChannelState) -> bool:
        return state in self.states

    def __len__(self) -> int:
        return len(self.states)

    def add(self, state: ChannelState) -> None:
        self.states.append(state)
        self._beside()

    def remove(self, state: ChannelState) -> None:
        """If it is among them."""
        if state in self.states:
            self.states.remove(state)
            self._beside()

    def keep(self, states: list[ChannelState]) -> None:
        """These alone."""
        if len(states) != len(self.states):
            self.states = states
            self._beside()

    def _beside(self) -> None:
        self.pollers = [state.poller for state in self.states]
        self.copiers = [copier for each in self.states if (copier := each.channel.requests.copier) is not None]

    def changed(self) -> list[ChannelState]:
        """Those whose client has published."""
        states = self.states
        return [states[place] for place in poll_all(self.pollers)]
