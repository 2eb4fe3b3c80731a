"""Command that fuzzes the readers of libshmserve: C and Python accept and refuse the same metadata and the same replies.

    python -m fuzz.lib_fuzz [--inputs 1000000] [--random 0]

It compiles fuzz/lib_fuzz.c with native/lib/ and native/core/ and gcc's checks of addresses and undefined behaviour.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fuzz.core_fuzz import FORMS
from fuzz.mutation import Mutator
from fuzz.observations import TREES
from shmserve.flatten import flatten
from shmserve.metadata import Leaf, MetadataError, dump
from shmserve.tree_reader import TreeReader
from shmserve.varlink import MESSAGE_LIMIT, VarlinkProtocolError, decode_reply, encode_error, encode_reply

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-fsanitize=address,undefined")
_STRICT = "-fno-sanitize-recover=undefined"
_BATCH = 20_000
_NAMES = {"requests": "/a-1", "replies": "/b_2", "request_bell": "/c", "reply_bell": "/d"}
_INFO: list[dict[str, Any]] = [
    {"identity": {"epoch": (1 << 64) - 1, "channel": 0, "generation": 3}, "names": names} for names in (_NAMES, None)
]
_REPLIES = [
    *(encode_reply({"channel_info": info, "trusted": True, "state": "ready"})[:-1] for info in _INFO),
    encode_reply({"deep": [[[{"a": [1.5e10, -2, 0.0, "\u00e9\U0001f916", None, True]}]]]}, continues=True)[:-1],
    encode_error("io.shmserve.Client.Refused", {"reason": "too_large", "needed_bytes": None, "retry_after_s": 1.25})[
        :-1
    ],
    b'{"parameters":{"text":"\\ud83e\\udd16\\u0000\\n","a":-9223372036854775808,"b":18446744073709551615}}',
    b' {"error" : null , "parameters" : null , "continues" : false } ',
    b'{"parameters":{"n":' + b"[" * 29 + b"]" * 29 + b"}}",
]
_WORDS = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"false", b"NaN", b"-", b"1e400", b"1e-400"),
    *(
        b"\\u",
        b"\\ud800",
        b"\\udc00",
        b"\xed\xa0\x80",
        b"\xc3\xa9",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\xff",
        b" ",
        b"\t",
    ),
    *(b"18446744073709551616", b"-9223372036854775809", b"00", b"0.", b"0.5", b'"error":"' + b"x" * 257 + b'",'),
]
_OPERATIONS = [
    b"\x80\x05",
    b".",
    b"N",
    b"\x8a",
    b"\x8c",
    b"X",
    b"K",
    b"M",
    b"J",
    b"\x87Q",
    b"}(",
    b"u",
    b"](",
    b"e",
    b"(",
    b"t",
]


def _python_accepts(kind: bytes, data: bytes) -> bool:
    try:
        if kind == b"m":
            return not TreeReader(data).has_device  # the library reads no GPU memory
        decode_reply(data)
    except (MetadataError, VarlinkProtocolError):
        return False
    return True


def _compiled(folder: Path) -> Path:
    program = folder / "lib_fuzz"
    sources = [
        ROOT / "fuzz/lib_fuzz.c",
        *sorted((ROOT / "native/core").glob("*.c")),
        *sorted((ROOT / "native/lib").glob("*.c")),
    ]
    command = [
        "gcc",
        *_FLAGS,
        _STRICT,
        f"-I{ROOT / 'native'}",
        *map(str, sources),
        "-o",
        str(program),
        "-lm",
        "-pthread",
    ]
    subprocess.run(command, check=True)
    return program


def run(inputs: int, random: int = 0) -> tuple[int, int]:
    """Return how many inputs were tried and how many accepted; raises AssertionError for one on which the two disagree."""
    metadata = [flatten(tree, "tree").metadata for tree in (*TREES, *FORMS)]
    metadata.append(dump({"image": Leaf("device", "|u1", 3), "state": Leaf("array", "<f4", 1)}))
    sources = {b"m": Mutator(random, metadata, _OPERATIONS), b"j": Mutator(random + 1, _REPLIES, _WORDS)}
    tried = accepted = 0
    with tempfile.TemporaryDirectory(prefix="shmserve-fuzz-") as scratch:
        program = _compiled(Path(scratch))
        while tried < inputs:
            batch = [
                (kind, source.next())
                for _ in range(min(_BATCH, inputs - tried) // 2 or 1)
                for kind, source in sources.items()
            ]
            batch = [(kind, data) for kind, data in batch if len(data) < MESSAGE_LIMIT]
            sent = b"".join(kind + struct.pack("=I", len(data)) + data for kind, data in batch)
            said = subprocess.run([program], input=sent, stdout=subprocess.PIPE, check=True).stdout
            assert len(said) == len(batch)
            for (kind, data), verdict in zip(batch, said, strict=True):
                assert _python_accepts(kind, data) == (verdict == ord("1")), f"C says {verdict - 48}: {kind!r} {data!r}"
            tried += len(batch)
            accepted += said.count(b"1")
    return tried, accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--random", type=int, default=0, help="another number, other inputs")
    given = parser.parse_args()
    tried, accepted = run(given.inputs, given.random)
    print(f"{tried} inputs, {accepted} accepted by both")
    return 0


if __name__ == "__main__":
    sys.exit(main())
