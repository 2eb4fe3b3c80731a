"""Observations that are filled in where they are sent from."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmserve.client import (
    ShmClient,
)
from tests.support.daemon_process import Daemon
from tests.support.other_process import overwrite
from tests.support.same_trees import assert_same
from tests.support.trees import Mode

pytestmark = pytest.mark.sealed_too

_PATTERN = bytes(range(7, 71))
_INSTEAD = bytes(range(107, 171))


def example() -> dict[str, Any]:
    return {
        "images": {"left": np.zeros((24, 32, 3), np.uint8), "right": np.zeros((24, 32, 3), np.uint8)},
        "state": np.zeros(7, np.float32),
        "step": 0,
        "gain": 0.5,
        "instruction": "pick up the cup",
    }


# What is filled in


def test_the_model_sees_the_bytes_written_into_a_loan(robot: ShmClient) -> None:
    for step in range(20):
        with robot.loan(example()) as observation:
            observation["images"]["left"][:] = step
            observation["images"]["right"][5:, ::2] = 100 + step
            np.multiply(np.arange(7), step, out=observation["state"], casting="unsafe")
            pending = observation.send()

        found = pending.result()

        wanted = example()
        wanted["images"]["left"][:] = step
        wanted["images"]["right"][5:, ::2] = 100 + step
        wanted["state"][:] = np.arange(7) * step
        assert_same(found, wanted)


def test_a_loan_is_made_for_a_dict_of_any_class_and_values_of_subclasses(robot: ShmClient) -> None:
    for step in range(3):
        with robot.loan(OrderedDict({**example(), "instruction": np.str_("wash"), "mode": Mode.HOLD})) as observation:
            observation["state"][:] = step
            pending = observation.send()

        wanted = {**example(), "instruction": "wash", "mode": 3}
        wanted["state"][:] = step
        assert_same(pending.result(), wanted)


def test_the_values_of_the_example_are_the_first_ones(robot: ShmClient) -> None:
    sent = {**example(), "state": np.arange(7, dtype=np.float32)}

    with robot.loan(sent) as observation:
        pending = observation.send()

    assert_same(pending.result(), sent)


def test_another_process_sees_what_is_written_into_a_loan_and_the_model_sees_what_it_writes(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("echo")
    with daemon.client() as client, client.loan({"frame": np.zeros(4096, np.uint8)}) as observation:
        observation["frame"][1000:1064] = np.frombuffer(_PATTERN, np.uint8)

        assert overwrite(daemon, _PATTERN, _INSTEAD) == 1
        assert observation["frame"][1000:1064].tobytes() == _INSTEAD
        found = observation.send().result()

    assert found["frame"][1000:1064].tobytes() == _INSTEAD


def test_sending_a_loan_does_not_copy_it(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("obedient")
    with daemon.client() as client:
        with client.loan({"do": "count", "frame": np.zeros(4096, np.uint8)}) as observation:
            observation["frame"][1000:1064] = np.frombuffer(_PATTERN, np.uint8)
            frame = observation["frame"]
            pending = observation.send()
        pending.result()

        # The only bytes of it are those that the slot had all along.
        assert overwrite(daemon, _PATTERN, _INSTEAD) == 1
        assert frame[1000:1064].tobytes() == _INSTEAD


def test_numbers_and_texts_may_change_in_a_loan(robot: ShmClient) -> None:
    with robot.loan(example()) as observation:
        observation["images"]["left"][:] = 9
        observation["step"] = 41
        observation["gain"] = -2.5
        observation["instruction"] = "put it down"
        pending = observation.send()

    wanted = {**example(), "step": 41, "gain": -2.5, "instruction": "put it down"}
    wanted["images"]["left"][:] = 9
    assert_same(pending.result(), wanted)


def test_an_entry_that_is_replaced_is_copied_in(robot: ShmClient) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    with robot.loan(example()) as observation:
        observation["images"]["left"] = frame
        observation["images"]["right"][:] = 3
        observation["state"] = torch.arange(7, dtype=torch.float32)
        pending = observation.send()
    frame[:] = 0  # the loan was sent: what is done with the own array is nobody's business

    found = pending.result()

    assert_same(found["images"]["left"], np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
    assert (found["images"]["right"] == 3).all()
    assert found["state"].tolist() == list(range(7))


def test_entries_of_a_loan_can_change_places(robot: ShmClient) -> None:
    with robot.loan(example()) as observation:
        images = observation["images"]
        images["left"][:] = 1
        images["right"][:] = 2
        images["left"], images["right"] = images["right"], images["left"]
        pending = observation.send()

    found = pending.result()

    assert (found["images"]["left"] == 2).all()
    assert (found["images"]["right"] == 1).all()


def test_an_entry_of_another_size_does_not_run_over_its_neighbours(robot: ShmClient) -> None:
    with robot.loan({"a": np.zeros(16), "b": np.zeros(16), "c": np.zeros(16)}) as observation:
        observation["b"][:] = 2
        observation["c"][:] = 3
        observation["a"] = np.arange(100.0)
        pending = observation.send()

    assert_same(pending.result(), {"a": np.arange(100.0), "b": np.full(16, 2.0), "c": np.full(16, 3.0)})


def test_an_entry_that_is_taken_away_moves_the_others_unharmed(robot: ShmClient) -> None:
    with robot.loan({"a": np.zeros(100), "b": np.zeros(100), "c": np.zeros(100)}) as observation:
        observation["b"][:] = np.arange(100)
        observation["c"][:] = np.arange(100) * 2
        del observation["a"]
        pending = observation.send()

    assert_same(pending.result(), {"b": np.arange(100.0), "c": np.arange(100.0) * 2})


def test_a_text_that_outgrows_the_structure_moves_the_arrays_unharmed(robot: ShmClient) -> None:
    with robot.loan({"a": np.zeros(50), "text": "short", "b": np.zeros(50)}) as observation:
        observation["a"][:] = 1
        observation["b"][:] = 2
        observation["text"] = "long " * 100
        pending = observation.send()

    assert_same(pending.result(), {"a": np.ones(50), "text": "long " * 100, "b": np.full(50, 2.0)})


def test_an_object_beside_the_arrays_of_a_loan_is_carried_with_them(robot: ShmClient) -> None:
    with robot.loan({"a": np.zeros(50), "b": np.zeros(50)}) as observation:
        observation["a"][:] = 1
        observation["b"][:] = 2
        observation["more"] = {1, 2, 3}
        pending = observation.send()

    found = pending.result()

    assert found["a"].tolist() == [1] * 50 and found["b"].tolist() == [2] * 50
    assert found["more"] == {1, 2, 3}


_SIZES = st.sampled_from([0, 1, 8, 63, 64, 200])


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_done_to_a_loan_the_model_sees_what_it_shows_when_it_is_sent(
    robot: ShmClient, data: st.DataObject
) -> None:
    names = ["a", "b", "c", "d"]
    sizes = [data.draw(_SIZES) for _ in names]
    tree = {
        name: np.arange(size, dtype=np.int16) + 1000 * n
        for n, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    with robot.loan({**tree, "number": 1, "text": "t"}) as observation:
        for _ in range(data.draw(st.integers(1, 5))):
            name, other = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
            match data.draw(st.integers(0, 6)):
                case 0:
                    observation[name], observation[other] = observation[other], observation[name]
                case 1:
                    observation[name] = observation[other][::-1]
                case 2:
                    observation[name] = observation[other][1:]
                case 3:
                    observation[name] = np.arange(data.draw(_SIZES), dtype=np.float32)
                case 4:
                    observation["text"] = "x" * data.draw(st.sampled_from([3, 300, 700]))
                case 5:
                    observation[f"number {data.draw(st.integers(0, 20))}"] = 7
                case 6:
                    observation[name][...] = data.draw(st.integers(0, 100)) if observation[name].flags.writeable else 0
        shown = copy.deepcopy(dict(observation))
        pending = observation.send()

    assert_same(pending.result(), shown)


@pytest.mark.parametrize("kind", ["ml_dtypes", "torch"])
def test_bfloat16_in_a_loan_is_sent_as_it_is_or_as_what_replaces_it(robot: ShmClient, kind: str) -> None:
    def values(number: float) -> Any:
        if kind == "torch":
            return torch.full((5,), number, dtype=torch.bfloat16)
        return np.full(5, number, ml_dtypes.bfloat16)

    with robot.loan({"x": values(1.5), "y": values(2.5), "frame": np.zeros(100)}) as observation:
        observation["frame"][:] = 4
        observation["y"] = values(-8)
        pending = observation.send()

    found = pending.result()

    assert found["x"].astype(np.float32).tolist() == [1.5] * 5
    assert found["y"].astype(np.float32).tolist() == [-8] * 5
    assert found["frame"].tolist() == [4] * 100


def test_a_loan_reaches_into_lists_and_tuples_and_dicts_of_dicts(robot: ShmClient) -> None:
    tree = {"a": {"b": {"c": np.zeros(3)}}, "list": [np.zeros(2), 1], "tuple": (np.zeros(2), "t"), "none": None}

    with robot.loan(tree) as observation:
        observation["a"]["b"]["c"][:] = 1
        observation["list"][0][:] = 2
        observation["tuple"][0][:] = 3
        pending = observation.send()

    wanted = {
        "a": {"b": {"c": np.ones(3)}},
        "list": [np.full(2, 2.0), 1],
        "tuple": (np.full(2, 3.0), "t"),
        "none": None,
    }
    assert_same(pending.result(), wanted)
