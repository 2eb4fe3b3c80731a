"""Metadata from a sender who means harm: MetadataError comes of it, in little time and memory, and nothing else."""

import collections
import contextlib
import datetime
import gc
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.metadata import DEPTH_LIMIT, METADATA_LIMIT, OPERATION_LIMIT, Leaf, MetadataError, dump, load

PROTO = b"\x80\x05"
VALID = dump(
    {
        "observation": {"image": Leaf("array", "|u1", (480, 640, 3)), "state": [Leaf("array", "<f4", (14,)), None]},
        "task": Leaf("str", "|u1", (12,)),
        "rates": (0.5, 70000, -1, 2**40, True, b"\x00\xff", ()),
        "time": Leaf("float", "<f8", ()),
    }
)


def uint4(number: int) -> bytes:
    return struct.pack("<I", number)


def text(value: str) -> bytes:
    return b"X" + uint4(len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    width = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return b"\x8a" + bytes([width]) + value.to_bytes(width, "little", signed=True)


def framed(body: bytes, length: int | None = None) -> bytes:
    return PROTO + b"\x95" + struct.pack("<Q", len(body) if length is None else length) + body


def leaf(
    index: bytes = b"K\x00", kind: bytes = text("array"), dtype: bytes = text("<f4"), shape: bytes = b")"
) -> bytes:
    """The operations of one persistent id, any part of which may be replaced."""
    return b"(" + index + kind + dtype + shape + b"tQ"


def alone(operations: bytes) -> bytes:
    return PROTO + operations + b"."


def shape(*lengths: int) -> bytes:
    return b"(" + b"".join(map(integer, lengths)) + b"t"


def refusal_of(data: bytes) -> str:
    """The message of the refusal; that it is fit for a log is part of every test that asks for one."""
    with pytest.raises(MetadataError) as caught:
        load(data)

    message = str(caught.value)
    assert message.startswith("metadata refused")
    assert message.isprintable()
    assert len(message) < 300
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # which would hold the data
    return message


class StandardUnpickler(pickle.Unpickler):
    def persistent_load(self, persistent_id: Any) -> object:
        return Leaf(*persistent_id[1:])


def assert_sound(data: bytes, tree: object, leaves: list[Leaf]) -> None:
    """What `load` promises of its result: a tree without recursion or sharing, and the one that pickle would make."""
    seen: set[int] = set()
    found = []
    waiting: list[tuple[Any, int]] = [(tree, 0)]
    while waiting:
        value, depth = waiting.pop()
        assert type(value) in (dict, list, tuple, str, bytes, int, float, bool, type(None), Leaf)
        assert depth <= DEPTH_LIMIT
        if type(value) in (dict, list, Leaf) or (type(value) is tuple and value):
            assert id(value) not in seen
            seen.add(id(value))
        if type(value) is Leaf:
            found.append(value)
        elif type(value) is dict:
            assert all(type(key) is str for key in value)
            waiting += [(child, depth + 1) for child in reversed(value.values())]
        elif type(value) in (list, tuple):
            waiting += [(child, depth + 1) for child in reversed(value)]
    assert len(found) == len(leaves)
    assert all(one is other for one, other in zip(found, leaves, strict=True))
    assert repr(StandardUnpickler(io.BytesIO(data)).load()) == repr(tree)


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


CODE = {
    "GLOBAL and REDUCE": b"cos\nsystem\n" + text("touch canary") + b"\x85R",
    "GLOBAL of what would be imported": b"cantigravity\nfly\n",
    "GLOBAL of a dotted name": b"cshmserve.metadata\npickle.io.os.system\n",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text("touch canary") + b"\x85R",
    "STACK_GLOBAL of a homograph": text("\u043es") + text("system") + b"\x93",
    "INST": b"(" + text("touch canary") + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text("touch canary") + b"o",
    "NEWOBJ": b"cos\nsystem\n" + text("touch canary") + b"\x85\x81",
    "NEWOBJ_EX": b"cos\nsystem\n" + text("touch canary") + b"\x85}\x92",
    "REDUCE of what is not there": b")R",
    "BUILD of a dict": b"}}b",
    "BUILD of a function's defaults": b"cnumpy._core.numeric\n_frombuffer\n}b",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "DUP": b"]2a",
    "POP": b"N0",
    "POP_MARK": b"N(1",
    "GET": text("a") + b"\x94g0\n",
    "PUT": b"Np0\n",
    "BINPUT": b"Nq\x00",
    "LONG_BINPUT far out": b"Nr\xff\xff\xff\x07",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"C\x00\x98",
    "BINBYTES8 of a tebibyte": b"\x8e" + struct.pack("<Q", 2**40),
    "BYTEARRAY8 of a tebibyte": b"\x96" + struct.pack("<Q", 2**40),
    "BINUNICODE8 of a tebibyte": b"\x8d" + struct.pack("<Q", 2**40),
    "LONG4": b"\x8b" + uint4(60000) + b"\xff" * 60000,
    "LONG": b"L" + b"9" * 60000 + b"L\n",
    "INT": b"I" + b"9" * 60000 + b"\n",
    "FLOAT": b"F1e999\n",
    "STRING": b"S'a'\n",
    "BINSTRING": b"T\x01\0\0\0a",
    "SHORT_BINSTRING": b"U\x01a",
    "UNICODE": b"Va\n",
    "EMPTY_SET": b"\x8f",
    "FROZENSET": b"(\x91",
    "DICT": b"(d",
    "LIST": b"(l",
    "PROTO again": b"\x80\x05N",
    "FRAME further on": b"N\x95" + struct.pack("<Q", 1),
}


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


# Sizes that are not as they say.

LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "does not begin with PROTO 5"),
    "no PROTO": (b"N.", "does not begin with PROTO 5"),
    "protocol 4": (b"\x80\x04N.", "does not begin with PROTO 5"),
    "protocol 6": (b"\x80\x06N.", "does not begin with PROTO 5"),
    "PROTO alone": (PROTO, "does not end with STOP"),
    "no STOP": (PROTO + b"N", "does not end with STOP"),
    "STOP alone": (PROTO + b".", "something else than one tree"),
    "two trees": (alone(b"NN"), "something else than one tree"),
    "a MARK left": (alone(b"N("), "something else than one tree"),
    "a tree above a MARK": (alone(b"(N"), "something else than one tree"),
    "STOP twice": (alone(b"N."), "1 bytes follow"),
    "bytes behind STOP": (alone(b"N.abc"), "4 bytes follow"),
    "a frame too short": (framed(b"N.", 1), "frame"),
    "a frame too long": (framed(b"N.", 3), "frame"),
    "an endless frame": (framed(b"N.", 2**63), "frame"),
    "an empty frame": (framed(b"", 0), "does not end with STOP"),
    "a frame cut short": (PROTO + b"\x95\0\0.", "frame"),
    "two frames": (framed(framed(b"N.")[2:]), "not an operation"),
    "a str beyond the end": (alone(b"\x8c\x05ab"), "cut short"),
    "a str that takes STOP": (alone(b"\x8c\x01"), "cut short"),
    "a str of 4 GiB": (alone(b"X\xff\xff\xff\xffab"), "cut short"),
    "bytes of 4 GiB": (alone(b"B\xff\xff\xff\xffab"), "cut short"),
    "a length cut short": (alone(b"X\x00\x00"), "cut short"),
    "a short length cut short": (alone(b"C"), "cut short"),
    "an int cut short": (alone(b"J\0\0"), "cut short"),
    "a small int cut short": (alone(b"K"), "cut short"),
    "a float cut short": (alone(b"G\0\0\0\0\0\0\0"), "cut short"),
    "a BINGET cut short": (alone(b"\x8c\x00\x94h"), "cut short"),
    "a LONG_BINGET cut short": (alone(b"\x8c\x00\x94j\0\0\0"), "cut short"),
    "an int of 17 bytes": (alone(b"\x8a\x11" + bytes(17)), "17 bytes, the limit is 16"),
    "an int of 255 bytes": (alone(b"\x8a\xff" + b"\x7f" * 255), "255 bytes, the limit is 16"),
    "too long": (alone(b"B" + uint4(METADATA_LIMIT) + bytes(METADATA_LIMIT)), "the limit is 65536"),
}


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


