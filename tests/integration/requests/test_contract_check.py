"""The comparison of an observation with what the model was declared to take, before anything moves."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import ContractMismatch, RequestRejected, ShmClient, UnsupportedType
from shmserve.client.contract_check import check_observation
from shmserve.contract import describe_tree
from tests.support.client_parts import connection_of, in_loop
from tests.support.daemon_process import POLICIES, Daemon
from tests.support.trees import Mode, Pixels, Task

pytestmark = pytest.mark.sealed_too


def right() -> dict[str, Any]:
    """What the policy's example is like."""
    return {"instruction": "place", "state": np.ones(6, np.float32), "image": np.ones((480, 640, 3), np.uint8)}


def runs(daemon: Daemon) -> int:
    """How often the policy has run, this time included."""
    with daemon.client() as client:
        found = client.infer(right())["runs"]
    assert isinstance(found, int)
    return found


_WRONG: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "missing": (
        lambda: {"state": right()["state"], "image": right()["image"]},
        ["observation.instruction: str -> absent"],
    ),
    "shape": (
        lambda: {**right(), "image": np.ones((3, 480, 640), np.uint8)},
        ["observation.image: uint8[480, 640, 3] -> uint8[3, 480, 640]"],
    ),
    "dtype": (
        lambda: {**right(), "state": np.ones(6)},
        ["observation.state: float32[6] -> float64[6]"],
    ),
    "list for an array": (
        lambda: {**right(), "state": [0.0] * 6},
        ["observation.state: float32[6] -> list[float] of 6"],
    ),
    "number for a text": (lambda: {**right(), "instruction": 3}, ["observation.instruction: str -> int"]),
    "several": (
        lambda: {"state": np.ones(7, np.float32), "image": np.ones((480, 640), np.uint8)},
        [
            "observation.instruction: str -> absent",
            "observation.state: float32[6] -> float32[7]",
            "observation.image: uint8[480, 640, 3] -> uint8[480, 640]",
        ],
    ),
    "nested": (
        lambda: {"observation": right()},
        ["observation.state: float32[6] -> absent", "observation.image: uint8[480, 640, 3] -> absent"],
    ),
}


@pytest.mark.fault("T44")
@pytest.mark.parametrize("wrong", _WRONG)
def test_a_first_observation_against_the_declaration_is_refused_entry_by_entry(described: Daemon, wrong: str) -> None:
    observation, lines = _WRONG[wrong]
    before = runs(described)
    with described.client() as client:
        with pytest.raises(ContractMismatch) as refused:
            client.infer(observation())
        with pytest.raises(ContractMismatch) as checked:
            client.check(observation())

        text = str(refused.value)
        assert str(checked.value) == text
        for line in lines:
            assert line in text
        assert "'described'" in text and "check_contract=False" in text
        assert isinstance(refused.value, RequestRejected)
        assert client.infer(right())["action"].shape == (16, 7)
    assert runs(described) == before + 2  # the right one, and the one that asks


def test_every_way_of_asking_is_checked(described: Daemon) -> None:
    wrong = {**right(), "state": np.ones(7, np.float32)}
    before = runs(described)

    ways: list[Callable[[ShmClient], Any]] = [
        lambda client: client.infer_loaned(wrong),
        lambda client: client.submit(wrong),
        lambda client: client.loan(wrong),
        lambda client: asyncio.run(in_loop(client).infer(wrong)),
    ]
    for way in ways:
        with described.client() as client, pytest.raises(ContractMismatch, match=r"float32\[6\] -> float32\[7\]"):
            way(client)

    assert runs(described) == before + 1


def test_an_observation_with_more_than_was_declared_passes(described: Daemon) -> None:
    more = {**right(), "wrist image": np.zeros((2, 2)), "step": 3}
    with described.client() as client:
        client.check(more)

        assert "action" in client.infer(more)


def test_tensors_are_compared_like_arrays(described: Daemon) -> None:
    tensors = {**right(), "state": torch.ones(6), "image": torch.ones(480, 640, 3, dtype=torch.uint8)}
    with described.client() as client:
        client.check(tensors)
        with pytest.raises(ContractMismatch, match=r"float32\[6\] -> float64\[6\]"):
            client.check({**tensors, "state": torch.ones(6, dtype=torch.float64)})

        assert "action" in client.infer(tensors)


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_later_observation_of_another_structure_is_compared_as_the_first_was(described: Daemon, wrong: str) -> None:
    observation, lines = _WRONG[wrong]
    before = runs(described)
    with described.client() as client:
        client.infer(right())
        for _ in range(2):
            with pytest.raises(ContractMismatch) as refused:
                client.infer(observation())

            assert all(line in str(refused.value) for line in lines)
        client.reset()
        assert "action" in client.infer(right())
        assert "action" in client.infer({**right(), "more": 1})
        with pytest.raises(ContractMismatch):
            client.infer(None)
    assert runs(described) == before + 4


