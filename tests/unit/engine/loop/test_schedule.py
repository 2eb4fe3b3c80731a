"""Whose turn it is: oldest first, nobody starved, the same time for each, the same arrivals in the same order."""

from __future__ import annotations

import random
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest

from shmserve.daemon.engine.channel.channel_state import BEHIND_NS
from shmserve.daemon.engine.loop.schedule import charge, next_of


def client(number: int, *submitted_ns: int) -> Any:
    return SimpleNamespace(
        number=number,
        last_served_ns=0,
        behind_ns=0,
        each_ns=10,
        waiting=deque(SimpleNamespace(submitted_ns=ns) for ns in submitted_ns),
    )


def serve(clients: list[Any], rounds: int, *, refill: bool = False, now_ns: int = 1000) -> list[int]:
    """The order in which requests are served, one after the other, each taking its client's `each_ns`.

    As EngineLoop._serve_next.
    """
    order = []
    for _ in range(rounds):
        waiting: list[Any] = [client for client in clients if client.waiting]
        if not waiting:
            break
        chosen: Any = next_of(waiting)
        chosen.waiting.popleft()
        chosen.last_served_ns = now_ns
        now_ns += chosen.each_ns
        others = sum(bool(each.waiting) for each in clients if each is not chosen)
        charge(chosen, now_ns - chosen.each_ns, now_ns, others=others)
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


@pytest.mark.fault("T61")
def test_equal_clients_are_served_equally_however_many_requests_each_keeps_out() -> None:
    clients = [client(number, *([1] * out)) for number, out in enumerate((16, 4, 1))]

    served = Counter(serve(clients, 3000, refill=True))

    assert max(served.values()) - min(served.values()) <= 1


@pytest.mark.fault("T61")
@pytest.mark.parametrize("clients", [2, 3, 5])
def test_clients_that_never_stop_asking_have_the_same_time_however_long_each_inference_takes(clients: int) -> None:
    asking = [client(number, *([1] * 4)) for number in range(clients)]
    asking[0].each_ns = 200  # the others take 10

    order = serve(asking, 5000, refill=True)

    took = [order.count(each.number) * each.each_ns for each in asking]
    assert max(took) <= 1.1 * min(took), took


def test_uncontended_time_does_not_count_against_a_client() -> None:
    alone, newcomer = client(0, *range(100)), client(1)
    alone.each_ns = 1000
    serve([alone, newcomer], 50)
    now_ns = alone.last_served_ns
    newcomer.waiting += [SimpleNamespace(submitted_ns=now_ns + 1), SimpleNamespace(submitted_ns=now_ns + 2)]

    assert serve([alone, newcomer], 3, now_ns=now_ns + 2) == [0, 1, 1]


def test_an_idle_client_waits_for_one_turn_of_each_other_at_most() -> None:
    busy = [client(number, *([1] * 20)) for number in range(4)]
    busy[0].each_ns = 500
    serve(busy, 40)
    now_ns = max(each.last_served_ns for each in busy) + 1000
    idle = client(9, now_ns)

    order = serve([*busy, idle], 10, now_ns=now_ns)

    before = order[: order.index(9)]
    assert len(before) == len(set(before)), order


def test_a_suspected_client_stands_behind_the_others_and_does_not_starve() -> None:
    suspect, other = client(0, 10), client(1, *range(20, 30))
    suspect.behind_ns = BEHIND_NS

    assert serve([suspect, other], 11) == [1] * 10 + [0]

    suspect.waiting.append(SimpleNamespace(submitted_ns=2000))
    other.each_ns = BEHIND_NS // 10
    other.waiting += [SimpleNamespace(submitted_ns=2000)] * 50
    assert serve([suspect, other], 20).index(0) <= 12


def test_the_same_arrivals_are_served_in_the_same_order() -> None:
    arrivals = [[random.Random(seed).randrange(1000) for seed in range(n, n + 5)] for n in range(4)]

    def order(shuffle: int) -> list[int]:
        clients = [client(number, *sorted(times)) for number, times in enumerate(arrivals)]
        random.Random(shuffle).shuffle(clients)
        return serve(clients, 20)

    assert len({tuple(order(shuffle)) for shuffle in range(10)}) == 1
