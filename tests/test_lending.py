"""Slot memory in the caller's hands: observations filled in place, replies read in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shmserve.client import LoanKept, RequestRejected, RingFull, ServiceUnavailable, ShmClient
from tests.daemon_process import Daemon

EXAMPLE: dict[str, Any] = {
    "image": np.zeros((48, 64, 3), np.uint8),
    "arm": {"joints": np.zeros(6, np.float32), "gripper": 0.5},
    "task": "pick",
    "step": 1,
}


@pytest.fixture
def client(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client


def test_what_is_written_into_a_loan_is_what_the_model_sees(client: ShmClient) -> None:
    with client.loan(EXAMPLE) as observation:
        observation["image"][:] = 7
        observation["arm"]["joints"][2] = 1.5
        observation["arm"]["gripper"] = 0.25
        observation["task"] = "place"
        observation["step"] = 2
        reply = observation.send().result()

    assert (reply["image"] == 7).all()
    assert reply["arm"]["joints"].tolist() == [0, 0, 1.5, 0, 0, 0]
    assert (reply["arm"]["gripper"], reply["task"], reply["step"]) == (0.25, "place", 2)


def test_a_loan_s_arrays_are_the_slot_s_memory_and_not_copied_by_sending(client: ShmClient) -> None:
    client.infer(EXAMPLE)
    with client.loan(EXAMPLE) as observation:
        channel = client._exchange._held[0].channel
        slot = channel.requests.memory(channel.requests.counter() + 1)

        assert np.shares_memory(observation["image"], slot.payload)
        observation["image"][0, 0, 0] = 9
        assert observation.send().result()["image"][0, 0, 0] == 9


def test_an_entry_that_was_replaced_is_copied_in(client: ShmClient) -> None:
    with client.loan(EXAMPLE) as observation:
        observation["image"] = np.full((48, 64, 3), 3, np.uint8)

        assert (observation.send().result()["image"] == 3).all()


def test_a_loan_that_is_not_sent_leaves_nothing(client: ShmClient) -> None:
    for _ in range(20):
        with client.loan(EXAMPLE) as observation:
            observation["image"][:] = 200

    assert client.infer({"a": 1}) == {"a": 1}


def test_a_loan_is_sent_once(client: ShmClient) -> None:
    with client.loan(EXAMPLE) as observation:
        pending = observation.send()
        with pytest.raises(ValueError, match="sent already"):
            observation.send()

    assert pending.result()["step"] == 1


def test_loans_of_growing_examples_make_room(client: ShmClient) -> None:
    for side in (10, 300, 700):
        with client.loan({"image": np.zeros((side, side, 3), np.uint8)}) as observation:
            observation["image"][-1, -1] = side % 251
            reply = observation.send().result()

        assert reply["image"].shape == (side, side, 3)
        assert reply["image"][-1, -1, 0] == side % 251


def test_another_request_of_the_same_thread_inside_a_loan_is_refused_and_the_loan_stays_good(client: ShmClient) -> None:
    with client.loan(EXAMPLE) as observation:
        with pytest.raises(RingFull, match="lent out"):
            client.infer({"a": 1})

        assert observation.send().result()["step"] == 1


def test_another_thread_waits_for_the_end_of_a_loan(client: ShmClient) -> None:
    replies: list[Any] = []
    with client.loan(EXAMPLE) as observation:
        thread = threading.Thread(target=lambda: replies.append(client.infer({"a": 1})))
        thread.start()
        thread.join(0.05)
        assert replies == []
        pending = observation.send()
    thread.join(30)

    assert (replies, pending.result()["step"]) == ([{"a": 1}], 1)


def test_a_loan_is_for_a_dict(client: ShmClient) -> None:
    with pytest.raises(RequestRejected, match="for a dict, not for list"):
        client.loan([1, 2])  # type: ignore[arg-type]


def test_a_daemon_that_goes_away_during_a_loan_is_a_typed_error(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo")
    with daemon.client(max_retries=0) as client:
        client.infer(EXAMPLE)
        with client.loan(EXAMPLE) as observation:
            daemon.kill9()
            pending = observation.send()

            with pytest.raises(ServiceUnavailable):
                pending.result(timeout=30)


def test_a_lent_reply_is_read_only_slot_memory(client: ShmClient) -> None:
    with client.infer({"image": np.arange(1000, dtype=np.uint16)}, copy=False) as reply:
        memories = client._exchange._held[0].channel.replies.memories

        assert any(np.shares_memory(reply["image"], memory.payload) for memory in memories)
        with pytest.raises(ValueError, match="read-only"):
            reply["image"][0] = 1
        assert reply["image"].sum() == np.arange(1000).sum()


@pytest.mark.parametrize("keep", [lambda reply: reply["a"], lambda reply: reply["b"]["c"][1:2]], ids=["array", "slice"])
def test_an_array_that_outlives_its_block_is_an_error_and_the_client_goes_on(
    client: ShmClient, keep: Callable[[Any], Any]
) -> None:
    observation = {"a": np.ones(4), "b": {"c": np.ones((3, 2), np.float32)}}

    with (
        pytest.raises(LoanKept, match="outlived its block"),
        client.infer(observation, copy=False) as reply,
    ):
        kept = keep(reply)

    assert kept is not None
    assert client.infer({"a": 1}) == {"a": 1}


def test_a_copy_may_be_kept(client: ShmClient) -> None:
    with client.infer({"a": np.arange(5)}, copy=False) as reply:
        kept = reply["a"].copy()

    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_a_slot_that_is_lent_out_is_not_used_and_its_turn_is_an_error_not_a_hang(echo: Daemon) -> None:
    with echo.client(slots=2) as client, client.infer({"a": np.full(8, 5)}, copy=False) as reply:
        assert client.infer({"b": np.full(8, 6)})["b"][0] == 6
        with pytest.raises(RingFull, match="lent out"):
            client.infer({"b": 1})

        assert reply["a"].tolist() == [5] * 8


def test_two_replies_are_lent_at_a_time(client: ShmClient) -> None:
    with client.infer({"a": np.zeros(3)}, copy=False) as one, client.infer({"a": np.ones(3)}, copy=False) as two:
        assert (one["a"].sum(), two["a"].sum()) == (0, 3)


def test_a_reply_that_is_no_dict_or_list_is_copied(client: ShmClient) -> None:
    with client.infer(np.arange(4), copy=False) as reply:
        kept = reply

    assert kept.tolist() == [0, 1, 2, 3]
