"""Bytes of metadata, and what a test asks of its reader."""

import io
import pickle
import struct
from typing import Any

import pytest
from hypothesis import strategies as st

from shmserve.metadata import DEPTH_LIMIT, METADATA_LIMIT, Leaf, MetadataError, dump, load

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
