"""Set of channels whose counters are polled together."""

from __future__ import annotations

from shmserve.backend import CounterPoller, CutThroughCopier, Slots, mark_asleep, poll_all

from ..channel.channel_state import ChannelState


class PollSet:
    """Some of the engine's channels in the order of their addition, with their pollers."""

    def __init__(self) -> None:
        self.states: list[ChannelState] = []
        self.pollers: list[CounterPoller] = []
        #: The cut-through copiers of the channels.
        self.copiers: list[CutThroughCopier] = []
        #: The ends that the engine writes, for `mark_asleep`.
        self.writers: list[Slots] = []

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
            mark_asleep(
                [writer for each in self.states if each not in states for writer in each.channel.replies.writers]
            )
            self.states = states
            self._beside()

    def _beside(self) -> None:
        self.pollers = [state.poller for state in self.states]
        self.writers = [writer for each in self.states for writer in each.channel.replies.writers]
        self.copiers = [state.channel.requests.copier for state in self.states]

    def changed(self) -> list[ChannelState]:
        """Return the channels whose client has published."""
        states = self.states
        return [states[place] for place in poll_all(self.pollers)]
