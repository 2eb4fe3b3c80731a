"""Old observations are not inferred, and a model is asked only for what it was declared to take."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from shmserve.client import ContractMismatch, ShmClient, Stale
from tests.daemon_process import Daemon


def test_an_observation_that_is_too_old_when_its_turn_comes_is_not_inferred(client: ShmClient) -> None:
    runs = client.infer({"do": "count"})["runs"]

    with pytest.raises(Stale, match="too old when its turn came"):
        client.infer({"do": "count"}, capture_time=time.monotonic() - 5, max_age_s=1)

    assert client.infer({"do": "count"})["runs"] == runs + 1


def test_a_fresh_observation_is_inferred(client: ShmClient) -> None:
    assert client.infer({"do": "echo", "value": 1}, capture_time=time.monotonic(), max_age_s=60) == 1


def test_age_counts_from_the_call_without_a_capture_time(client: ShmClient) -> None:
    assert client.infer({"do": "echo", "value": 1}, max_age_s=60) == 1


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("inf")])
def test_an_age_that_is_no_time_is_refused(client: ShmClient, age: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        client.infer({"do": "echo", "value": 1}, max_age_s=age)


def test_the_first_observation_is_compared_with_what_the_model_was_declared_to_take(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("described")
    with daemon.client() as client:
        declared = client.metadata["contract"]["observation"]
        arrays = {
            name: np.zeros(entry["shape"], entry["dtype"]) for name, entry in declared.items() if "dtype" in entry
        }
        assert arrays
        right = {**arrays, "instruction": "fold"}
        wrong = {name: np.zeros((*array.shape, 2), np.float64) for name, array in arrays.items()}

        with pytest.raises(ContractMismatch) as error:
            client.infer(wrong)
        for name in arrays:
            assert f"observation.{name}: " in str(error.value)
        with pytest.raises(ContractMismatch, match="-> absent"):
            client.check({})
        client.check({**right, "extra": 1})
