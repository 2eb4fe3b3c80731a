"""Trees from C: the same bytes in the slot as from Python, and the same values back."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.layout import REQUEST
from tests.support.c_client import CClient, slot_bytes
from tests.support.c_library import library
from tests.support.c_trees import BYTES, DTYPES, STR, entries_of
from tests.support.client_parts import connection_of
from tests.support.daemon_process import Daemon
from tests.support.same_trees import assert_same
from tests.support.trees import filled

pytestmark = [pytest.mark.sealed_too]

_DEEP: Any = 7
for _ in range(31):
    _DEEP = {"in": _DEEP}

TREES: dict[str, Any] = {
    **{f"dtype {dtype.name}": {"a": filled(dtype, (3, 5), 1), "s": filled(dtype, (2,), 2)[0]} for dtype in DTYPES},
    "0 dims": {"a": np.array(2.5)},
    "1 dim": {"a": np.arange(7)},
    "3 dims": {"a": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)},
    "16 dims": {"a": np.arange(4, dtype=np.int16).reshape((2, *[1] * 14, 2))},
    "empty arrays": {"a": np.zeros((0, 3), np.float32), "b": np.zeros((2, 0, 2), np.uint8)},
    "empty containers": {"d": {}, "l": [], "t": ()},
    "nested": {
        "robot": {"arm": {"joints": np.arange(6.0)}, "on": True},
        "poses": [{"x": 1.5}, {"x": 2.5}],
        "p": (1, "a"),
    },
    "texts of 1, 255, 256 bytes": {"one": "x", "most": "y" * 255, "more": "z" * 256, "none": ""},
    "text beyond ASCII": {"task": "Schraube lösen 🤖", "lone": "\ud800"},
    "bytes": {"b": bytes(range(256)), "none": b""},
    "64-bit edges": {"low": -(1 << 63), "high": (1 << 63) - 1, "zero": 0, "minus": -1},
    "larger integers": {"a": 1 << 63, "b": -(1 << 63) - 1, "c": (1 << 127) - 1},
    "floats": {"inf": float("inf"), "tiny": 5e-324, "minus zero": -0.0},
    "lists of numbers": {"i": [1, 2, 3], "f": [0.5], "b": [True, False], "mixed": [1, 2.5], "large": [1 << 70, 1]},
    "None": {"a": None, "b": [None, None]},
    "integer keys": {0: 1, 255: 2, 256: 3, 65536: 4, -1: 5, 1 << 31: 6, -(1 << 63): 7},
    "odd keys": {"": 1, "/": 2, "~": 3, "#7": 4, "a/b~c": {"#": 5}, "\0": 6, "é": 7},
    "long keys": {"k" * 255: 1, "l" * 256: 2, "m" * 1024: 3},
    "31 dicts deep": _DEEP,
    "one number": 5,
    "one array": np.arange(3, dtype=np.float32),
    "one text": "fold",
    "a list of trees": [{"a": 1}, [], (2,)],
    "a tuple": (np.zeros(2), {"b": None}),
    "many entries": {f"entry {number}": number for number in range(100)},
}


@pytest.fixture(scope="module")
def asked(echo: Daemon) -> Iterator[CClient]:
    library()
    with CClient.of(echo, slots=2, reply_bytes=1 << 18, request_bytes=1 << 18) as client:
        yield client


@pytest.mark.parametrize("name", TREES)
def test_c_and_python_write_the_same_slot(echo: Daemon, name: str) -> None:
    tree = TREES[name]
    skipped = [REQUEST.offset(word) for word in ("submitted_ns", "deadline_ns")]
    with echo.client(slots=2) as python, CClient.of(echo, slots=2) as client:
        python.infer(tree)
        channel = connection_of(python).channel
        words = channel.requests.published()
        expected = slot_bytes(channel.requests.segment.memory, words & 63)

        request = client.lend(tree)
        client.publish(request.sequence)
        given = client.slot_bytes(request)
        client.result(request.sequence)

    heads = [bytearray(slot[0]) for slot in (expected, given)]
    for head in heads:
        for offset in skipped:
            head[offset : offset + 8] = bytes(8)
    assert heads[0] == heads[1]
    assert expected[1][:4096].rstrip(b"\0") == given[1][:4096].rstrip(b"\0")
    size = struct.unpack_from("Q", expected[0], REQUEST.offset("payload_bytes"))[0]
    assert expected[2][:size] == given[2][:size]


@pytest.mark.parametrize("name", TREES)
def test_a_reply_has_the_values_that_python_gets(asked: CClient, echo: Daemon, name: str) -> None:
    with echo.client() as python:
        expected = python.infer(TREES[name])

    assert_same(asked.infer(TREES[name]), expected)


def test_a_structure_larger_than_any_before_is_read_after_recover(echo: Daemon) -> None:
    tree = {f"entry {number}": {"deep": [{"x": number}]} for number in range(1000)}
    with CClient.of(echo, reply_bytes=1 << 20) as client:
        assert_same(client.infer(tree), tree)
        assert_same(client.infer({"small": 1}), {"small": 1})


def test_one_declared_structure_serves_every_size(echo: Daemon) -> None:
    trees = [
        {"points": np.arange(3.0 * count).reshape(count, 3), "task": "t" * text, "ids": list(range(1, count + 2))}
        for count, text in ((0, 0), (5, 255), (1, 256), (700, 3), (2, 1))
    ]
    with CClient.of(echo) as client:
        schemas = {client.declare(list(entries_of(tree)), shapes=False) for tree in trees}
        for tree in trees:
            assert_same(client.infer(tree), tree)

        assert len(schemas) == 1


def test_a_structure_keeps_its_number_and_gives_it_to_no_other(echo: Daemon) -> None:
    seen: dict[int, set[str]] = {}
    with CClient.of(echo) as client:
        for number in (*range(20), 0, 19, 19, 3):
            sequence = client.submit({f"entry {number}": number})
            reply = client.head(sequence)
            (entry,) = client.entries(reply.schema)
            seen.setdefault(reply.structure, set()).add(entry.path.decode())
            client.release(sequence)

    assert all(len(paths) == 1 for paths in seen.values())
    assert 20 <= len(seen) < 24


_NESTED: dict[Any, Any] = {
    "robot": {"joints": np.zeros(6, np.float32), "a.b/c": 1, "": True},
    "poses": [{"x": 1.5}, {"x": 2.5, "y": [1, 2]}],
    "names": ["left", "right"],
    "rates": [0.5, 1.5, 2.5],
    "none": None,
    7: 2.0,
    "empty": {},
    "image": np.zeros((2, 3, 3), np.uint8),
    "raw": b"abc",
}
_POLICY = """
import pickle
from pathlib import Path


class Policy:
    def __init__(self, path, device):
        self.example = pickle.loads(Path(path, "example.pickle").read_bytes())

    def example_observation(self):
        return self.example

    def infer(self, observation):
        return {"keys": [str(key) for key in observation], "joints": observation["robot"]["joints"]}
"""


def test_the_structure_of_a_nested_contract_is_declared_as_python_sends_it(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/policy.py").write_text(_POLICY)
    (tmp_path / "model/example.pickle").write_bytes(pickle.dumps(_NESTED))
    daemon = start_daemon(tmp_path / "model")
    with CClient.of(daemon) as client, daemon.client() as python:
        schema = client.declare_as_model()
        given = [(entry.path.decode(), entry.kind, list(entry.shape[: entry.dims])) for entry in client.entries(schema)]
        entries = list(entries_of(_NESTED))
        request = client.loan(schema, [size for entry in entries for size in entry.sizes])
        client.fill(request, entries)
        client.publish(request.sequence)

        assert_same(client.result(request.sequence), python.infer(_NESTED))
    expected = [(entry.path, entry.kind, [0] if entry.kind in (STR, BYTES) else list(entry.sizes)) for entry in entries]
    assert given == expected
