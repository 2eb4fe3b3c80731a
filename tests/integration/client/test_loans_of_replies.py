"""Results that are read where the engine wrote them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from shmserve.client import InferenceFailed, LoanEnded, LoanOutlived, RequestTimeout, ShmClient, SlotsExhausted
from tests.support.client_parts import connection_of
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.other_process import overwrite
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too

_PATTERN = bytes(range(9, 73))
_INSTEAD = bytes(range(109, 173))


@pytest.fixture
def robot(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client


def test_a_lent_reply_equals_the_result_of_the_model(robot: ShmClient) -> None:
    tree = {
        "chunk": np.arange(112, dtype=np.float32).reshape(16, 7),
        "nested": {"list": [np.arange(3), "text", 5], "none": None, "flag": True},
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(2.5),
        "long": list(range(20)),
    }
    with robot.infer_loaned(tree) as found:
        assert list(found) == list(tree)
        assert found["chunk"].tolist() == tree["chunk"].tolist() and found["chunk"].dtype == np.float32
        assert found["nested"]["list"][0].tolist() == [0, 1, 2]
        assert found["nested"]["list"][1:] == ["text", 5]
        assert found["empty"].shape == (0, 3)
        assert found["scalar"] == 2.5
        assert found["long"] == list(range(20))


def test_the_arrays_of_a_lent_reply_are_read_only(robot: ShmClient) -> None:
    with robot.infer_loaned({"x": np.zeros(3)}) as found:
        with pytest.raises(ValueError, match="read-only"):
            found["x"][0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            found["x"].flags.writeable = True


def test_the_arrays_of_a_lent_reply_are_memory_of_the_slot(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo")
    frame = np.zeros(1000, np.uint8)
    frame[500:564] = np.frombuffer(_PATTERN, np.uint8)
    with daemon.client() as client:
        with client.infer_loaned({"frame": frame}) as found:
            # Once in the request's slot and once in the reply's.
            assert overwrite(daemon, _PATTERN, _INSTEAD) == 2
            assert found["frame"][500:564].tobytes() == _INSTEAD
        owned = client.infer({"frame": frame})
        assert overwrite(daemon, _PATTERN, _INSTEAD) == 2
        assert owned["frame"][500:564].tobytes() == _PATTERN


def test_a_lent_reply_is_gone_after_its_block(robot: ShmClient) -> None:
    with robot.infer_loaned({"x": np.zeros(3), "y": 1}) as found:
        assert found["y"] == 1
    assert found == {}

    with robot.infer_loaned([np.zeros(3), 1]) as listed:
        assert listed[1] == 1
    assert listed == []


_KEEPERS: dict[str, Callable[[Any], Any]] = {
    "array": lambda found: found["x"],
    "slice": lambda found: found["x"][1:2],
    "transposed": lambda found: found["nested"]["y"].T,
    "reshaped": lambda found: found["nested"]["y"].reshape(-1),
    "viewed": lambda found: found["x"].view(np.uint8),
    "nested dict": lambda found: found["nested"],
    "list within": lambda found: found["list"],
    "bytes of it": lambda found: memoryview(found["x"]),
    "tensor": lambda found: torch.from_numpy(np.asarray(found["nested"]["y"])),
    "asarray": lambda found: np.asarray(found["list"][0]),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("keeper", _KEEPERS)
def test_a_view_that_outlives_the_block_of_a_lent_reply_is_an_error(robot: ShmClient, keeper: str) -> None:
    tree = {"x": np.arange(5), "nested": {"y": np.zeros((2, 3))}, "list": [np.arange(2)]}

    with pytest.raises(LoanOutlived, match=r"copy what you keep"), robot.infer_loaned(tree) as found:
        kept = _KEEPERS[keeper](found)

    del kept
    assert_same(robot.infer(tree), tree)


def test_a_view_copied_or_released_in_time_is_not_an_error(robot: ShmClient) -> None:
    tree = {"x": np.arange(5), "nested": {"y": np.zeros((2, 3))}}
    with robot.infer_loaned(tree) as found:
        kept = found["x"].copy()
        total = found["x"].sum()
        rows = [float(value) for value in found["nested"]["y"][0]]
        let_go = found["nested"]["y"]
        del let_go

    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert total == 10
    assert rows == [0, 0, 0]


def test_an_error_inside_the_block_is_not_replaced_by_another(robot: ShmClient) -> None:
    with pytest.raises(ZeroDivisionError), robot.infer_loaned({"x": np.zeros(3)}) as found:
        kept = found["x"]
        _ = 1 / 0

    del kept


def test_the_block_of_a_lent_reply_is_entered_once(robot: ShmClient) -> None:
    lent = robot.infer_loaned({"x": np.arange(3)})
    with lent as found:
        with pytest.raises(LoanEnded, match="entered once"):
            lent.__enter__()
        assert found["x"].tolist() == [0, 1, 2]
        found = None
    with pytest.raises(LoanEnded, match="entered once"), lent:
        pass

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_slot_is_not_used_again_while_its_reply_is_lent(echo: Daemon) -> None:
    with echo.client(slots=2) as client:
        with client.infer_loaned({"x": np.arange(1000)}) as found:
            for number in range(5):  # in the other slot
                assert_same(client.infer({"x": np.full(1000, number)}), {"x": np.full(1000, number)})
            with (
                client.infer_loaned({"x": np.zeros(9)}),
                pytest.raises(SlotsExhausted, match="leave its block first"),
            ):
                client.infer({"x": np.zeros(1000)})

            assert found["x"].tolist() == list(range(1000))
        for number in range(5):
            assert client.infer({"x": number}) == {"x": number}


def test_two_replies_are_lent_at_a_time(echo: Daemon) -> None:
    with echo.client(slots=2) as client:
        for number in range(5):
            with (
                client.infer_loaned({"x": np.full(100, number)}) as one,
                client.infer_loaned({"x": np.full(100, -number)}) as other,
            ):
                with pytest.raises(SlotsExhausted, match="lent out"):
                    client.infer({"x": 1})
                assert (one["x"] == number).all()
                assert (other["x"] == -number).all()


def test_replies_are_given_back_in_any_order(echo: Daemon) -> None:
    with echo.client(slots=3) as client:
        first = client.infer_loaned({"x": np.arange(3)})
        second = client.infer_loaned({"x": np.arange(4)})
        one, two = first.__enter__(), second.__enter__()
        second.__exit__(None, None, None)
        assert two == {}
        assert one["x"].tolist() == [0, 1, 2]
        first.__exit__(None, None, None)

        assert client.infer({"x": 1}) == {"x": 1}


def test_an_unread_lent_reply_is_released(echo: Daemon) -> None:
    with echo.client(slots=2) as client:
        for number in range(10):
            client.infer_loaned({"x": np.full(10, number)})  # no block
        gc.collect()

        assert client.infer({"x": 1}) == {"x": 1}


def test_another_thread_waits_for_a_reply_that_is_lent(echo: Daemon) -> None:
    order: list[str] = []

    def ask(client: ShmClient) -> None:
        for number in range(3):
            assert client.infer({"x": number}) == {"x": number}
        order.append("the other thread's answers")

    with echo.client(slots=1) as client:
        with client.infer_loaned({"x": np.arange(10)}) as found:
            thread = threading.Thread(target=ask, args=(client,))
            thread.start()
            thread.join(0.2)  # not a wait for anything: the time in which it would go wrong
            order.append("given back")
            assert found["x"].tolist() == list(range(10))
        thread.join()

    assert order == ["given back", "the other thread's answers"]


def test_a_larger_request_within_the_block_of_a_lent_reply_is_refused_rather_than_hung(robot: ShmClient) -> None:
    with robot.infer_loaned({"x": np.arange(10)}) as found:
        with pytest.raises(SlotsExhausted, match="slots of 't' must grow, and one holds a reply that is lent out"):
            robot.infer({"x": np.zeros(1_000_000)})
        assert found["x"].tolist() == list(range(10))

    assert robot.infer({"x": np.zeros(1_000_000)})["x"].size == 1_000_000


def test_a_larger_request_of_another_thread_waits_for_a_reply_that_is_lent(echo: Daemon) -> None:
    order: list[str] = []

    def ask(client: ShmClient) -> None:
        client.infer({"x": np.zeros(1_000_000)})
        order.append("the larger request's answer")

    with echo.client() as client:
        with client.infer_loaned({"x": np.arange(10)}) as found:
            thread = threading.Thread(target=ask, args=(client,))
            thread.start()
            thread.join(0.2)
            order.append("given back")
            assert found["x"].tolist() == list(range(10))
        thread.join()

    assert order == ["given back", "the larger request's answer"]


@pytest.mark.parametrize(
    "tree",
    [np.arange(5), (np.arange(5), 1), "text", 7, None, {1, 2}],
    ids=lambda tree: type(tree).__name__,
)
def test_a_result_that_is_neither_dict_nor_list_is_a_copy(robot: ShmClient, tree: Any) -> None:
    with robot.infer_loaned(tree) as found:
        pass

    assert_same(found, tree)
    for number in range(6):
        robot.infer({"x": np.full(5, number)})
    assert_same(found, tree)


def test_bfloat16_in_a_lent_reply_is_a_copy(robot: ShmClient) -> None:
    with robot.infer_loaned({"x": np.full(5, 1.5, ml_dtypes.bfloat16)}) as found:
        kept = found["x"]

    assert kept.astype(np.float32).tolist() == [1.5] * 5


def test_an_object_in_a_reply_that_was_pickled_is_a_copy(robot: ShmClient) -> None:
    tree = {"x": np.arange(5), "more": {1, 2, 3}}
    with robot.infer_loaned(tree) as found:
        kept = found["x"]

    assert kept.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.long
def test_a_lent_reply_outlives_its_daemon(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo").start()
    client = daemon.client()
    with client.infer_loaned({"x": np.arange(1000)}) as found:
        daemon.kill9()
        daemon.start()
        assert client.infer({"x": 2}) == {"x": 2}
        assert found["x"].tolist() == list(range(1000))

    assert client.infer({"x": 3}) == {"x": 3}


def test_a_lent_reply_outlives_its_client(echo: Daemon) -> None:
    client = echo.client()
    with client.infer_loaned({"x": np.arange(1000)}) as found:
        client.close()
        assert found["x"].tolist() == list(range(1000))


def test_errors_of_a_request_come_before_its_block(client: ShmClient, gate: Gate) -> None:
    with pytest.raises(InferenceFailed, match="LookupError"):
        client.infer_loaned({"do": "raise", "text": "no"})
    with pytest.raises(RequestTimeout):
        client.infer_loaned(gate.observation, timeout=0.05)
    gate.open()

    with client.infer_loaned({"do": "echo", "value": {"x": np.arange(3)}}) as found:
        assert found["x"].tolist() == [0, 1, 2]


def test_a_large_result_is_lent_after_the_channel_has_grown_for_it(client: ShmClient) -> None:
    with client.infer_loaned({"do": "echo", "value": {"x": np.arange(500_000)}}) as found:
        assert found["x"][-1] == 499_999
        assert not found["x"].flags.writeable


def test_a_reply_is_lent_while_an_abandoned_request_needs_a_larger_channel(obedient: Daemon, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with obedient.client(slots=3) as client:
        client.connect()
        attachment = connection_of(client)
        grown = client.submit({"do": "grow", "items": 300_000, "value": 1})
        wait_until("it was answered", lambda: attachment.channel.replies.answered(grown.sequence))
        client._pipeline.control.abandon(grown)  # as Ctrl-C does
        opening = threading.Timer(0.3, gate.open)
        opening.start()

        # Its own thread finds that the slots must grow when this very reply is there.
        with client.infer_loaned(gate.observation) as found:
            assert found["waited"] is True
        assert client.infer({"do": "echo", "value": 1}) == 1
        opening.join()
