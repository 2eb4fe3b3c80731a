"""Bytes of metadata, valid and hostile, and both readers of them."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import strategies as st

from shmserve.metadata import DTYPES, METADATA_LIMIT, Leaf, MetadataError, dump, load
from shmserve.metadata_leaf import KINDS
from shmserve.pure import tree_decoder as pure
from tests.support.native import NATIVE, core

PROTO = b"\x80\x05"
native_only = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

# Parts.


def alone(operations: bytes) -> bytes:
    return PROTO + operations + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else long_text(data)


def long_text(data: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """The operation of an int that always has room, whatever the canonical one is."""
    width = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return b"\x8a" + bytes([width]) + value.to_bytes(width, "little", signed=True)


def leaf(
    kind: bytes = text("array"), dtype: bytes = text("<f4"), dimensions: bytes = b"K\x00", end: bytes = b"\x87Q"
) -> bytes:
    """The operations of one leaf, any part of which may be replaced."""
    return kind + dtype + dimensions + end


def dict_of(*entries: bytes) -> bytes:
    return b"}(" + b"".join(entries) + b"u"


def list_of(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


#: Each operation of the grammar, and each width of a key.
VALID = dump(
    {
        "image": Leaf("array", "|u1", 3),
        "é" * 150: ([Leaf("list", "<f8", 1), None], (), [], {}),
        7: Leaf("str", "|u1", 1),
        700: 2**100,
        70000: -(2**63) - 1,
        -(2**40): Leaf("bool", "<i8", 0),
    }
)

# Readers.


def refusal_of(data: bytes) -> str:
    """Return the message of the refusal by both readers, which must be fit for a log."""
    with pytest.raises(MetadataError) as caught:
        load(data)
    with pytest.raises(ValueError):
        pure.TreeDecoder(data)
    assert not is_taken_by_native_reader(data)

    message = str(caught.value)
    assert message.startswith("metadata refused")
    assert message.isprintable()
    assert len(message) < 300
    assert caught.value.__cause__ is None  # which would hold the data
    return message


def is_taken_by_native_reader(data: bytes) -> bool:
    try:
        return NATIVE and core.TreeDecoder(data) is not None
    except ValueError:
        return False


def is_sound(data: bytes) -> bool:
    """Read bytes with both readers: False if both refuse them. Metadata that is taken has one meaning and one form."""
    try:
        tree = load(data)
    except MetadataError:
        assert not is_taken_by_native_reader(data)
        return False
    assert dump(tree) == data
    assert repr(StandardUnpickler(io.BytesIO(data)).load()) == repr(tree)
    in_python = pure.TreeDecoder(data)
    if not NATIVE:
        return True
    native = core.TreeDecoder(data)
    assert native.is_complete == in_python.is_complete
    if native.is_complete:
        payload_bytes = in_python.payload_bytes([0] * in_python.sizes_count)
        payload = np.zeros(payload_bytes, np.uint8)
        assert repr(native.decode(payload, payload_bytes)) == repr(in_python.decode(payload, payload_bytes))
    return True


class StandardUnpickler(pickle.Unpickler):
    """Any other reader of the same bytes."""

    def persistent_load(self, persistent_id: Any) -> object:
        return Leaf(*persistent_id)

    def find_class(self, module: str, name: str) -> NoReturn:
        raise AssertionError(f"metadata names {module}.{name}")


# Refused bytes.

#: Operations that run code, fill memory or name things, and what a pickler writes for values that have no place here.
CODE = {
    "GLOBAL and REDUCE": b"cos\nsystem\n" + text("touch canary") + b"\x85R",
    "GLOBAL that would be imported": b"cantigravity\nfly\n",
    "GLOBAL of a dotted name": b"cshmserve.metadata\npickle.io.os.system\n",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text("touch canary") + b"\x85R",
    "STACK_GLOBAL of a homograph": text("\u043es") + text("system") + b"\x93",
    "INST": b"(" + text("touch canary") + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text("touch canary") + b"o",
    "NEWOBJ": b"cos\nsystem\n" + text("touch canary") + b"\x85\x81",
    "NEWOBJ_EX": b"cos\nsystem\n" + text("touch canary") + b"\x85}\x92",
    "REDUCE of nothing": b")R",
    "BUILD of a dict": b"}}b",
    "BUILD of a function's defaults": b"cnumpy._core.numeric\n_frombuffer\n}b",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "DUP": b"](2e",
    "POP": b"N0",
    "POP_MARK": b"N(1",
    "GET": text("a") + b"\x94g0\n",
    "PUT": b"Np0\n",
    "BINPUT": b"Nq\x00",
    "LONG_BINPUT far away": b"Nr\xff\xff\xff\x07",
    "MEMOIZE": b"N\x94",
    "BINGET": b"h\x00",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"C\x00\x98",
    "BINBYTES8 of a tebibyte": b"\x8e" + struct.pack("<Q", 2**40),
    "BYTEARRAY8 of a tebibyte": b"\x96" + struct.pack("<Q", 2**40),
    "BINUNICODE8 of a tebibyte": b"\x8d" + struct.pack("<Q", 2**40),
    "SHORT_BINBYTES": b"C\x01a",
    "LONG4": b"\x8b" + struct.pack("<I", 60000) + b"\xff" * 60000,
    "LONG": b"L" + b"9" * 60000 + b"L\n",
    "INT": b"I" + b"9" * 60000 + b"\n",
    "BININT1": b"K\x01",
    "BINFLOAT": b"G" + bytes(8),
    "FLOAT": b"F1e999\n",
    "NEWTRUE": b"\x88",
    "STRING": b"S'a'\n",
    "BINSTRING": b"T\x01\0\0\0a",
    "SHORT_BINSTRING": b"U\x01a",
    "UNICODE": b"Va\n",
    "EMPTY_SET": b"\x8f",
    "FROZENSET": b"(\x91",
    "DICT": b"(d",
    "LIST": b"(l",
    "EMPTY_TUPLE": b")",
    "TUPLE1": b"N\x85",
    "APPEND": b"]Na",
    "SETITEM": b"}" + text("a") + b"Ns",
    "PROTO again": PROTO + b"N",
    "FRAME": b"\x95" + struct.pack("<Q", 2) + b"N",
}

#: Bytes whose lengths or ends do not hold, and a part of the refusal.
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "does not begin with PROTO 5"),
    "no PROTO": (b"N.", "does not begin with PROTO 5"),
    "protocol 4": (b"\x80\x04N.", "does not begin with PROTO 5"),
    "protocol 6": (b"\x80\x06N.", "does not begin with PROTO 5"),
    "half a PROTO": (b"\x80", "does not begin with PROTO 5"),
    "PROTO alone": (PROTO, "ends before its tree does"),
    "no STOP": (PROTO + b"N", "ends before its tree does"),
    "STOP alone": (PROTO + b".", "no value begins with it"),
    "two trees": (alone(b"NN"), "expected STOP"),
    "a MARK left": (alone(b"N("), "expected STOP"),
    "a container without an end": (alone(b"](N"), "no value begins with it"),
    "an end without a container": (alone(b"Ne"), "expected STOP"),
    "the end of another container": (alone(b"](Nt"), "no value begins with it"),
    "a tuple that ends as a list": (alone(b"(Ne"), "no value begins with it"),
    "a dict that ends as a list": (alone(b"}(e"), "a key is a str or an int"),
    "a list without a MARK": (alone(b"]"), "expected MARK"),
    "a dict without a MARK": (alone(b"}u"), "expected MARK"),
    "a key without a value": (alone(dict_of(text("a"))), "no value begins with it"),
    "STOP twice": (alone(b"N."), "1 bytes follow"),
    "bytes behind STOP": (alone(b"N.abc"), "4 bytes follow"),
    "a key beyond the end": (alone(b"}(\x8c\x05ab"), "cut short"),
    "a key of 4 GiB": (alone(b"}(X\xff\xff\xff\xffab"), "a key of 4294967295 bytes, the limit is 1024"),
    "a length cut short": (alone(b"}(X\x00\x00"), "cut short"),
    "an int cut short": (PROTO + b"}(J\0\0", "cut short"),
    "a small int cut short": (PROTO + b"}(K", "cut short"),
    "a long int cut short": (PROTO + b"\x8a\x09\0", "cut short"),
    "a long int without a length": (PROTO + b"\x8a", "cut short"),
    "a kind cut short": (PROTO + b"\x8c\x05ar", "cut short"),
    "a leaf without an end": (PROTO + leaf(end=b""), "cut short"),
    "an int of 17 bytes": (alone(b"\x8a\x11" + bytes(17)), "17 bytes, the limit is 16"),
    "an int of 255 bytes": (alone(b"\x8a\xff" + b"\x7f" * 255), "255 bytes, the limit is 16"),
    "too long": (alone(list_of(b"N" * METADATA_LIMIT)), "the limit is 65536"),
}

_SHORTEST = "not in its shortest form"
#: Another spelling of a valid tree: each tree has one form, because the bytes stand for the structure.
NOT_CANONICAL: dict[str, tuple[bytes, str]] = {
    "short text as a long one": (alone(dict_of(long_text(b"a"), b"N")), _SHORTEST),
    "text of 255 bytes as a long one": (alone(dict_of(long_text(b"a" * 255), b"N")), _SHORTEST),
    "an empty text as a long one": (alone(dict_of(long_text(b""), b"N")), _SHORTEST),
    "7 in two bytes": (alone(dict_of(b"M\x07\0", b"N")), _SHORTEST),
    "255 in two bytes": (alone(dict_of(b"M\xff\0", b"N")), _SHORTEST),
    "7 in four bytes": (alone(dict_of(b"J\x07\0\0\0", b"N")), _SHORTEST),
    "65535 in four bytes": (alone(dict_of(b"J\xff\xff\0\0", b"N")), _SHORTEST),
    "7 as a long": (alone(dict_of(integer(7), b"N")), _SHORTEST),
    "0 as a long of no bytes": (alone(dict_of(b"\x8a\0", b"N")), _SHORTEST),
    "2**31 - 1 as a long": (alone(dict_of(integer(2**31 - 1), b"N")), _SHORTEST),
    "-2**31 as a long": (alone(dict_of(integer(-(2**31)), b"N")), _SHORTEST),
    "2**40 in eight bytes": (alone(dict_of(b"\x8a\x08" + (2**40).to_bytes(8, "little"), b"N")), _SHORTEST),
    "-2**40 in eight bytes": (
        alone(dict_of(b"\x8a\x08" + (-(2**40)).to_bytes(8, "little", signed=True), b"N")),
        _SHORTEST,
    ),
    "a value of 64 bits": (alone(integer(2**63 - 1)), "an int of 64 bits lies in the payload"),
    "a negative value of 64 bits": (alone(integer(-(2**63))), "an int of 64 bits lies in the payload"),
    "a value of no bytes": (alone(b"\x8a\0"), "an int of 64 bits lies in the payload"),
    "a small value in nine bytes": (alone(b"\x8a\x09\x07" + bytes(8)), "an int of 64 bits lies in the payload"),
    "2**64 in ten bytes": (alone(b"\x8a\x0a" + (2**64).to_bytes(10, "little")), "a longer one has its shortest form"),
    "-2**64 in ten bytes": (
        alone(b"\x8a\x0a" + (-(2**64)).to_bytes(10, "little", signed=True)),
        "a longer one has its shortest form",
    ),
    "a kind as a long text": (alone(leaf(kind=long_text(b"array"))), "no value begins with it"),
    "a dtype as a long text": (alone(leaf(dtype=long_text(b"<f4"))), "a leaf is (kind, dtype, dimensions)"),
    "dimensions in two bytes": (alone(leaf(dimensions=b"M\x01\0")), "a leaf is (kind, dtype, dimensions)"),
    "a leaf behind a MARK": (alone(b"(" + leaf(end=b"tQ")), "ends with TUPLE3 and BINPERSID"),
    "items in two lots": (alone(b"](Ne(Ne"), "expected STOP"),
}

_KEY = "a key is a str or an int"
KEYS: dict[str, tuple[bytes, str]] = {
    "None": (dict_of(b"N", b"N"), _KEY),
    "a bool": (dict_of(b"\x88", b"N"), _KEY),
    "a float": (dict_of(b"G" + bytes(8), b"N"), _KEY),
    "bytes": (dict_of(b"C\x01a", b"N"), _KEY),
    "a tuple": (dict_of(b"(t", b"N"), _KEY),
    "a leaf": (dict_of(leaf(), b"N"), "a leaf is (kind, dtype, dimensions)"),
    "2**63": (dict_of(integer(2**63), b"N"), "an int of 9 bytes, the limit is 8"),
    "-2**63 - 1": (dict_of(integer(-(2**63) - 1), b"N"), "an int of 9 bytes, the limit is 8"),
    "1,025 bytes": (dict_of(long_text(b"a" * 1025), b"N"), "a key of 1025 bytes, the limit is 1024"),
    "not UTF-8": (dict_of(b"\x8c\x02\xff\xfe", b"N"), "not UTF-8"),
    "a long one that is not UTF-8": (dict_of(long_text(b"\xff" * 300), b"N"), "not UTF-8"),
    "a surrogate": (dict_of(b"\x8c\x03\xed\xa0\x80", b"N"), "not UTF-8"),
    "NUL in two bytes": (dict_of(b"\x8c\x02\xc0\x80", b"N"), "not UTF-8"),
    "half a character": (dict_of(b"\x8c\x01\xc3", b"N"), "not UTF-8"),
    "a text twice": (dict_of(text("a"), b"N", text("b"), b"N", text("a"), b"N"), "the key 'a' is there twice"),
    "an empty text twice": (dict_of(text(""), b"N", text(""), b"N"), "the key '' is there twice"),
    "an int twice": (dict_of(b"K\x07", b"N", b"K\x07", b"N"), "the key 7 is there twice"),
    "an int of 64 bits twice": (
        dict_of(integer(-(2**63)), list_of(b"N"), integer(-(2**63)), b"N"),
        "the key -9223372036854775808 is there twice",
    ),
    "the last of many texts twice": (
        dict_of(*(text(f"{index}") + list_of(b"NN") for index in range(999)), text("998"), b"N"),
        "the key '998' is there twice",
    ),
    "the first of many ints twice": (
        dict_of(*(b"K" + bytes([index]) + b"N" for index in range(256)), b"K\x00", b"N"),
        "the key 0 is there twice",
    ),
}

_SHAPE = "a leaf is (kind, dtype, dimensions)"
LEAVES: dict[str, tuple[bytes, str]] = {
    "kind alone": (text("array"), _SHAPE),
    "without dimensions": (text("array") + text("<f4") + b"\x86Q", _SHAPE),
    "with a length": (leaf(dimensions=b"K\x01K\x07"), "ends with TUPLE3 and BINPERSID"),
    "not a persistent id": (leaf(end=b"\x87"), "ends with TUPLE3 and BINPERSID"),
    "kind unknown": (leaf(kind=text("tensor")), "kind cannot be 'tensor'"),
    "kind empty": (leaf(kind=text("")), "kind cannot be ''"),
    "kind with a NUL": (leaf(kind=text("array\0")), "kind cannot be 'array\\x00'"),
    "kind cut": (leaf(kind=text("arra")), "kind cannot be 'arra'"),
    "kind not UTF-8": (leaf(kind=b"\x8c\x05\xff\xff\xff\xff\xff"), "kind cannot be"),
    "dtype unknown": (leaf(dtype=text("|O")), "cannot be '|O'"),
    "dtype of the other byte order": (leaf(dtype=text(">f4")), "cannot be '>f4'"),
    "dtype that numpy would take": (leaf(dtype=text("float32")), "cannot be 'float32'"),
    "dtype structured": (leaf(dtype=text("i4,O")), "cannot be 'i4,O'"),
    "dtype of a date": (leaf(dtype=text("<M8[s]")), "cannot be '<M8[s]'"),
    "dtype of text": (leaf(dtype=text("<U8")), "cannot be '<U8'"),
    "dtype None": (leaf(dtype=b"N"), _SHAPE),
    "int of float": (leaf(kind=text("int"), dtype=text("<f8")), "cannot be '<f8'"),
    "float of int": (leaf(kind=text("float"), dtype=text("<i8")), "cannot be '<i8'"),
    "bool of 1 byte": (leaf(kind=text("bool"), dtype=text("|b1")), "cannot be '|b1'"),
    "str of floats": (leaf(kind=text("str"), dimensions=b"K\x01"), "cannot be '<f4'"),
    "list of int32": (leaf(kind=text("list"), dtype=text("<i4"), dimensions=b"K\x01"), "cannot be '<i4'"),
    "scalar of one dimension": (leaf(kind=text("scalar"), dimensions=b"K\x01"), "has 0 dimensions, not 1"),
    "str without a length": (leaf(kind=text("str"), dtype=text("|u1")), "has 1 dimensions, not 0"),
    "bytes of two dimensions": (
        leaf(kind=text("bytes"), dtype=text("|u1"), dimensions=b"K\x02"),
        "has 1 dimensions, not 2",
    ),
    "17 dimensions": (leaf(dimensions=b"K\x11"), "at most 16 dimensions, not 17"),
    "255 dimensions": (leaf(dimensions=b"K\xff"), "at most 16 dimensions, not 255"),
}

#: The largest valid metadata of each sort.
COSTLY = {
    "lists": list_of(*[b"](e"] * 4095),
    "lists of one": list_of(*[b"](Ne"] * 2047),
    "dicts": list_of(*[b"}(u"] * 4095),
    "dicts of one": list_of(*[b"}(\x8c\x00Nu"] * 2047),
    "tuples": list_of(*[b"(t"] * 4095),
    "wide ints": list_of(*[integer(2**126)] * 3600),
    "long keys": dict_of(*(text(f"{index:01000}") + b"N" for index in range(60))),
    "many keys": dict_of(*(text(f"{index}") + b"N" for index in range(4095))),
    "integer keys": dict_of(*(integer((index + 1) << 33) + b"N" for index in range(4095))),
    "leaves": list_of(*[leaf()] * 3800),
    "dimensions": list_of(*[leaf(dimensions=b"K\x10")] * 3800),
    "nests": list_of(*[b"](" * 30 + b"N" + b"e" * 30] * 132),
}
#: Long, and refused only near the end.
WASTED = {
    "open tuples": b"(" * 60000,
    "open lists": b"](" * 30000,
    "open dicts": b"}(\x8c\x00" * 15000,
    "too many values": list_of(*[b"N"] * 4096),
    "too many tuples": list_of(*[b"(t"] * 4096),
    "the last key twice": dict_of(*(text(f"{index:03}") + b"N" for index in range(4095)), text("4094"), b"N"),
    "leaves that are not": list_of(*[leaf()] * 3000, leaf(kind=text("k" * 255))),
}
REFUSED = {**LIES, **NOT_CANONICAL} | {
    f"{group} {name}": (alone(data), reason)
    for group, cases in (("key", KEYS), ("leaf", LEAVES))
    for name, (data, reason) in cases.items()
}


# Generated trees and bytes.


def leaves() -> st.SearchStrategy[Leaf]:
    def of_kind(kind: str) -> st.SearchStrategy[Leaf]:
        dtypes, dimensions = KINDS[kind]
        counts = st.integers(0, 16) if dimensions is None else st.just(dimensions)
        return st.builds(Leaf, st.just(kind), st.sampled_from(sorted(dtypes)), counts)

    assert {dtype for dtypes, _ in KINDS.values() for dtype in dtypes} == set(DTYPES)
    return st.sampled_from(sorted(KINDS)).flatmap(of_kind)


_edges = [
    edge + step for power in (0, 7, 8, 15, 16, 31, 32, 63) for edge in (2**power, -(2**power)) for step in (-1, 0, 1)
]
keys = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["k" * 255, "k" * 256, "é" * 150]),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([edge for edge in _edges if -(2**63) <= edge < 2**63]),
)
longs = st.integers(2**63, 2**127 - 1) | st.integers(-(2**127), -(2**63) - 1)


def trees() -> st.SearchStrategy[Any]:
    return st.recursive(
        st.one_of(st.none(), longs, leaves()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=6),
            st.lists(inner, max_size=6).map(tuple),
            st.dictionaries(keys, inner, max_size=6),
        ),
        max_leaves=15,
    )


def operations() -> st.SearchStrategy[bytes]:
    """Streams of operations of the grammar, with arguments that mostly fit."""
    pieces = st.one_of(
        st.sampled_from([b"(", b"t", b"](", b"e", b"}(", b"u", b"N", b"\x87Q", b"K\x01", b"M\x00\x01", b"}(K\x07Nu"]),
        st.sampled_from([leaf(), leaf(text("str"), text("|u1"), b"K\x01"), list_of(b"N"), b"(t", b"J\xff\xff\xff\xff"]),
        st.text(max_size=3).map(text),
        st.integers(-(2**127), 2**127 - 1).map(integer),
        st.tuples(st.sampled_from([b"K", b"X", b"\x8c", b"\x8a"]), st.binary(max_size=9)).map(b"".join),
    )
    return st.lists(pieces, max_size=40).map(b"".join)
