"""Channels whose counters are looked at together."""

from __future__ import annotations

from shmserve.backend import core
from shmserve.counter_poller import CounterPoller, poll_all

from ..channel.tenancy import Tenancy


class Watched:
    """Some of the engine's channels, in the order in which they came, and their pollers beside them."""

    def __init__(self) -> None:
        self.tenancies: list[Tenancy] = []
        self.pollers: list[CounterPoller] = []
        #: Those of them that copy what a client is still writing.
        self.copiers: list[core.CutThroughCopier] = []

    def __contains__(self, tenancy: Tenancy) -> bool:
        return tenancy in self.tenancies

    def __len__(self) -> int:
        return len(self.tenancies)

    def add(self, tenancy: Tenancy) -> None:
        self.tenancies.append(tenancy)
        self._beside()

    def remove(self, tenancy: Tenancy) -> None:
        """If it is among them."""
        if tenancy in self.tenancies:
            self.tenancies.remove(tenancy)
            self._beside()

    def keep(self, tenancies: list[Tenancy]) -> None:
        """These alone."""
        if len(tenancies) != len(self.tenancies):
            self.tenancies = tenancies
            self._beside()

    def _beside(self) -> None:
        self.pollers = [tenancy.poller for tenancy in self.tenancies]
        self.copiers = [copier for each in self.tenancies if (copier := each.channel.requests.copier) is not None]

    def moved(self) -> list[Tenancy]:
        """Those whose client has published."""
        tenancies = self.tenancies
        return [tenancies[place] for place in poll_all(self.pollers)]