# Depth, number and repetition.


@pytest.mark.fault("T36")
@pytest.mark.parametrize("depth", [DEPTH_LIMIT + 1, 100, 1000, 4000])
@pytest.mark.parametrize(
    ("down", "up"),
    [(b"]", b"a"), (b"", b"\x85"), (b"(", b"t"), (b"](", b"e"), (b"}\x8c\x00", b"s"), (b"}(\x8c\x00", b"u")],
    ids=["APPEND", "TUPLE1", "TUPLE", "APPENDS", "SETITEM", "SETITEMS"],
)
def test_deep_nesting_is_refused(down: bytes, up: bytes, depth: int) -> None:
    message = refusal_of(alone(down * depth + b"N" + up * depth))

    assert "within more than 32 containers" in message or "the last of 4096 operations" in message


@pytest.mark.parametrize("depth", [10**4, 6 * 10**4, 10**5])
@pytest.mark.parametrize("step", [b"(", b"]", b"}", b")", b"\x85"], ids=["MARK", "list", "dict", "tuple", "TUPLE1"])
def test_the_operations_end_before_any_depth_is_a_danger(step: bytes, depth: int) -> None:
    assert "4096 operations" in (message := refusal_of(alone(b"N" + step * depth))) or "limit is 65536" in message


@pytest.mark.fault("T36")
def test_deep_nesting_is_refused_in_a_thread_with_a_small_stack() -> None:
    refusals: list[str] = []
    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(target=lambda: refusals.append(refusal_of(alone(b"N" + b"\x85" * 4000))))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()

    assert "within more than 32 containers" in refusals[0]