def test_a_mismatch_is_one_with_the_model_that_serves_now(described: Daemon) -> None:
    with described.client() as client:
        client.infer(right())
        # As if the model had been updated since this client attached.
        attachment = connection_of(client)
        assert attachment.model is not None
        attachment.model["contract"] = {"observation": {"joints": {"type": "int"}}, "action": None}
        attachment.asked_ns = 0

        assert "action" in client.infer({**right(), "more": 1})
        with pytest.raises(ContractMismatch, match=r"observation\.instruction: str -> absent"):
            client.infer({"more": 1})


def test_an_observation_that_cannot_be_carried_is_named_before_it_is_compared(described: Daemon) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with described.client() as client:
        for ask in (client.infer, client.check):
            with pytest.raises(UnsupportedType, match=r"observation\['state'\]\[0\]: the list contains itself"):
                ask({**right(), "state": circle})


def test_values_of_subclasses_are_compared_as_their_bases(described: Daemon) -> None:
    with described.client() as client:
        for text in (np.str_("place"), Task.FOLD):
            observation = OrderedDict({**right(), "instruction": text, "state": right()["state"].view(Pixels)})
            client.check(observation)

            assert "action" in client.infer(observation)
        with pytest.raises(ContractMismatch, match=r"instruction: str -> list\[str\] of 1"):
            client.infer({**right(), "instruction": np.array(["place"])})


_NUMBERS: dict[str, tuple[list[Any], list[Any]]] = {
    "float": (
        [
            0.5,
            1,
            np.float32(0.5),
            np.float64(0.5),
            np.int64(2),
            np.array(0.5),
            np.array(1),
            torch.tensor(0.5),
            Mode.HOLD,
        ],
        [True, "open", np.bool_(True), [0.5], np.array([0.5]), 1j, None],
    ),
    "int": (
        [3, np.int64(3), np.uint8(3), np.array(3), np.array(3, np.int32), torch.tensor(3), Mode.HOLD],
        [3.0, np.float64(3), np.array(3.0), True, "3", [3]],
    ),
    "bool": ([True, np.bool_(False), np.array(True), torch.tensor(True)], [1, 0.0, "yes", np.array(1)]),
}


@pytest.mark.parametrize("kind", _NUMBERS)
@pytest.mark.parametrize("declared", ["Python's", "numpy's", "an array's"])
def test_a_declared_number_takes_any_number_of_its_kind_and_no_other(kind: str, declared: str) -> None:
    fitting, others = _NUMBERS[kind]
    example: Any = fitting[0] if declared == "Python's" else np.asarray(fitting[0])
    model = {
        "name": "m",
        "version": "0",
        "contract": {"observation": describe_tree({"x": example}), "action": None},
    }

    for number in fitting:
        check_observation("arm", model, {"x": number})
    for other in others:
        with pytest.raises(ContractMismatch, match=r"observation\.x: "):
            check_observation("arm", model, {"x": other})


def test_a_call_of_an_endpoint_is_compared_by_the_observation_in_it() -> None:
    entries = describe_tree({"state": np.zeros(2)})
    model = {"name": "m", "version": "0", "metadata": {"style": "gr00t"}, "contract": {"observation": entries}}

    check_observation("arm", model, {"endpoint": "reset", "data": {"options": None}})
    check_observation("arm", model, {"endpoint": "get_action", "data": {"observation": {"state": np.ones(2)}}})
    with pytest.raises(ContractMismatch, match="state: float64"):
        check_observation("arm", model, {"endpoint": "get_action", "data": {"observation": {"state": np.ones(3)}}})


def test_the_comparison_can_be_left_out(described: Daemon) -> None:
    with described.client(check_contract=False) as client:
        assert "action" in client.infer({"anything": 1})
        with pytest.raises(ContractMismatch):
            client.check({"anything": 1})


def test_a_reset_is_not_taken_for_the_first_observation(described: Daemon) -> None:
    with described.client() as client:
        client.reset()
        with pytest.raises(ContractMismatch):
            client.infer({"anything": 1})


def test_a_model_that_declares_nothing_takes_anything(echo: Daemon) -> None:
    with echo.client() as client:
        client.check({"anything": np.zeros(3)})

        assert client.infer({"anything": 1}) == {"anything": 1}


@pytest.mark.long
def test_a_client_that_attaches_again_compares_again(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon("echo").start()
    with daemon.client(max_retries=100, retry_delay=0.05) as client:
        assert client.infer({"x": 1}) == {"x": 1}
        daemon.stop()
        shutil.copytree(POLICIES / "described", tmp_path / "described")
        daemon.package = tmp_path / "described"
        shutil.rmtree(daemon.state_dir)
        daemon.start()

        with pytest.raises(ContractMismatch, match="-> absent"):
            client.infer({"x": 1})
        assert "action" in client.infer(right())


@pytest.mark.long
def test_a_client_that_came_before_the_model_compares_once_there_is_one(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("described")
    daemon.spawn()
    with daemon.client(max_retries=1000, retry_delay=0.02) as client:
        client.connect()  # torch alone takes longer to load
        daemon.wait_ready()

        with pytest.raises(ContractMismatch, match="-> absent"):
            client.infer({"anything": 1})
        assert "action" in client.infer(right())
