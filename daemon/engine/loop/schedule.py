"""Which waiting request is next.

Oldest first by submit time, and fair by time: a client's request counts as no older than the end of the same client's last
turn, and as much later as the others who waited then are owed for that turn: each of them as long as it took. One with eight
requests in flight then takes turns with one that has a single request; one whose inferences take ten times as long as the
other's has every tenth turn; with equal arrivals the order is equal. Nobody starves: what a request counts from is fixed,
and time passes it. An idle client owes nothing, and only a request that waits has to stand back: the engine never idles for it.

A client that is suspected of killing engines stands behind: its requests count as a second younger than they are.

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
    """The time a client's first waiting request counts from; lower goes first, ties by channel."""
    return max(state.waiting[0].submitted_ns, state.last_served_ns) + state.behind_ns, state.number


def next_of(waiting: Collection[ChannelState]) -> ChannelState:
    """The client whose turn it is, of those with a waiting request."""
    return min(waiting, key=turn_ns)


def charge(state: ChannelState, began_ns: int, ended_ns: int, *, others: int) -> None:
    """Note a client's turn, at whose end that many others waited; once for each of its requests in a batch."""
    state.last_served_ns = max(state.last_served_ns, ended_ns) + (ended_ns - began_ns) * others
