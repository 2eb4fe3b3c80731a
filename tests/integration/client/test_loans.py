"""Observations that are filled in where they are sent from."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmserve.client import (
    ClientClosed,
    LoanEnded,
    ObservationStale,
    RequestRejected,
    RequestTimeout,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
    SlotsExhausted,
    UnsupportedType,
)
from tests.support.daemon_process import Daemon
from tests.support.gate import Gate
from tests.support.other_process import overwrite
from tests.support.trees import Mode, assert_same

pytestmark = pytest.mark.sealed_too

_PATTERN = bytes(range(7, 71))
_INSTEAD = bytes(range(107, 171))


@pytest.fixture
def robot(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client


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


# Slots


def test_a_loan_for_a_larger_observation_makes_the_channel_grow(robot: ShmClient) -> None:
    for size in (10, 1_000_000, 100, 3_000_000):
        with robot.loan({"frame": np.zeros(size, np.uint8)}) as observation:
            observation["frame"][-1] = 5
            pending = observation.send()

        found = pending.result()["frame"]

        assert found.size == size and found[-1] == 5 and not found[:-1].any()


def test_a_loan_of_an_observation_that_outgrew_its_slot_is_refused_and_the_client_goes_on(robot: ShmClient) -> None:
    with robot.loan({"frame": np.zeros(10)}) as observation:
        observation["frame"] = np.zeros(1_000_000)

        with pytest.raises(RequestRejected, match="outgrew the slot"):
            observation.send()

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_loan_that_is_not_sent_leaves_nothing(obedient: Daemon) -> None:
    with obedient.client(slots=2) as client:
        before = client.infer({"do": "count"})["runs"]
        for number in range(10):
            with client.loan({"do": "count", "frame": np.zeros(100)}) as observation:
                observation["frame"][:] = number
        with pytest.raises(ZeroDivisionError), client.loan({"do": "count"}):
            _ = 1 / 0

        assert client.infer({"do": "count"})["runs"] == before + 1


def test_a_dropped_loan_has_ended(robot: ShmClient) -> None:
    for _ in range(10):
        robot.loan({"x": np.zeros(3)})

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_request_from_within_a_loan_is_refused_rather_than_hung(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.infer({"x": 1})
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.loan({"x": np.zeros(3)})
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.reset()
        observation["x"][:] = 3
        pending = observation.send()

        assert robot.infer({"x": 1}) == {"x": 1}
    assert pending.result()["x"].tolist() == [3, 3, 3]


def test_requests_that_are_out_are_answered_during_a_loan(robot: ShmClient) -> None:
    pendings = [robot.submit({"x": number}) for number in range(3)]
    with robot.loan({"x": np.zeros(3)}) as observation:
        assert [pending.result() for pending in pendings] == [{"x": 0}, {"x": 1}, {"x": 2}]
        pending = observation.send()

    assert pending.result()["x"].tolist() == [0, 0, 0]


def test_a_result_that_makes_the_channel_grow_during_a_loan_harms_neither(client: ShmClient) -> None:
    growing = client.submit({"do": "grow", "items": 300_000, "value": 5})
    with client.loan({"do": "echo", "value": np.zeros(1000)}) as observation:
        observation["value"][:] = 7
        assert_same(growing.result(), np.full(300_000, 5))
        observation["value"][0] = 8
        pending = observation.send()

    assert pending.result().tolist() == [8.0] + [7.0] * 999


def test_other_threads_wait_for_the_end_of_a_loan(obedient: Daemon) -> None:
    order: list[str] = []
    began = threading.Event()

    def ask(client: ShmClient) -> None:
        began.set()
        client.infer({"do": "count"})
        order.append("the other thread's answer")

    for send in (True, False):
        with obedient.client() as client:
            began.clear()
            with client.loan({"do": "count", "frame": np.zeros(3)}) as observation:
                thread = threading.Thread(target=ask, args=(client,))
                thread.start()
                began.wait()
                thread.join(0.2)  # not a wait for anything: the time in which it would go wrong
                order.append("the loan's end")
                if send:
                    observation.send()
            thread.join()

    assert order == ["the loan's end", "the other thread's answer"] * 2


def test_a_thread_that_waits_for_anothers_loan_has_its_timeout(obedient: Daemon) -> None:
    raised: list[BaseException] = []

    def ask(client: ShmClient) -> None:
        try:
            client.infer({"do": "count"}, timeout=0.1)
        except ShmServeError as error:
            raised.append(error)

    with obedient.client() as client, client.loan({"do": "count"}):
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        thread.join()

    assert [type(error) for error in raised] == [SlotsExhausted]


# Ends


def test_a_loan_is_sent_once(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        pending = observation.send()
        with pytest.raises(LoanEnded, match="sent already"):
            observation.send()

    assert pending.result()["x"].tolist() == [0, 0, 0]


def test_a_loan_is_not_sent_after_its_block(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        pass

    with pytest.raises(LoanEnded, match="has ended"):
        observation.send()
    with pytest.raises(LoanEnded, match="was left"), observation:
        pass
    with robot.loan({"x": np.ones(3)}) as other:
        with pytest.raises(LoanEnded, match="has ended") as raised:
            observation.send()
        assert isinstance(raised.value, ValueError)
        pending = other.send()
    assert pending.result()["x"].tolist() == [1, 1, 1]


def test_an_array_that_is_kept_beyond_its_loan_cannot_be_written_to(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3), "y": np.zeros(3)}) as observation:
        sent = observation["x"]
        sent[:] = 1
        pending = observation.send()
        with pytest.raises(ValueError, match="read-only"):
            sent[:] = 2
    with robot.loan({"x": np.zeros(3)}) as observation:
        unsent = observation["x"]
    with pytest.raises(ValueError, match="read-only"):
        unsent[:] = 3

    assert pending.result()["x"].tolist() == [1, 1, 1]
    with robot.loan({"x": np.zeros(3)}) as observation:
        observation["x"][:] = 4
        assert observation.send().result()["x"].tolist() == [4, 4, 4]


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill9", pytest.param("stop", marks=pytest.mark.long)])
def test_a_daemon_that_goes_away_during_a_loan_is_an_error_at_send(
    make_daemon: Callable[..., Daemon], how: str
) -> None:
    daemon = make_daemon("echo").start()
    client = daemon.client()
    for _ in range(2):  # the loan of a sequence that the next channel has not reached, and of one that it has
        client.infer({"x": 1})
    with client.loan({"x": np.zeros(3)}) as observation:
        getattr(daemon, how)()
        daemon.start()
        observation["x"][:] = 1  # the memory is still there

        with pytest.raises(ServiceUnavailable, match=r"went away while the slot was on loan; nothing was sent"):
            observation.send()

    assert client.infer({"x": 2}) == {"x": 2}


def test_a_client_that_is_closed_during_a_loan_says_so_at_send(echo: Daemon) -> None:
    client = echo.client()
    with client.loan({"x": np.zeros(3)}) as observation:
        client.close()
        observation["x"][:] = 1

        with pytest.raises(ClientClosed):
            observation.send()


def test_a_loan_has_the_terms_of_its_request(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    gate.wait_entered()
    with client.loan({"do": "count"}, max_age=0) as observation:
        stale = observation.send()
    with client.loan({"do": "count"}, timeout=0.05) as observation:
        expired = observation.send()
    with pytest.raises(RequestTimeout):
        expired.result()
    gate.open()

    with pytest.raises(ObservationStale):
        stale.result()
    assert held.result()["waited"]


@pytest.mark.parametrize(
    "tree", [np.zeros(3), [np.zeros(3)], (1, 2), None, "text"], ids=lambda tree: type(tree).__name__
)
def test_a_loan_is_made_for_a_dict(robot: ShmClient, tree: Any) -> None:
    with pytest.raises(RequestRejected, match=f"not for {type(tree).__name__}"):
        robot.loan(tree)


def test_a_loan_is_not_made_for_what_would_be_pickled(robot: ShmClient) -> None:
    with pytest.raises(UnsupportedType, match="a loan cannot be made"):
        robot.loan({"x": np.zeros(3), "more": {1, 2, 3}})

    assert robot.infer({"x": 1}) == {"x": 1}
