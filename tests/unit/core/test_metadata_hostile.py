"""Metadata of a malicious sender: a MetadataError for each operation, length, stack, key and leaf that no writer makes."""

import collections
import datetime
import os
import pickle
import pickletools
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from shmserve.metadata import METADATA_LIMIT, Leaf, MetadataError, load
from tests.support.metadata_bytes import (
    CODE,
    LIES,
    PROTO,
    alone,
    framed,
    integer,
    leaf,
    refusal_of,
    shape,
    text,
)

# Operations that no tree needs.

# fmt: off
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPERSID",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
}
# fmt: on
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


@pytest.mark.fault("T31", "T32", "T41")
@pytest.mark.parametrize("code", range(256))
def test_an_operation_that_is_not_on_the_list_is_refused_by_name(code: int) -> None:
    name = NAMES.get(code, "no operation")
    message = refusal_of(alone(b"((}](NN" + bytes([code]) + bytes(16)))

    refused = message == f"metadata refused at byte 9 ({name}): not an operation of the safe form"
    assert refused == (name not in ALLOWED - {"PROTO", "FRAME"})  # which are operations at the head only


class MakesAFolder:
    """What an attacker's pickle looks like."""

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

    assert not canary.exists()


@pytest.mark.fault("T35")
@pytest.mark.parametrize("case", CODE)
def test_an_operation_that_runs_code_or_takes_memory_is_refused_before_it_does(case: str) -> None:
    assert "not an operation of the safe form" in refusal_of(alone(CODE[case]))
    assert "not an operation of the safe form" in refusal_of(framed(CODE[case] + b"."))
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
}


@pytest.mark.fault("T33")
@pytest.mark.parametrize("case", PICKLED_BY_OTHERS)
def test_a_general_pickle_is_refused(case: str) -> None:
    message = refusal_of(pickle.dumps(PICKLED_BY_OTHERS[case], 5))

    assert "not an operation of the safe form" in message or "the memo is for str" in message


@pytest.mark.fault("T38", "T40")
@pytest.mark.parametrize("case", LIES)
def test_a_length_that_does_not_hold_is_refused(case: str) -> None:
    data, reason = LIES[case]

    assert reason in refusal_of(data)


def test_a_memoryview_is_measured_in_bytes_whatever_its_items() -> None:
    view = memoryview(bytearray(METADATA_LIMIT + 8)).cast("Q")
    assert len(view) < METADATA_LIMIT

    with pytest.raises(MetadataError, match="65544 bytes, the limit is 65536"):
        load(view)


# A stack that does not hold what an operation takes.

STACKS: dict[str, tuple[bytes, str]] = {
    "a tuple of 1 of nothing": (b"\x85", "takes more"),
    "a tuple of 2 of one": (b"N\x86", "takes more"),
    "a tuple of 3 of two": (b"NN\x87", "takes more"),
    "a tuple across a MARK": (b"N(N\x86", "takes more"),
    "TUPLE without a MARK": (b"Nt", "takes more"),
    "APPENDS without a MARK": (b"]Ne", "takes more"),
    "SETITEMS without a MARK": (b"}NNu", "takes more"),
    "APPEND to nothing": (b"Na", "takes more"),
    "APPEND of nothing": (b"a", "takes more"),
    "APPENDS to nothing": (b"(Ne", "takes more"),
    "SETITEM of nothing": (b"s", "takes more"),
    "SETITEM of a key alone": (b"}s", "takes more"),
    "SETITEM to nothing": (text("a") + b"Ns", "takes more"),
    "SETITEMS to nothing": (b"(" + text("a") + b"Nu", "takes more"),
    "BINPERSID of nothing": (b"Q", "takes more"),
    "BINPERSID across a MARK": (b")(Q", "takes more"),
    "MEMOIZE of nothing": (b"\x94", "takes more"),
    "APPEND to a dict": (b"}Na", "appends to dict"),
    "APPENDS to a tuple": (b")(Ne", "appends to tuple"),
    "APPENDS to a str": (text("a") + b"(Ne", "appends to str"),
    "APPEND to a leaf": (leaf() + b"Na", r"appends to shmserve.metadata_leaf.Leaf"),
    "SETITEM of a list": (b"]K\x00Ns", "sets items of list"),
    "SETITEMS of a leaf": (leaf() + b"(" + text("shape") + b"Nu", "sets items of shmserve.metadata_leaf.Leaf"),
    "SETITEMS of an odd number": (b"}(" + text("a") + b"u", "key without a value"),
    "BINGET of an empty memo": (b"h\x00", "number 0 of a memo of 0"),
    "LONG_BINGET far out": (text("a") + b"\x94j\xff\xff\xff\xff", "number 4294967295 of a memo of 1"),
    "MEMOIZE of a list": (b"]\x94", "not for list"),
    "MEMOIZE of a dict": (b"}\x94", "not for dict"),
    "MEMOIZE of a tuple": (b")\x94", "not for tuple"),
    "MEMOIZE of bytes": (b"C\x00\x94", "not for bytes"),
    "MEMOIZE of a leaf": (leaf() + b"\x94", "not for shmserve.metadata_leaf.Leaf"),
    "a list that holds itself": (b"]\x94h\x00a", "not for list"),
    "a str that is not UTF-8": (b"\x8c\x02\xff\xfe", "not UTF-8"),
    "a surrogate": (b"\x8c\x03\xed\xa0\x80", "not UTF-8"),
    "a NUL in two bytes": (b"\x8c\x02\xc0\x80", "not UTF-8"),
}


