"""Which waiting request is next.

Oldest first by submit time, and fair: a client's request counts as no older than the moment the same
client was last served. One with eight requests in flight then takes turns with one that has a single
request, and with equal arrivals the order is equal.

>>> from types import SimpleNamespace as T
>>> def client(served, *submitted):
...     return T(last_served_ns=served, waiting=[T(submitted_ns=ns) for ns in submitted], number=0)
>>> busy, single = client(90, 10, 20, 30), client(0, 50)
>>> next_of([busy, single]) is single     # served at 90, the busy client queues behind 50
True
>>> next_of([client(0, 10), single]).waiting[0].submitted_ns
10
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tenancy import Tenancy


def turn_ns(tenancy: Tenancy) -> tuple[int, int]:
    """The time a client's first waiting request counts from; lower goes first, ties by channel."""
    return max(tenancy.waiting[0].submitted_ns, tenancy.last_served_ns), tenancy.number


def next_of(waiting: Collection[Tenancy]) -> Tenancy:
    """The client whose turn it is, of those with a waiting request."""
    return min(waiting, key=turn_ns)
