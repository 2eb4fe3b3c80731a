"""Set of channels whose counters are polled together."""

from __future__ import annotations

from shmserve.backend import core
from shmserve.counter_poller import CounterPoller, poll_all

from ..channel.channel_state import ChannelState


class PollSet:
    """Some of the engine's channels in the order of their addition, with their pollers."""

    def __init__(self) -> None:
        self.states: list[ChannelState] = []
        self.pollers: list[CounterPoller] = []
        #: The cut-through copiers of the channels that have one.
        self.copiers: list[core.CutThroughCopier] = []

    def __contains__(self, state: ChannelState) -> bool:
        return state in self.states

    def __len__(self) -> int:
        return len(self.states)

    def add(self, state: ChannelState) -> None:
        self.states.append(state)
        self._beside()

    def remove(self, state: ChannelState) -> None:
        """Remove the channel if it is in the set."""
        if state in self.states:
            self.states.remove(state)
            self._beside()

    def keep(self, states: list[ChannelState]) -> None:
        """Reduce the set to `states`, a part of it."""
        if len(states) != len(self.states):
            self.states = states
            self._beside()

    def _beside(self) -> None:
        self.pollers = [state.poller for state in self.states]
        self.copiers = [copier for each in self.states if (copier := each.channel.requests.copier) is not None]

    def changed(self) -> list[ChannelState]:
        """Return the channels whose client has published."""
        states = self.states
        return [states[place] for place in poll_all(self.pollers)]