@pytest.mark.parametrize("case", STACKS)
def test_an_operation_without_what_it_takes_is_refused(case: str) -> None:
    operations, reason = STACKS[case]

    assert reason in refusal_of(alone(operations))


# Keys.


@pytest.mark.fault("T37")
@pytest.mark.parametrize(
    "key",
    [
        b"N",
        b"K\x01",
        integer(2**61 - 1),
        b"\x88",
        b"C\x01a",
        b"G" + bytes(8),
        b")",
        b")" + b"\x85" * 3000,
        b"]",
        b"}",
        leaf(),
    ],
    ids=[
        "None",
        "int",
        "int that collides with 0",
        "bool",
        "bytes",
        "float",
        "tuple",
        "deep tuple",
        "list",
        "dict",
        "leaf",
    ],
)
def test_a_key_that_is_not_a_str_is_refused_before_it_is_hashed(key: bytes) -> None:
    assert "a key is a str" in refusal_of(alone(b"}" + key + b"Ns"))
    assert "a key is a str" in refusal_of(alone(b"}(" + text("a") + b"N" + key + b"Nu"))


def test_the_same_key_twice_is_refused() -> None:
    item = text("a") + b"N"

    assert "'a' is there twice" in refusal_of(alone(b"}(" + item + item + b"u"))
    assert "'a' is there twice" in refusal_of(alone(b"}" + item + b"s" + item + b"s"))


def test_a_long_key_is_refused_and_only_its_beginning_told() -> None:
    message = refusal_of(alone(b"}" + text("\x1b[2J" * 2000) + b"Ns"))

    assert "8000 characters, the limit is 1024" in message
    assert "\x1b" not in message
    assert "[2J" in message


# Leaves.

