"""The file of a recording: what any tool reads of it, and files that are cut off, damaged or hostile."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.recordings import Recording, RecordingError, RecordingTruncated
from shmserve.client.recordings.comparison import Comparison
from shmserve.client.recordings.recording import RecordingWriter, RequestFacts
from shmserve.client.recordings.tree import from_json, leaf_as_it_is, to_json
from shmserve.codec import Encoder, SlotMemory, read_tree
from shmserve.schema import Schema

OBSERVATION: dict[str, Any] = {
    "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "task": "fold",
    "pose": (1, 2.5, None),
}
ACTION = {"actions": np.linspace(0, 1, 7, dtype=np.float32)}


def facts(number: int, **changed: Any) -> RequestFacts:
    plain: dict[str, Any] = {"client": 0, "lease": 1, "sequence": number, "kind": "infer", "status": "ok", "at_s": 0.5}
    plain |= {"model_version": "0" * 16, "queued_us": 1.0, "staged_us": 2.0, "infer_us": 3.0, "copied_us": 4.0}
    return RequestFacts(number=number, **{**plain, "error": None, **changed})


def write(file: Path, count: int = 3, **changed: Any) -> Path:
    with RecordingWriter(file) as writer:
        writer.begin({"service": "arm", "model": None})
        for number in range(1, count + 1):
            writer.add(facts(number, **changed), OBSERVATION, ACTION)
        writer.end({"ended": "count"})
    return file


def test_a_recording_that_was_cut_off_anywhere_says_so_and_gives_what_is_whole(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.rec").read_bytes()
    cut = tmp_path / "cut.rec"

    found = set()
    for size in range(0, len(whole) - 1024 - 512, 97):  # to where the end begins
        cut.write_bytes(whole[:size])
        with pytest.raises(RecordingTruncated):
            Recording(cut)
        try:
            with Recording(cut, partial=True) as recording:
                requests = list(recording)
        except RecordingTruncated:
            assert size < 1024 + 512, "without its beginning there is nothing to read"
            continue
        found.add(len(requests))
        assert all(np.array_equal(request.observation["image"], OBSERVATION["image"]) for request in requests)

    assert found == {0, 1, 2, 3}


def test_damage_anywhere_is_a_typed_error_or_other_numbers(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.rec").read_bytes()
    dice = random.Random(7)
    damaged = tmp_path / "damaged.rec"

    refused = 0
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(dice.choice((1, 1, 4, 64))):
            changed[dice.randrange(len(changed) - 1024)] = dice.randrange(256)
        damaged.write_bytes(changed)
        try:
            with Recording(damaged) as recording:
                list(recording)
        except RecordingError as error:
            assert str(damaged) in str(error)
            refused += 1
    assert refused > 100


def _replaced(whole: Path, place: str, content: bytes, **attributes: Any) -> bytes:
    """The recording with one member exchanged, as an attacker would write it."""
    out = io.BytesIO()
    with tarfile.open(whole) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as target:
        for member in source:
            stream = source.extractfile(member)
            assert stream is not None
            data = stream.read()
            if member.name == place:
                data = content
                for key, value in attributes.items():
                    setattr(member, key, value)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _safetensors(**metadata: Any) -> bytes:
    header = json.dumps({"__metadata__": {key: json.dumps(value) for key, value in metadata.items()}}).encode()
    return len(header).to_bytes(8, "little") + header


_REQUEST = "requests/00000002.safetensors"
_FACTS = facts(2).__dict__

HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "an empty file": lambda whole: b"",
    "no tar": lambda whole: b"PK\3\4" * 1000,
    "a pickle": lambda whole: b"\x80\x05cos\nsystem\n" * 100,
    "a link": lambda whole: _replaced(whole, _REQUEST, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a path that leads away": lambda whole: _replaced(whole, _REQUEST, b"", name="../../etc/passwd"),
    "a header longer than the file": lambda whole: _replaced(whole, _REQUEST, b"\xff" * 8),
    "no safetensors": lambda whole: _replaced(whole, _REQUEST, b"12345678 what is this"),
    "no metadata": lambda whole: _replaced(whole, _REQUEST, b"\2" + bytes(7) + b"{}"),
    "JSON without an end": lambda whole: _replaced(whole, "recording.json", b'{"format": ['),
    "deep JSON": lambda whole: _replaced(whole, "recording.json", b"[" * 500_000),
    "a later format": lambda whole: _replaced(whole, "recording.json", b'{"format": 2}'),
    "a count that lies": lambda whole: _replaced(whole, "end.json", b'{"requests": 99}'),
    "an unknown tag": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request=_FACTS, observation={"$pickle": "gASV"}, action=None)
    ),
    "a tensor that is not there": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request=_FACTS, observation={"$array": "nowhere"}, action=None)
    ),
    "facts of another kind": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request={**_FACTS, "infer_us": "fast"}, observation=None, action=None)
    ),
    "facts of another age": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request={**_FACTS, "at_s": 1e300}, observation=None, action=None)
    ),
    "facts without a number": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request={**_FACTS, "infer_us": float("nan")}, observation=None, action=None)
    ),
    "facts with one too many": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request={**_FACTS, "run": "rm"}, observation=None, action=None)
    ),
    "another's number": lambda whole: _replaced(
        whole, _REQUEST, _safetensors(request={**_FACTS, "number": 1}, observation=None, action=None)
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.rec"
    file.write_bytes(HOSTILE[case](write(tmp_path / "a.rec")))

    with pytest.raises(RecordingError) as raised, Recording(file) as recording:
        list(recording)

    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        {"$array": "x", "dtype": "bfloat16"},
        {"$array": "x", "dtype": "object"},
        {"$array": "x", "y": 1},
        {"$array": ["x"]},
        {"$array": "c", "dtype": "complex64"},
        {"$list": "x"},
        {"$tuple": {"a": 1}},
        {"$float": "1.5"},
        {"$float": None},
        {"$bytes": "not base64!"},
        {"$dict": [1]},
        {"$scalar": 5},
        {"$items": {"1": 2}},
        {"$items": [[1, 2, 3]]},
        {"$items": [[1]]},
        {"$items": [[1.5, 2]]},
        {"$items": [[True, 2]]},
        {"$items": [[[1], 2]]},
        {"$items": [[None, 2]]},
    ],
)
def test_a_tree_that_was_never_taken_apart_is_refused(value: Any) -> None:
    with pytest.raises(RecordingError):
        from_json(value, {"x": np.zeros((2, 2)), "c": np.zeros((2, 3), np.float32)})


_TREES: list[Any] = [
    {1: "a", -(1 << 63): 2, (1 << 63) - 1: None},
    {1: np.ones(2), "1": np.zeros(2), "[1]": np.full(2, 2.0), 2: {1: np.full(2, 3.0)}},
    [{0: [1]}, {"0": (True,)}],
    {"$items": 1, "$dict": {2: "$list"}, 3: {"$array": b"x"}},
    {"a": [1], "b": [1.5], "c": [True], "d": [], "e": [-(1 << 63)], "f": [[1], [2.5]], "g": list(range(20))},
    {"nan": [1.0, float("inf")], "big": [1 << 70], "text": ["", "$float"]},
]


@pytest.mark.parametrize("tree", _TREES, ids=lambda tree: str(tree)[:40])
def test_integer_keys_and_short_lists_come_back_as_they_were(tree: Any, tmp_path: Path) -> None:
    slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(8192, np.uint8))
    encoded = Encoder().encode(tree, slot)
    schema = Schema(slot.metadata[: encoded.metadata_bytes].tobytes())
    recorded = read_tree(schema, slot.payload, encoded.payload_bytes, leaf_as_it_is)

    file = tmp_path / "keys.rec"
    with RecordingWriter(file) as writer:
        writer.begin({"service": "arm", "model": None})
        writer.add(facts(1), recorded, recorded)
        writer.end({"ended": "count"})
    with Recording(file) as recording:
        (request,) = recording

    for found in (request.observation, request.action):
        np.testing.assert_equal(found, tree)
        assert typed(found) == typed(tree)


def typed(value: Any) -> Any:
    """The types within a tree, its keys in their order included."""
    if isinstance(value, dict):
        return [(type(key), key, typed(item)) for key, item in value.items()]
    return [type(value), *map(typed, value)] if isinstance(value, (list, tuple)) else type(value)


def test_bfloat16_comes_back_with_its_own_dtype_where_that_is_known() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)

    value, tensors = to_json({"a": array}, "observation")

    assert tensors["observation.a"].dtype == np.uint16
    np.testing.assert_array_equal(from_json(value, tensors)["a"], array)


@pytest.mark.parametrize(
    ("recorded", "now", "differs", "said"),
    [
        ([1.0, np.nan], [1.0, np.nan], False, None),
        ([1.0, np.inf], [1.0, 5.0], True, "NaN or infinity on one side"),
        ([1.0], [1.0 + 5e-5], False, None),
        ([1.0], [1.1], True, None),
        (np.zeros(3, np.float32), np.zeros(4, np.float32), True, "float32[3] -> float32[4]"),
        (np.zeros(3, np.float32), np.zeros(3, np.float64), True, "float32[3] -> float64[3]"),
        (np.array([1, 2]), np.array([1, 3]), True, None),
        (True, False, True, None),
        ("left", "right", True, "'left' -> 'right'"),
        (1 << 80, (1 << 80) + 1, True, f"{1 << 80} -> {(1 << 80) + 1}"),
        (None, None, False, None),
    ],
)
def test_two_answers_are_compared_by_value(recorded: Any, now: Any, differs: bool, said: str | None) -> None:
    comparison = Comparison(atol=1e-4, rtol=0)

    comparison.add(4, {"a": recorded, "gone": 1}, {"a": now, "gone": 1})

    found = comparison.fields["a"]
    assert (comparison.differ, found.differ, found.first, found.what) == (
        differs,
        differs,
        4 if differs else None,
        said,
    )


def test_a_field_on_one_side_only_differs() -> None:
    comparison = Comparison(atol=1, rtol=1)

    comparison.add(1, {"a": 1.0}, {"b": 1.0})

    assert {name: found.what for name, found in comparison.fields.items()} == {
        "a": "absent now",
        "b": "absent in the recording",
    }
