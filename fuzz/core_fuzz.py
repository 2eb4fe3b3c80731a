"""Command that fuzzes the core in C by itself, with gcc's checks of addresses and undefined behaviour.

    python -m fuzz.core_fuzz [--inputs 10000000] [--random 0]

It compiles fuzz/core_fuzz.c with native/core/schema.c and utf8.c: several hundred thousand inputs a second, without an interpreter.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fuzz.observations import TREES
from shmserve.flatten import flatten
from shmserve.metadata import Leaf, dump

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined")
_STRICT = "-fno-sanitize-recover=undefined"
#: Trees with a key of every form, many keys, long integers and a deep nesting, beside those of real robots.
FORMS: list[Any] = [
    {key: {"a": [1.5], "b": (None, "t", b"x", True)} for key in (0, 255, 256, 65535, 65536, -1, 1 << 40, -(1 << 62))},
    {"k" * 300: {str(number): number for number in range(40)}},
    [1 << 70, -(1 << 100), {"deep": [[[[[[[()]]]]]]]}],
]


def run(inputs: int, random: int = 0) -> str:
    """Return what the program prints; raises CalledProcessError, with its errors printed, for a finding."""
    with tempfile.TemporaryDirectory(prefix="shmserve-fuzz-") as scratch:
        program, seeds = Path(scratch, "core_fuzz"), Path(scratch, "seeds")
        core = (str(ROOT / f"native/core/{name}.c") for name in ("schema", "utf8"))
        sources = [str(ROOT / "fuzz/core_fuzz.c"), *core]
        command = ["gcc", *_FLAGS, _STRICT, f"-I{ROOT / 'native'}", *sources, "-o", str(program)]
        subprocess.run(command, check=True)
        metadata = [flatten(tree, "tree").metadata for tree in (*TREES, *FORMS)]
        metadata.append(dump({"image": Leaf("device", "|u1", 3), "state": Leaf("array", "<f4", 1)}))
        seeds.write_bytes(b"".join(struct.pack("=I", len(each)) + each for each in metadata))
        arguments = [str(program), str(seeds), str(inputs), str(random)]
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--random", type=int, default=0, help="another number, other inputs")
    given = parser.parse_args()
    print(run(given.inputs, given.random))
    return 0


if __name__ == "__main__":
    sys.exit(main())