LEAVES: dict[str, tuple[bytes, str]] = {
    "index missing": (b"(" + text("array") + text("<f4") + b")tQ", "tuple of index, kind, dtype and shape"),
    "no tuple": (text("0") + b"Q", "tuple of index, kind, dtype and shape"),
    "a list": (b"](K\x00" + text("array") + text("<f4") + b")eQ", "tuple of index, kind, dtype and shape"),
    "a leaf": (leaf() + b"Q", "tuple of index, kind, dtype and shape"),
    "five parts": (b"(K\x00" + text("array") + text("<f4") + b")NtQ", "tuple of index, kind, dtype and shape"),
    "index 1 first": (leaf(b"K\x01"), "has the index 0, not 1"),
    "index -1": (leaf(b"J\xff\xff\xff\xff"), "has the index 0, not -1"),
    "index False": (leaf(b"\x89"), "has the index 0, not False"),
    "index 0.0": (leaf(b"G" + bytes(8)), "has the index 0, not a float"),
    "index '0'": (leaf(text("0")), "has the index 0, not '0'"),
    "index None": (leaf(b"N"), "has the index 0, not None"),
    "index huge": (leaf(integer(2**126)), "has the index 0, not an int of 127 bits"),
    "index a list": (leaf(b"]"), "has the index 0, not a list"),
    "index 0 twice": (leaf() + leaf() + b"\x86", "has the index 1, not 0"),
    "index 0 and 2": (leaf() + leaf(b"K\x02") + b"\x86", "has the index 1, not 2"),
    "in reverse": (leaf(b"K\x01") + leaf() + b"\x86", "has the index 0, not 1"),
    "kind unknown": (leaf(kind=text("tensor")), "kind cannot be 'tensor'"),
    "kind bytes": (leaf(kind=b"C\x05array"), "kind cannot be a bytes"),
    "kind a list": (leaf(kind=b"]"), "kind cannot be a list"),
    "kind None": (leaf(kind=b"N"), "kind cannot be None"),
    "kind long": (leaf(kind=text("k" * 60000)), "kind cannot be 'kkkk"),
    "dtype a list": (leaf(dtype=b"]"), "cannot be a list"),
    "dtype a tuple": (leaf(dtype=text("a") + text("<f4") + b"\x86\x85"), "cannot be a tuple"),
    "dtype a leaf": (leaf(b"K\x01", dtype=leaf()), "cannot be a shmserve.metadata_leaf.Leaf"),
    "int of float": (leaf(kind=text("int"), dtype=text("<f8")), "cannot be '<f8'"),
    "float of int": (leaf(kind=text("float"), dtype=text("<i8")), "cannot be '<i8'"),
    "bool of 1 byte": (leaf(kind=text("bool"), dtype=text("|b1")), "cannot be '|b1'"),
    "str of floats": (leaf(kind=text("str"), shape=shape(1)), "cannot be '<f4'"),
    "scalar with a shape": (leaf(kind=text("scalar"), shape=shape(1)), "has 0 dimensions, not 1"),
    "str without a shape": (leaf(kind=text("str"), dtype=text("|u1")), "has 1 dimensions, not 0"),
    "bytes in two dimensions": (leaf(kind=text("bytes"), dtype=text("|u1"), shape=shape(2, 2)), "1 dimensions, not 2"),
    "shape a list": (leaf(shape=b"]"), "a tuple of int, not a list"),
    "shape an int": (leaf(shape=b"K\x03"), "a tuple of int, not 3"),
    "shape None": (leaf(shape=b"N"), "a tuple of int, not None"),
    "shape a str": (leaf(shape=text("3")), "a tuple of int, not '3'"),
    "shape of 17": (leaf(shape=shape(*[1] * 17)), "at most 16 dimensions, not 17"),
    "shape of 4000": (leaf(shape=b"(" + b"K\x01" * 4000 + b"t"), "at most 16 dimensions, not 4000"),
    "length -1": (leaf(shape=shape(-1)), "cannot have the length -1"),
    "length -2**127": (leaf(shape=shape(-(2**127))), "cannot have the length an int of 128 bits"),
    "length True": (leaf(shape=b"\x88\x85"), "cannot have the length True"),
    "length 2.0": (leaf(shape=b"G" + struct.pack(">d", 2.0) + b"\x85"), "cannot have the length a float"),
    "length NaN": (leaf(shape=b"G" + struct.pack(">d", float("nan")) + b"\x85"), "cannot have the length a float"),
    "length '2'": (leaf(shape=text("2") + b"\x85"), "cannot have the length '2'"),
    "length None": (leaf(shape=b"N\x85"), "cannot have the length None"),
    "length a tuple": (leaf(shape=b")\x85"), "cannot have the length a tuple"),
    "2**48 bytes": (leaf(shape=shape(2**46)), "smaller than 281474976710656 bytes"),
    "2**127 items": (leaf(shape=shape(2**127 - 1)), "smaller than 281474976710656 bytes"),
    "a product of 0 modulo 2**64": (leaf(shape=shape(2**32, 2**32)), "smaller than 281474976710656 bytes"),
    "a product of 4 modulo 2**64": (leaf(shape=shape(2**62, 2**62, 4)), "smaller than 281474976710656 bytes"),
    "nothing, of a huge shape": (leaf(shape=shape(0, 2**62, 2**62)), "smaller than 281474976710656 bytes"),
    "2**2032 bytes": (leaf(shape=shape(*[2**126] * 16)), "this one has an int of"),
}


@pytest.mark.fault("T06", "T42")
@pytest.mark.parametrize("case", LEAVES)
def test_a_leaf_that_is_not_as_it_should_be_is_refused(case: str) -> None:
    operations, reason = LEAVES[case]

    assert reason in refusal_of(alone(operations))


@pytest.mark.fault("T33", "T34")
@pytest.mark.parametrize(
    "dtype",
    [
        *["|O", "O", "object", "<M8[ns]", "<m8[s]", "|V4", "|V0", "|S5", "|S0", "<U3", "<f16", "<c32", "<f3", "|b2"],
        *["<f4,<i4", "(2,)<f4", "(1000000000,)<f8", ">f4", "=f4", "f4", "float32", "bool", "<F4", " <f4", "<f4\0", ""],
        "\u2039f4",
    ],
)
@pytest.mark.parametrize("kind", ["array", "scalar"])
def test_a_dtype_that_is_not_in_the_table_is_refused(kind: str, dtype: str) -> None:
    assert "the dtype of a leaf" in refusal_of(alone(leaf(kind=text(kind), dtype=text(dtype))))


def test_the_strings_of_leaves_may_come_out_of_the_memo() -> None:
    many = b"".join(leaf(struct.pack("<cH", b"M", index), b"h\x00", b"h\x01") for index in range(500))

    tree, leaves = load(alone(b"](" + text("array") + b"\x94" + text("<f4") + b"\x94" + many + b"e"))

    assert tree == ["array", "<f4", *leaves]
    assert leaves == [Leaf("array", "<f4", ())] * 500
