"""Workloads of varying sizes: every request differs from the last, every reply is checked, a refusal is shown as one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench import varying
from bench.peers.in_process import InProcess
from bench.peers.peer import Infer
from bench.peers.policy import Policy, checksum
from bench.peers.unix_socket_pickle5 import UnixSocketPickle5
from bench.varying_workloads import EIGHT_SIZES, FIXED, VARYING, VaryingWorkload, asked_of
from bench.workloads import WrongReply


def sizes(tree: Any) -> Any:
    """The structure of a tree, with the length of everything that has one."""
    if isinstance(tree, dict):
        return {key: sizes(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [sizes(value) for value in tree]
    return tree.shape if isinstance(tree, np.ndarray) else len(tree) if isinstance(tree, str) else type(tree)


@pytest.mark.parametrize("name", VARYING)
def test_a_reply_to_another_request_of_a_varying_workload_does_not_pass(name: str) -> None:
    asked, policy = VaryingWorkload(name), Policy()
    asked.stamp(7)
    reply = policy.infer(asked.observation)

    asked.verify(reply, 7)
    with pytest.raises(WrongReply, match="actions"):
        asked.verify({**reply, "actions": reply["actions"][:-1]}, 7)
    asked.stamp(8)
    with pytest.raises(WrongReply, match="request 8"):
        asked.verify(reply, 8)


@pytest.mark.parametrize("name", [name for name in VARYING if name not in (FIXED, "integer_keys", "text")])
def test_consecutive_requests_of_a_varying_workload_differ_in_size(name: str) -> None:
    asked, policy, seen = VaryingWorkload(name), Policy(), []
    for count in range(9):
        asked.stamp(count)
        seen.append((sizes(asked.observation), sizes(policy.infer(asked.observation))))

    assert all(one != following for one, following in pairwise(seen))


def test_a_workload_varies_in_the_thing_that_it_is_named_for_and_no_other() -> None:
    fixed = VaryingWorkload(FIXED)
    fixed.stamp(3)
    texts, keyed = VaryingWorkload("text"), VaryingWorkload("integer_keys")
    for asked in (texts, keyed):
        asked.stamp(3)

    assert sizes({**texts.observation, "instruction": ""}) == sizes({**fixed.observation, "instruction": ""})
    assert len({asked_text(texts, count) for count in range(100)}) == 100
    assert list(keyed.observation["joints"]) == [0, 1, 2, 3, 4, 5]
    assert {len(cloud(count)) for count in range(100)} == set(EIGHT_SIZES) and len(EIGHT_SIZES) == 8


def asked_text(asked: VaryingWorkload, count: int) -> str:
    asked.stamp(count)
    text: str = asked.observation["instruction"]
    return text


def cloud(count: int) -> Any:
    asked = VaryingWorkload("eight_sizes")
    asked.stamp(count)
    return asked.observation["points"]


def test_the_sum_of_an_observation_notices_a_lost_value_and_a_changed_key() -> None:
    whole = {"joints": {0: 1.5, 7: -2.0}, "n": -1, "label": "cup", "boxes": [0.5] * 6, "none": None}

    assert checksum(whole) == checksum({**whole, "boxes": np.full(6, 0.5)})
    for other in (
        {**whole, "joints": {0: 1.5, 8: -2.0}},
        {**whole, "joints": {"0": 1.5, "7": -2.0}},
        {**whole, "n": -2},
        {**whole, "boxes": [0.5] * 5},
    ):
        assert checksum(other) != checksum(whole)


class Picky(InProcess):
    """Accepts no integer keys, as a codec of texts only."""

    name = "picky"

    def connect(self) -> Infer:
        policy = Policy()

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            if 0 in observation["joints"]:
                raise TypeError("joints: key 0 is an int; name it")
            return policy.infer(observation)

        return infer


def test_a_workload_that_a_way_does_not_accept_is_refused_and_the_others_are_measured() -> None:
    found = varying.measure([Picky(), UnixSocketPickle5()], [FIXED, "integer_keys"], 0.02, 2)

    refused = found["integer_keys"][0]
    assert "key 0 is an int" in refused["refused"] and "failed" not in refused
    assert varying.cells(found, "integer_keys", refused)[0] == "refused"
    assert any("name it" in note for note in varying.notes(found))
    assert varying.to_fixed(found, "integer_keys", "picky") is None
    assert (varying.to_fixed(found, "integer_keys", UnixSocketPickle5.name) or 0) > 0
    with open("/dev/null", "w") as nowhere:
        Console(file=nowhere).print(varying.table(found))


class Unstartable(InProcess):
    """Has a server that does not start."""

    name = "unstartable"

    def start(self) -> None:
        raise ConnectionError("no server today")


def test_a_way_that_does_not_start_fails_and_the_others_are_measured() -> None:
    unstartable, in_process = varying.measure([Unstartable(), InProcess()], [FIXED], 0.02, 1)[FIXED]

    assert unstartable["failed"] == "no server today"
    assert in_process["requests"] > 0


class Broken(Picky):
    """Answers correctly until a turn has begun."""

    name = "broken"

    def connect(self) -> Infer:
        infer, asked = super().connect(), 0

        def broken(observation: dict[str, Any]) -> dict[str, Any]:
            nonlocal asked
            asked += 1
            if asked > 21:
                raise TypeError("no longer")
            return infer(observation)

        return broken


def test_an_error_after_the_first_request_is_a_failure_and_not_a_refusal() -> None:
    (row,) = varying.measure([Broken()], [FIXED], 0.02, 1)[FIXED]

    assert "no longer" in row["failed"] and "refused" not in row


def test_ratios_are_of_the_same_round() -> None:
    def row(way: str, *p50_us: float) -> dict[str, Any]:
        return {"name": way, "p50_us": p50_us[0], "round_p50_us": list(p50_us)}

    found = {
        FIXED: [row(varying.WAY, 10, 100, 10), row(varying.SOCKET, 1, 1, 1)],
        "points": [row(varying.WAY, 12, 120, 11), row(varying.SOCKET, 24, 240, 44)],
    }

    assert varying.to_fixed(found, "points") == pytest.approx(1.2)
    assert varying.to_socket(found, "points") == pytest.approx(2.0)
    assert varying.to_socket(found, "text") is None


def test_every_workload_is_found_by_its_name() -> None:
    assert asked_of("points").name == "points"
    assert asked_of("tiny").name == "tiny"
