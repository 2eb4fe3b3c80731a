"""Requests and replies that do not fit the channel make it grow; nothing is lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from shmserve.client import InferenceFailed, ObservationTooLarge, RequestTimeout, ShmClient
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.same_trees import assert_same

pytestmark = [pytest.mark.sealed_too, pytest.mark.pure_too]

_MIB = 1 << 20


def test_observations_of_every_size_come_back_exactly(echo: Daemon) -> None:
    with echo.client() as client:
        for size in (0, 1, 65_536, 65_537, _MIB, 100, 9 * _MIB, 3, 9 * _MIB + 1):
            array = np.arange(size, dtype=np.uint32).astype(np.uint8)

            assert_same(client.infer({"a": array}), {"a": array})


def test_a_structure_of_every_size_comes_back_exactly(echo: Daemon) -> None:
    with echo.client() as client:
        for entries in (1, 100, 600, 5):
            tree = {f"a fairly long name for entry {number}": str(number) * 20 for number in range(entries)}

            assert_same(client.infer(tree), tree)


def test_results_that_grow_are_delivered_with_others_out(client: ShmClient) -> None:
    sizes = [10, 100_000, 7, 300_000, 1_000_000, 1, 50_000, 2_000_000]
    for start in range(len(sizes)):
        order = sizes[start:] + sizes[:start]
        pendings = [client.submit({"do": "grow", "items": items, "value": items}) for items in order[:4]]

        for items, pending in zip(order, pendings, strict=False):
            assert_same(pending.result(), np.full(items, items))


def test_requests_that_grow_wait_for_those_that_are_out(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    small = client.submit({"do": "echo", "value": 1})
    gate.wait_entered()
    gate.open()
    large = np.arange(500_000)

    found = client.infer({"do": "echo", "value": large})

    assert_same(found, large)
    assert held.result()["waited"]
    assert small.result() == 1


def test_polling_alone_delivers_a_result_that_grew(client: ShmClient) -> None:
    pending = client.submit({"do": "grow", "items": 200_000, "value": 5})

    wait_until("the result is there", pending.done)

    assert_same(pending.result(), np.full(200_000, 5))


def test_growing_gives_the_old_memory_back(obedient: Daemon) -> None:
    with obedient.client() as client:
        client.infer({"do": "count"})
        objects = len(obedient.names_in_shm())

        for size in (10, 100_000, 1_000_000, 3_000_000):
            client.infer({"do": "echo", "value": np.zeros(size)})

        assert len(obedient.names_in_shm()) == objects


@pytest.fixture(scope="module")
def small_service() -> Iterator[Daemon]:
    with Daemon("obedient", config=f"max_channel_bytes = {4 * _MIB}\n") as daemon:
        yield daemon


def test_an_observation_above_the_services_limit_is_refused_and_the_next_one_served(small_service: Daemon) -> None:
    with small_service.client(slots=2) as client:
        assert client.infer({"do": "echo", "value": 1}) == 1

        with pytest.raises(ObservationTooLarge, match=f"max_channel_bytes is {4 * _MIB}"):
            client.infer({"do": "echo", "value": np.zeros(8 * _MIB, np.uint8)})

        assert client.infer({"do": "echo", "value": 2}) == 2
        array = np.zeros(100_000, np.uint8)
        assert_same(client.infer({"do": "echo", "value": array}), array)


def test_a_first_observation_above_the_limit_is_refused_and_the_next_one_served(small_service: Daemon) -> None:
    with small_service.client(slots=2) as client:
        with pytest.raises(ObservationTooLarge):
            client.infer({"do": "echo", "value": np.zeros(8 * _MIB, np.uint8)})

        assert client.infer({"do": "echo", "value": 2}) == 2


def test_a_result_above_the_limit_fails_alone(small_service: Daemon) -> None:
    with small_service.client(slots=2) as client:
        for _ in range(3):
            with pytest.raises(InferenceFailed, match=f"max_channel_bytes is {4 * _MIB}"):
                client.infer({"do": "grow", "items": _MIB, "value": 1})

            assert client.infer({"do": "echo", "value": 2}) == 2

        pending = client.submit({"do": "grow", "items": _MIB, "value": 1})
        other = client.submit({"do": "echo", "value": 3})

        assert other.result() == 3
        with pytest.raises(InferenceFailed, match="max_channel_bytes"):
            pending.result()


def test_a_short_look_at_a_result_that_grew_does_not_lose_it(client: ShmClient) -> None:
    pending = client.submit({"do": "grow", "items": 300_000, "value": 5})
    for _ in range(2000):
        with contextlib.suppress(RequestTimeout):
            pending.result(timeout=0)
            break

    assert_same(pending.result(), np.full(300_000, 5))
