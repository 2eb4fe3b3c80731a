"""Channels whose counters are looked at together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmserve.watch import Watch, all_moved

if TYPE_CHECKING:
    from .tenancy import Tenancy


class Watched:
    """Some of the engine's channels, in the order in which they came, and their watches beside them."""

    def __init__(self) -> None:
        self.tenancies: list[Tenancy] = []
        self.watches: list[Watch] = []

    def __contains__(self, tenancy: Tenancy) -> bool:
        return tenancy in self.tenancies

    def __len__(self) -> int:
        return len(self.tenancies)

    def add(self, tenancy: Tenancy) -> None:
        self.tenancies.append(tenancy)
        self.watches.append(tenancy.watch)

    def remove(self, tenancy: Tenancy) -> None:
        """If it is among them."""
        if tenancy in self.tenancies:
            place = self.tenancies.index(tenancy)
            del self.tenancies[place], self.watches[place]

    def keep(self, tenancies: list[Tenancy]) -> None:
        """These alone."""
        if len(tenancies) != len(self.tenancies):
            self.tenancies = tenancies
            self.watches = [tenancy.watch for tenancy in tenancies]

    def moved(self) -> list[Tenancy]:
        """Those whose client has published."""
        tenancies = self.tenancies
        return [tenancies[place] for place in all_moved(self.watches)]
