"""Requests of a C client: how each of them ends, and what the client says of it."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.client.contract_check import check_observation
from shmserve.errors import ContractMismatch, InferenceFailed
from tests.support import c_client, c_trees
from tests.support.c_client import CClient, CError
from tests.support.c_library import library
from tests.support.c_trees import Entry, entries_of
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.joint_packages import STATED, joint_package
from tests.support.same_trees import assert_same

pytestmark = [pytest.mark.sealed_too]


@pytest.fixture
def asked(obedient: Daemon) -> Iterator[CClient]:
    library()
    with CClient.of(obedient) as client:
        yield client


def status_of(call: Callable[[], object]) -> tuple[int, str]:
    """The status and the text of a call that does not return OK."""
    with pytest.raises(CError) as raised:
        call()
    return raised.value.status, raised.value.text


def test_every_status_has_a_text_that_says_what_to_do() -> None:
    texts = [
        c_client.functions().status_text(status).decode() for status in range(c_client.FORKED, c_client.STOPPING + 1)
    ]

    assert len(set(texts)) == len(texts)
    assert not any("does not know" in text for text in texts)
    assert "does not know" in c_client.functions().status_text(77).decode()


@pytest.mark.parametrize("name", ["KeinGelenkMit" + "ä" * 87, "Long" + "é" * 200, "x" + "関" * 99])
def test_a_failure_of_a_long_name_and_text_is_the_one_that_python_raises(
    asked: CClient, client: ShmClient, name: str
) -> None:
    tree = {"do": "raise_as", "name": name, "text": "😀" * 1000}
    with pytest.raises(InferenceFailed) as of_python:
        client.infer(tree)

    status, text = status_of(lambda: asked.infer(tree))

    assert status == c_client.FAILED
    assert text == str(of_python.value)


def test_the_text_of_a_failure_is_the_one_that_python_raises(asked: CClient, client: ShmClient) -> None:
    tree = {"do": "raise", "text": "no such joint"}
    with pytest.raises(InferenceFailed) as of_python:
        client.infer(tree)

    status, text = status_of(lambda: asked.infer(tree))

    assert status == c_client.FAILED
    assert text == str(of_python.value)


def test_a_reply_tells_the_version_and_how_long_each_step_took(asked: CClient, client: ShmClient) -> None:
    version = int(client.describe()["version"], 16)
    sequence = asked.submit({"do": "sleep", "s": 0.01})

    reply = asked.head(sequence)

    assert reply.model_version == version
    assert reply.infer_ns >= 10_000_000
    assert (reply.attempts, reply.clamped) == (1, 0)
    asked.release(sequence)


def test_requests_in_flight_are_waited_for_in_any_order(asked: CClient) -> None:
    sequences = [asked.submit({"do": "echo", "value": number}) for number in range(4)]

    assert [asked.result(sequence) for sequence in reversed(sequences)] == [3, 2, 1, 0]


def test_a_client_without_a_free_slot_says_so(asked: CClient) -> None:
    sequences = [asked.submit({"do": "echo", "value": number}) for number in range(4)]

    status, text = status_of(lambda: asked.submit({"do": "echo", "value": 4}))

    assert status == c_client.EXHAUSTED
    assert "more slots" in text
    assert asked.result(sequences[0]) == 0
    assert asked.infer({"do": "echo", "value": 4}) == 4


def test_a_wait_that_timed_out_may_be_repeated(asked: CClient, gate: Gate) -> None:
    sequence = asked.submit(gate.observation)

    assert status_of(lambda: asked.head(sequence, 0.02))[0] == c_client.TIMEOUT
    assert status_of(lambda: asked.head(sequence, 0))[0] == c_client.TIMEOUT
    gate.open()

    assert asked.result(sequence)["waited"]


def test_a_late_reply_is_discarded_and_never_another_request_s(asked: CClient, gate: Gate) -> None:
    sequence = asked.submit(gate.observation)
    gate.wait_entered()
    asked.check(asked.calls.abandon(asked.handle, sequence))

    others = [asked.submit({"do": "echo", "value": number}) for number in range(3)]
    gate.open()

    assert [asked.result(other) for other in others] == [0, 1, 2]
    assert status_of(lambda: asked.head(sequence))[0] == c_client.ENDED
    assert asked.infer({"do": "echo", "value": 9}) == 9
    assert asked.stats().late_replies == 1


def test_a_waiting_request_is_cancelled_and_a_running_one_is_not(asked: CClient, gate: Gate) -> None:
    running = asked.submit(gate.observation)
    waiting = asked.submit({"do": "echo", "value": 1})
    gate.wait_entered()

    assert status_of(lambda: asked.check(asked.calls.cancel(asked.handle, running)))[0] == c_client.RUNNING
    asked.check(asked.calls.cancel(asked.handle, waiting))
    asked.check(asked.calls.cancel(asked.handle, waiting))
    assert status_of(lambda: asked.head(waiting))[0] == c_client.CANCELLED
    gate.open()

    assert asked.result(running)["waited"]
    assert status_of(lambda: asked.check(asked.calls.cancel(asked.handle, running)))[0] == c_client.ENDED
    assert [asked.infer({"do": "echo", "value": number}) for number in range(8)] == list(range(8))


def test_cancelled_requests_that_nobody_waits_for_keep_no_slot(asked: CClient, gate: Gate) -> None:
    running = asked.submit(gate.observation)
    gate.wait_entered()
    for number in range(3):
        asked.check(asked.calls.cancel(asked.handle, asked.submit({"do": "echo", "value": number})))
    gate.open()
    assert asked.result(running)["waited"]

    def is_free() -> bool:
        return bool(asked.calls.reset(asked.handle, time.monotonic_ns() + 30_000_000_000) == c_client.OK)

    wait_until("a slot is free again", is_free)
    sequences = [asked.submit({"do": "echo", "value": number}) for number in range(4)]

    assert [asked.result(sequence) for sequence in sequences] == [0, 1, 2, 3]


def test_a_newer_request_supersedes_one_that_waits(asked: CClient, gate: Gate) -> None:
    running = asked.submit(gate.observation)
    gate.wait_entered()
    older = asked.submit({"do": "echo", "value": 1})
    newer = asked.submit({"do": "echo", "value": 2}, supersede=1)
    gate.open()

    assert asked.result(newer) == 2
    assert status_of(lambda: asked.result(older))[0] == c_client.SUPERSEDED
    assert asked.result(running)["waited"]


def test_a_request_whose_deadline_or_age_has_passed_does_not_run(asked: CClient, gate: Gate) -> None:
    running = asked.submit(gate.observation)
    gate.wait_entered()
    now_ns = time.monotonic_ns()
    late = asked.submit({"do": "echo", "value": 1}, deadline_ns=now_ns + 1)
    old = asked.submit({"do": "echo", "value": 2}, capture_ns=now_ns - 1_000_000_000, max_age_ns=1)
    gate.open()

    assert asked.result(running)["waited"]
    assert status_of(lambda: asked.result(late))[0] == c_client.EXPIRED
    assert status_of(lambda: asked.result(old))[0] == c_client.STALE
    wrong = status_of(lambda: asked.submit({"do": "echo", "value": 3}, capture_ns=time.time_ns()))
    assert wrong[0] == c_client.ARGUMENT and "CLOCK_MONOTONIC" in wrong[1]


def test_a_reset_reaches_the_policy(asked: CClient) -> None:
    before = asked.infer({"do": "count"})["resets"]

    asked.check(asked.calls.reset(asked.handle, time.monotonic_ns() + 30_000_000_000))

    assert asked.infer({"do": "count"})["resets"] == before + 1


def test_a_reset_that_is_not_answered_in_time_is_abandoned(asked: CClient, gate: Gate) -> None:
    running = asked.submit(gate.observation)
    gate.wait_entered()

    status = asked.calls.reset(asked.handle, time.monotonic_ns() + 10_000_000)
    gate.open()

    assert status == c_client.TIMEOUT
    assert asked.result(running)["waited"]
    assert asked.infer({"do": "echo", "value": 5}) == 5


def test_requests_and_replies_that_do_not_fit_make_the_channel_grow(asked: CClient) -> None:
    large = np.arange(100_000)
    status, text = status_of(lambda: asked.loan(asked.declare(list(entries_of({"do": "echo", "value": large})))))
    assert status == c_client.RESIZE_REQUIRED
    assert "shmserve_recover" in text

    assert_same(asked.infer({"do": "echo", "value": large}), large)
    sequence = asked.submit({"do": "grow", "items": 1_000_000, "value": 7})
    assert status_of(lambda: asked.head(sequence))[0] == c_client.RESIZE_REQUIRED
    small = asked.declare(list(entries_of({"do": "echo", "value": 1})))
    assert status_of(lambda: asked.loan(small))[0] == c_client.RESIZE_REQUIRED
    assert_same(asked.result(sequence), np.full(1_000_000, 7))
    assert asked.infer({"do": "echo", "value": 1}) == 1
    assert asked.stats().resized >= 2


def test_a_channel_does_not_grow_under_a_reply_that_is_held(asked: CClient) -> None:
    held = asked.submit({"do": "echo", "value": b"kept"})
    asked.head(held)
    large = asked.submit({"do": "grow", "items": 1_000_000, "value": 7})
    assert status_of(lambda: asked.head(large))[0] == c_client.RESIZE_REQUIRED

    status, text = status_of(asked.recover)

    assert status == c_client.EXHAUSTED
    assert "release" in text
    asked.release(held)
    assert_same(asked.result(large), np.full(1_000_000, 7))


def test_a_channel_larger_than_the_service_allows_is_refused_and_the_client_goes_on(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("obedient", config="max_channel_bytes = 4000000\n")
    with CClient.of(daemon) as client:
        status, text = status_of(lambda: client.infer({"do": "echo", "value": np.zeros(8_000_000, np.uint8)}))
        assert status == c_client.TOO_LARGE
        assert "max_channel_bytes is 4000000" in text
        assert status_of(lambda: client.infer({"do": "grow", "items": 1_000_000, "value": 7}))[0] == c_client.TOO_LARGE

        assert client.infer({"do": "echo", "value": 3}) == 3


def test_a_loan_that_is_given_back_frees_its_slot(asked: CClient) -> None:
    for _ in range(20):
        request = asked.lend({"do": "echo", "value": 1})
        asked.check(asked.calls.give_back(asked.handle, request.sequence))

    assert status_of(lambda: asked.publish(request.sequence))[0] == c_client.ENDED
    assert asked.infer({"do": "echo", "value": 1}) == 1


def test_an_engine_is_woken_for_an_expected_request(asked: CClient) -> None:
    asked.check(asked.calls.expect(asked.handle, 1_000_000))

    assert asked.infer({"do": "echo", "value": 1}) == 1


def test_python_objects_in_a_reply_are_refused_with_the_remedy(asked: CClient) -> None:
    status, text = status_of(lambda: asked.infer({"do": "mixed", "x": 1}))

    assert status == c_client.PROTOCOL
    assert "let the policy return" in text
    assert asked.infer({"do": "echo", "value": 1}) == 1


def test_describe_gives_what_python_gets(asked: CClient, obedient: Daemon) -> None:
    room = ctypes.c_size_t(1 << 16)
    text = ctypes.create_string_buffer(1 << 16)
    asked.check(asked.calls.describe(asked.handle, text, ctypes.byref(room), 10_000_000_000))

    found = json.loads(text.value)
    with obedient.client() as client:
        assert found["model"] == client.describe()
    assert room.value == len(text.value) + 1


# The contract


_WRONG = {
    "absent": {"state": np.ones(6, np.float32), "image": np.ones((480, 640, 3), np.uint8)},
    "dtype": {"instruction": "x", "state": np.ones(6), "image": np.ones((480, 640, 3), np.uint8)},
    "size": {"instruction": "x", "state": np.ones(7, np.float32), "image": np.ones((480, 640, 3), np.uint8)},
    "dimensions": {"instruction": "x", "state": np.ones((6, 1), np.float32), "image": np.ones((480, 640, 3), np.uint8)},
    "kind": {"instruction": [1, 2], "state": {}, "image": ["a", "b"]},
    "lists": {"instruction": ["a", 1], "state": [1.5], "image": (1, 1 << 70)},
}


@pytest.mark.parametrize("name", _WRONG)
def test_an_observation_that_the_model_does_not_take_is_refused_in_python_s_words(described: Daemon, name: str) -> None:
    with described.client() as python, CClient.of(described) as client:
        with pytest.raises(ContractMismatch) as raised:
            check_observation("t", python.describe(), _WRONG[name])

        status, _ = status_of(lambda: client.lend(_WRONG[name]))
        entries = list(entries_of(_WRONG[name]))
        declared = status_of(lambda: client.loan(client.declare(entries)))

    assert status == declared[0] == c_client.MISMATCH
    differences = [f"\n  {line}" for line in raised.value.differences]
    assert all(difference in declared[1] for difference in differences), declared[1]
    assert declared[1].count("\n  ") == len(differences)


def test_a_model_that_is_still_loaded_is_asked_for_its_contract_later(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("described")
    daemon.spawn()
    with CClient.of(daemon, max_retries=1000, retry_delay_ns=20_000_000) as client:
        daemon.wait_ready()

        status, text = status_of(lambda: client.declare(list(entries_of(_WRONG["dtype"]))))

        assert status == c_client.MISMATCH
        assert "observation.state: float32[6] -> float64[6]" in text


def test_sizes_are_compared_with_the_contract_when_they_are_known(described: Daemon) -> None:
    right = {
        "instruction": "place",
        "state": np.ones(6, np.float32),
        "image": np.ones((480, 640, 3), np.uint8),
        "more": 1,
    }
    with CClient.of(described) as client:
        entries = list(entries_of(right))
        schema = client.declare(entries, shapes=False)
        runs = client.infer(right)["runs"]

        status, text = status_of(lambda: client.loan(schema, [5, 6, 480, 640, 4]))

        assert status == c_client.MISMATCH
        assert "\n  observation.image: uint8[480, 640, 3] -> uint8[480, 640, 4]\n" in text
        assert client.infer({**right, "instruction": "another"})["runs"] == runs + 1


def test_the_structure_of_the_model_is_declared_from_its_contract(described: Daemon) -> None:
    with CClient.of(described) as client:
        schema = client.declare_as_model()
        entries = [
            (entry.path.decode(), entry.kind, list(entry.shape[: entry.dims])) for entry in client.entries(schema)
        ]
        request = client.loan(schema, [2, 6, 480, 640, 3])
        client.fill(request, [Entry("", c_trees.STR, 2, (2,), b"go")])
        client.publish(request.sequence)

        assert client.result(request.sequence)["action"].shape == (16, 7)
    assert entries == [
        ("instruction", c_trees.STR, [0]),
        ("state", c_trees.ARRAY, [6]),
        ("image", c_trees.ARRAY, [480, 640, 3]),
    ]


def test_a_free_dimension_takes_every_length(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(joint_package(tmp_path, "joints", STATED)).start()
    seen = {"state": np.ones(3, np.float32), "camera": np.zeros((4, 6, 3), np.uint8)}
    with CClient.of(daemon) as client:
        entries = client.entries(client.declare_as_model())
        shapes = {entry.path.decode(): list(entry.shape[: entry.dims]) for entry in entries}

        for points in (3, 900, 5):
            assert client.infer({**seen, "points": np.zeros((points, 3), np.float32)})["points"] == points
        status, text = status_of(lambda: client.infer({**seen, "points": np.zeros((5, 4), np.float32)}))

    assert shapes == {"state": [3], "points": [2**64 - 1, 3], "camera": [4, 6, 3]}
    assert status == c_client.MISMATCH
    assert "\n  observation.points: float32[-1, 3] -> float32[5, 4]\n" in text


def test_a_model_that_declares_nothing_has_no_structure_to_declare(asked: CClient) -> None:
    status, text = status_of(asked.declare_as_model)

    assert status == c_client.MISMATCH
    assert "declares nothing" in text


# Wrong arguments


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "0 entries"),
        ([Entry("a", 99)], "kind"),
        ([Entry("a", c_trees.ARRAY, 77)], "dtype"),
        ([Entry("a", c_trees.LIST, c_trees.FLOAT32)], "SHMSERVE_F64"),
        ([Entry("a", c_trees.ARRAY, 9, (1,) * 17)], "16 dimensions"),
        ([Entry("a", c_trees.INT), Entry("a", c_trees.INT)], "declared before"),
        ([Entry("a/b", c_trees.INT), Entry("c", c_trees.INT), Entry("a/d", c_trees.INT)], "one after another"),
        ([Entry("a", c_trees.INT), Entry("a/b", c_trees.INT)], "declared before"),
        ([Entry("", c_trees.INT), Entry("a", c_trees.INT)], "one value"),
        ([Entry("a", c_trees.SEQUENCE), Entry("a/1", c_trees.INT)], "0, 1, 2"),
        ([Entry("a~", c_trees.INT)], "no key"),
        ([Entry("#x", c_trees.INT)], "integer key"),
        ([Entry("#9223372036854775808", c_trees.INT)], "integer key"),
        ([Entry("k" * 1025, c_trees.INT)], "no key"),
        ([Entry("/".join("a" * 40), c_trees.INT)], "32 containers"),
        ([Entry("a", c_trees.LONG, data=b"\1" * 8)], "9 to 16"),
        ([Entry("a", c_trees.LONG, data=bytes(9))], "shortest form"),
    ],
)
def test_entries_that_are_no_tree_are_refused_with_the_reason(asked: CClient, entries: list[Entry], words: str) -> None:
    status, text = status_of(lambda: asked.declare(entries))

    assert status == c_client.ARGUMENT
    assert words in text


def test_sizes_that_no_payload_has_are_refused(asked: CClient) -> None:
    schema = asked.declare([Entry("a", c_trees.ARRAY, c_trees.FLOAT32, (1, 1))], shapes=False)

    for sizes in ([1 << 63, 2], [1 << 40, 1 << 40], [(1 << 64) - 1, 0]):
        assert status_of(partial(asked.loan, schema, sizes))[0] == c_client.ARGUMENT
    assert status_of(lambda: asked.loan(schema))[0] == c_client.ARGUMENT


def test_a_service_name_or_options_that_have_no_meaning_are_refused() -> None:
    for name, value in (("slots", 0), ("slots", 65), ("spin_ns", -2)):
        assert status_of(partial(CClient, "t", None, **{name: value}))[0] == c_client.ARGUMENT
    status, text = status_of(lambda: CClient("../t"))
    assert status == c_client.ARGUMENT and "1 to 64 letters" in text


def test_infer_copies_the_entries_that_are_wanted(asked: CClient) -> None:
    tree = {"do": "echo", "value": {"a": np.arange(100_000, dtype=np.float32), "n": 7}}
    entries = list(entries_of(tree))
    schema = asked.declare(entries, shapes=False)
    buffers = [ctypes.create_string_buffer(entry.data, max(1, len(entry.data))) for entry in entries]
    values = (ctypes.c_void_p * len(entries))(*[ctypes.addressof(buffer) for buffer in buffers])
    sizes = (ctypes.c_uint64 * 2)(4, 100_000)
    into, number = (ctypes.c_float * 100_000)(), ctypes.c_int64()
    outputs = (c_client.COutput * 2)()
    outputs[0].path, outputs[0].kind, outputs[0].dtype = b"a", c_trees.ARRAY, c_trees.FLOAT32
    outputs[0].into, outputs[0].room = ctypes.addressof(into), 400_000
    outputs[1].path, outputs[1].kind = b"n", c_trees.INT
    outputs[1].into, outputs[1].room = ctypes.addressof(number), 8

    def infer() -> int:
        found: int = asked.calls.infer(asked.handle, schema, sizes, values, None, outputs, 2)
        return found

    while infer() == c_client.RESIZE_REQUIRED:
        asked.recover()

    assert infer() == c_client.OK, asked.last_error
    assert (list(into[:3]), into[99_999], number.value) == ([0.0, 1.0, 2.0], 99_999.0, 7)
    assert (outputs[0].bytes, outputs[0].dims, outputs[0].shape[0]) == (400_000, 1, 100_000)
    outputs[0].room = 399_999
    assert infer() == c_client.MISMATCH and "there is room for" in asked.last_error
    outputs[0].room, outputs[0].path = 400_000, b"b"
    assert infer() == c_client.MISMATCH and "no entry 'b'" in asked.last_error
