"""Hostile metadata in a process under limits of memory and time."""

import pickle
import struct
import subprocess
import sys

from hypothesis import strategies as st

from shmserve.metadata import METADATA_LIMIT

PROTO = b"\x80\x05"


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
    "APPEND to a leaf": (leaf() + b"Na", r"appends to shmserve.metadata.Leaf"),
    "SETITEM of a list": (b"]K\x00Ns", "sets items of list"),
    "SETITEMS of a leaf": (leaf() + b"(" + text("shape") + b"Nu", "sets items of shmserve.metadata.Leaf"),
    "SETITEMS of an odd number": (b"}(" + text("a") + b"u", "key without a value"),
    "BINGET of an empty memo": (b"h\x00", "number 0 of a memo of 0"),
    "LONG_BINGET far out": (text("a") + b"\x94j\xff\xff\xff\xff", "number 4294967295 of a memo of 1"),
    "MEMOIZE of a list": (b"]\x94", "not for list"),
    "MEMOIZE of a dict": (b"}\x94", "not for dict"),
    "MEMOIZE of a tuple": (b")\x94", "not for tuple"),
    "MEMOIZE of bytes": (b"C\x00\x94", "not for bytes"),
    "MEMOIZE of a leaf": (leaf() + b"\x94", "not for shmserve.metadata.Leaf"),
    "a list that holds itself": (b"]\x94h\x00a", "not for list"),
    "a str that is not UTF-8": (b"\x8c\x02\xff\xfe", "not UTF-8"),
    "a surrogate": (b"\x8c\x03\xed\xa0\x80", "not UTF-8"),
    "a NUL in two bytes": (b"\x8c\x02\xc0\x80", "not UTF-8"),
}


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
    "dtype a leaf": (leaf(b"K\x01", dtype=leaf()), "cannot be a shmserve.metadata.Leaf"),
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


CHILD = """
import pickle, resource, sys
from shmserve.metadata import MetadataError, load

streams = pickle.load(sys.stdin.buffer)
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + 8 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
outcomes = []
for data in streams:
    if data == b"hoard":
        hoard = bytes(32 * 2**20)
    try:
        load(data)
        outcomes.append("tree")
    except MetadataError:
        outcomes.append("refused")
print(*outcomes)
"""


def in_a_limited_child(streams: list[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Loads each with 8 MiB of address space to spare, and 20 seconds of processor time for all."""
    return subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps(streams), capture_output=True, timeout=100, check=False
    )


def test_all_that_is_hostile_is_refused_within_8_MiB_of_address_space_and_in_bounded_time() -> None:
    refused = [alone(data) for data in [*CODE.values(), *WASTED.values()]]
    refused += [data for data, _ in LIES.values()]
    refused += [alone(data) for data, _ in [*STACKS.values(), *LEAVES.values()]]
    taken = [alone(data) for data in COSTLY.values()]

    child = in_a_limited_child((refused + taken) * 20)

    assert child.returncode == 0, child.stderr.decode()
    assert child.stdout.decode().split() == (["refused"] * len(refused) + ["tree"] * len(taken)) * 20


def test_the_child_cannot_have_more_memory_than_it_is_allowed() -> None:
    child = in_a_limited_child([b"hoard"])

    assert b"MemoryError" in child.stderr
    assert child.returncode == 1