def test_operations_are_counted_from_PROTO_to_STOP() -> None:
    most = OPERATION_LIMIT - 6

    assert load(framed(b"](" + b"N" * most + b"e.")) == ([None] * most, [])
    assert "last of 4096 operations" in refusal_of(framed(b"](" + b"N" * (most + 1) + b"e."))
    assert load(alone(b"](" + b"N" * (most + 1) + b"e")) == ([None] * (most + 1), [])


@pytest.mark.fault("T39")
def test_a_string_cannot_be_multiplied_through_the_memo() -> None:
    """64 KiB would become 240 MiB as soon as anybody wrote the tree out."""
    data = alone(b"](" + text("ha" * 25000) + b"\x94" + b"h\x00" * 4000 + b"e")
    assert len(data) < METADATA_LIMIT

    assert "out of the memo, the limit is 65536" in refusal_of(data)


# Damage.


@pytest.mark.parametrize("data", [VALID, PROTO + VALID[11:]], ids=["framed", "unframed"])
def test_metadata_cut_short_anywhere_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        refusal_of(data[:length])


def test_any_byte_more_is_refused() -> None:
    for byte in range(256):
        refusal_of(VALID + bytes([byte]))
        refusal_of(PROTO + VALID[11:] + bytes([byte]))


def test_any_byte_changed_gives_a_sound_tree_or_a_refusal() -> None:
    sound = 0
    for position in range(len(VALID)):
        for byte in range(256):
            damaged = VALID[:position] + bytes([byte]) + VALID[position + 1 :]
            try:
                tree, leaves = load(damaged)
            except MetadataError:
                continue
            assert_sound(damaged, tree, leaves)
            again = dump(tree)
            assert dump(load(again)[0]) == again
            sound += 1

    assert sound > len(VALID)  # each position was once left as it was


def test_bytes_swapped_lost_and_repeated_give_a_sound_tree_or_a_refusal() -> None:
    chance = random.Random(20240229)
    start = PROTO + VALID[11:]
    sound = 0
    for _ in range(20_000):
        damaged = bytearray(start)
        for _ in range(chance.randint(1, 4)):
            here, there = sorted(chance.sample(range(2, len(damaged)), 2))
            match chance.randrange(4):
                case 0:
                    damaged[here], damaged[there] = damaged[there], damaged[here]
                case 1:
                    del damaged[here : min(there, here + 12)]
                case 2:
                    damaged[here:here] = damaged[here : min(there, here + 40)]
                case _:
                    damaged[here] = chance.choice(b"(]})tQuesa\x85\x86\x87\x8cKN\x94h.")
        try:
            tree, leaves = load(bytes(damaged))
        except MetadataError:
            continue
        assert_sound(bytes(damaged), tree, leaves)
        sound += 1

    assert sound > 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_give_a_sound_tree_or_a_refusal(data: bytes, with_head: bool) -> None:
    data = alone(data) if with_head else data
    try:
        tree, leaves = load(data)
    except MetadataError:
        return
    assert_sound(data, tree, leaves)


