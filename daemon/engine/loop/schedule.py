"""Fair scheduling of waiting requests by submit time and time served.

The oldest request is next, with a correction for the time that its client has used: a request counts as no older than
the end of the same client's last turn, plus the length of that turn for each other client that waited then. A client
with eight requests in flight then takes turns with a client that has one; a client whose inferences take ten times as
long as another's gets every tenth turn; with equal arrivals the shares are equal. No client starves, because the time
that a request counts from is fixed while that of the others' requests advances. An idle client owes nothing, and the
engine never idles to keep the order.

A client that is suspected of killing engines yields to the others: its requests count as a second younger than they
are.

>>> from types import SimpleNamespace as T
>>> from shmserve.daemon.engine.channel.channel_state import BEHIND_NS
>>> def client(served, *submitted, behind=0):
...     return T(last_served_ns=served, behind_ns=behind, waiting=[T(submitted_ns=ns) for ns in submitted], number=0)
>>> busy, single = client(90, 10, 20, 30), client(0, 50)
>>> next_of([busy, single]) is single     # served at 90, the busy client queues behind 50
True
>>> next_of([client(0, 10), single]).waiting[0].submitted_ns
10
>>> next_of([client(0, 10, behind=BEHIND_NS), single]) is single
True
>>> charge(busy, 90, 100, others=2)       # a turn of 10, while two others waited
>>> turn_ns(busy)
(120, 0)
"""

from __future__ import annotations

from collections.abc import Collection

from ..channel.channel_state import ChannelState


def turn_ns(state: ChannelState) -> tuple[int, int]:
    """Return the time that a client's first waiting request counts from; lower goes first, ties by channel."""
    return max(state.waiting[0].submitted_ns, state.last_served_ns) + state.behind_ns, state.number


def next_of(waiting: Collection[ChannelState]) -> ChannelState:
    """Return the client whose turn it is, of those with a waiting request."""
    return min(waiting, key=turn_ns)


def charge(state: ChannelState, began_ns: int, ended_ns: int, *, others: int) -> None:
    """Charge a client for a turn at whose end `others` clients waited; once for each of its requests in a batch."""
    state.last_served_ns = max(state.last_served_ns, ended_ns) + (ended_ns - began_ns) * others
