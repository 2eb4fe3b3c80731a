"""Metadata of a malicious sender: both readers refuse each operation, length, key, leaf and spelling that no writer makes."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import pickletools
import sys
from pathlib import Path

import numpy as np
import pytest

from shmserve.metadata import METADATA_LIMIT, MetadataError, load
from tests.support.metadata_bytes import CODE, PROTO, REFUSED, VALID, alone, leaf, long_text, refusal_of, text

# Operations that no tree needs.

ALLOWED = {"NONE", "LONG1", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "MARK"}
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


@pytest.mark.fault("T31", "T32", "T41")
@pytest.mark.parametrize("code", range(256))
def test_an_operation_that_begins_no_value_is_refused_by_name(code: int) -> None:
    name = NAMES.get(code, "no operation")
    message = refusal_of(alone(b"(" + bytes([code]) + bytes(16)))

    refused = message == f"metadata refused at byte 3 ({name}): no value begins with it"
    assert refused == (name not in ALLOWED | {"TUPLE"})  # which ends the tuple


class MakesAFolder:
    """The pickle of an attacker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.fault("T30")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_when_it_is_loaded_does_not_run_it(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps({"image": MakesAFolder(canary)}, protocol)
    pickle.loads(data)
    assert canary.is_dir()  # or else this test would show nothing
    canary.rmdir()

    refusal_of(data)
    refusal_of(PROTO + data[2:])
    refusal_of(PROTO + data[11:])  # behind its frame

    assert not canary.exists()


@pytest.mark.fault("T35", "T39")
@pytest.mark.parametrize("case", CODE)
def test_an_operation_that_runs_code_or_takes_memory_is_refused_before_it_does(case: str) -> None:
    refusal_of(alone(CODE[case]))
    refusal_of(alone(b"](" + CODE[case] + b"e"))
    refusal_of(alone(b"}(" + text("key") + CODE[case] + b"u"))
    if case != "BININT1":  # a key
        refusal_of(alone(b"}(" + CODE[case] + b"Nu"))

    assert "antigravity" not in sys.modules


PICKLED_BY_OTHERS: dict[str, object] = {
    "an array": np.zeros(3),
    "an array of objects": np.array([None, 1], dtype=object),
    "a structured dtype": np.dtype([("a", "<f4")]),
    "a numpy scalar": np.float32(1),
    "a date": datetime.datetime(2020, 1, 1),
    "a set": {1},
    "an OrderedDict": collections.OrderedDict(a=1),
    "a class": Path,
    "a function": os.system,
    "an exception": ValueError("x"),
    "a list": [1],
    "a dict": {"a": None},
}


@pytest.mark.fault("T33")
@pytest.mark.parametrize("case", PICKLED_BY_OTHERS)
def test_a_general_pickle_is_refused(case: str) -> None:
    refusal_of(pickle.dumps(PICKLED_BY_OTHERS[case], 5))


# Lengths, keys, leaves, and other spellings of valid trees.


@pytest.mark.fault("T34", "T37", "T38", "T40", "T42")
@pytest.mark.parametrize("case", REFUSED)
def test_bytes_that_no_writer_makes_are_refused_with_the_reason(case: str) -> None:
    data, reason = REFUSED[case]

    assert reason in refusal_of(data)


@pytest.mark.fault("T40")
def test_a_memoryview_is_measured_in_bytes_whatever_its_items() -> None:
    view = memoryview(bytearray(METADATA_LIMIT + 8)).cast("Q")
    assert len(view) < METADATA_LIMIT

    with pytest.raises(MetadataError, match="65544 bytes, the limit is 65536"):
        load(view)


def test_only_the_beginning_of_a_foreign_text_is_in_the_message() -> None:
    message = refusal_of(alone(b"}(" + 2 * (long_text(b"k" * 1000) + b"N") + b"u"))

    assert "k" * 40 in message
    assert "k" * 65 not in message


@pytest.mark.fault("T46")
def test_control_characters_of_a_foreign_text_are_escaped() -> None:
    assert r"\x1b[31m\n" in refusal_of(alone(leaf(kind=text("\x1b[31m\n"))))
    assert r"\u202e" in refusal_of(alone(leaf(dtype=text("\u202e"))))


def test_refused_bytes_are_near_valid_ones() -> None:
    assert load(VALID)
    assert load(alone(leaf()))
    assert load(alone(b"}(" + text("key") + b"Nu")) == {"key": None}
