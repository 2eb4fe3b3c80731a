"""Whose turn it is: oldest first, nobody starved, the same arrivals in the same order."""

from __future__ import annotations

import random
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

from shmserve.daemon.engine.schedule import next_of


def client(number: int, *submitted_ns: int) -> Any:
    return SimpleNamespace(
        number=number, last_served_ns=0, waiting=deque(SimpleNamespace(submitted_ns=ns) for ns in submitted_ns)
    )


def serve(clients: list[Any], rounds: int, *, each_ns: int = 10, refill: bool = False) -> list[int]:
    """The order in which requests are served, one after the other, each taking `each_ns`; as EngineLoop._serve_next."""
    order = []
    now_ns = 1000
    for _ in range(rounds):
        waiting: list[Any] = [client for client in clients if client.waiting]
        if not waiting:
            break
        chosen: Any = next_of(waiting)
        chosen.waiting.popleft()
        now_ns += each_ns
        chosen.last_served_ns = now_ns
        order.append(chosen.number)
        if refill:
            chosen.waiting.append(SimpleNamespace(submitted_ns=now_ns))
    return order


def test_the_oldest_request_is_first() -> None:
    assert serve([client(0, 30), client(1, 10), client(2, 20)], 3) == [1, 2, 0]


def test_ties_go_by_channel() -> None:
    assert serve([client(2, 10), client(0, 10), client(1, 10)], 3) == [0, 1, 2]


def test_a_client_with_many_requests_takes_turns_with_one_that_has_a_single() -> None:
    busy, single = client(0, *range(1, 20)), client(1, 50)

    assert serve([busy, single], 4)[:2] == [0, 1]


def test_equal_clients_are_served_equally_however_many_requests_each_keeps_out() -> None:
    clients = [client(number, *([1] * out)) for number, out in enumerate((16, 4, 1))]

    served = Counter(serve(clients, 3000, refill=True))

    assert max(served.values()) - min(served.values()) <= 1


def test_the_same_arrivals_are_served_in_the_same_order() -> None:
    arrivals = [[random.Random(seed).randrange(1000) for seed in range(n, n + 5)] for n in range(4)]

    def order(shuffle: int) -> list[int]:
        clients = [client(number, *sorted(times)) for number, times in enumerate(arrivals)]
        random.Random(shuffle).shuffle(clients)
        return serve(clients, 20)

    assert len({tuple(order(shuffle)) for shuffle in range(10)}) == 1