def operations() -> st.SearchStrategy[bytes]:
    """Streams of operations that are on the list, with arguments that mostly fit."""
    short = st.text(max_size=3).map(text)
    return st.lists(
        st.one_of(
            st.sampled_from(
                [b"(", b"(", b"t", b")", b"\x85", b"\x86", b"\x87", b"]", b"a", b"e", b"}", b"s", b"u", b"Q"]
            ),
            st.sampled_from([b"N", b"\x88", b"\x89", b"\x94", b"h\x00", b"j\x01\0\0\0", b"K\x00", b"M\x01\x00"]),
            st.sampled_from([leaf(), leaf(b"K\x01"), leaf(b"K\x02"), b"]Na", b"}" + text("a") + b"Ns", b"(NNt"]),
            short,
            st.integers(-(2**127), 2**127 - 1).map(integer),
            st.tuples(st.sampled_from([b"K", b"G", b"X", b"C", b"\x8a"]), st.binary(max_size=9)).map(b"".join),
        ),
        max_size=40,
    ).map(b"".join)


@settings(deadline=None, max_examples=400)
@given(operations(), st.sampled_from([b"", b"t", b"\x85", b"\x86"]), st.booleans())
def test_operations_in_any_order_give_a_sound_tree_or_a_refusal(stream: bytes, close: bytes, with_frame: bool) -> None:
    stream = (b"(" if close == b"t" else b"") + stream + close + b"."
    data = framed(stream) if with_frame else PROTO + stream
    try:
        tree, leaves = load(data)
    except MetadataError:
        return
    assert_sound(data, tree, leaves)


# Time and memory.


COSTLY = {
    "text of 1 byte": text("a" * 65000),
    "text of 4 bytes for one emoji": text("a" * 65000 + "🤖"),
    "bytes": b"B" + uint4(65000) + bytes(65000),
    "lists": b"](" + b"]" * 4088 + b"e",
    "lists of one": b"](" + b"]Na" * 1362 + b"e",
    "dicts": b"](" + b"}" * 4088 + b"e",
    "dicts of one": text("a") + b"\x94](" + b"}h\x00Ns" * 1021 + b"e\x86",
    "tuples of one": b"](" + b"N\x85" * 2044 + b"e",
    "wide ints": b"](" + integer(2**126) * 3600 + b"e",
    "floats": b"](" + (b"G" + bytes(8)) * 4088 + b"e",
    "long keys": b"}(" + b"".join(text(f"{index:01000}") + b"N" for index in range(60)) + b"u",
    "many keys": b"}(" + b"".join(text(f"{index}") + b"N" for index in range(2044)) + b"u",
    "items one by one": b"}" + b"".join(text(f"{index}") + b"Ns" for index in range(1363)),
    "the memo": b"](" + text("a" * 1000) + b"\x94" * 4000 + b"h\x00" * 60 + b"e",
    "leaves": b"](" + b"".join(leaf(struct.pack("<cH", b"M", index), shape=b")") for index in range(583)) + b"e",
    "dimensions": b"]("
    + b"".join(leaf(struct.pack("<cH", b"M", index), shape=shape(*[1] * 16)) for index in range(165))
    + b"e",
}
WASTED = {
    "marks": b"(" * 4090,
    "lists left": b"]" * 4090,
    "dicts left": b"}" * 4090,
    "deep tuples": b"N" + b"\x85" * 4090,
    "deep lists": b"]" * 2045 + b"a" * 2044,
    "deep dicts": b"}\x8c\x00" * 1300 + b"N" + b"s" * 1300,
    "a huge shape": leaf(shape=shape(*[2**126] * 16)),
    "strings out of the memo": b"](" + text("ha" * 25000) + b"\x94" + b"h\x00" * 4000 + b"e",
}


@pytest.mark.fault("T40")
@pytest.mark.parametrize("case", [*COSTLY, *WASTED])
def test_any_metadata_costs_its_reader_less_than_a_mebibyte(case: str) -> None:
    data = alone(COSTLY.get(case) or WASTED[case])
    assert len(data) <= METADATA_LIMIT
    if case in WASTED:
        refusal_of(data)
    else:
        load(data)  # it is the most that can be had, not something refused early on

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with contextlib.suppress(MetadataError):
            load(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - before < 2**20


def test_refusals_leave_nothing_behind() -> None:
    hostile = [alone(data) for data in [*CODE.values(), *WASTED.values()]] + [data for data, _ in LIES.values()]

    def refuse_all() -> None:
        for data in hostile:
            with contextlib.suppress(MetadataError):
                load(data)

    refuse_all()
    tracemalloc.start()
    try:
        refuse_all()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            refuse_all()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 16 * 1024
