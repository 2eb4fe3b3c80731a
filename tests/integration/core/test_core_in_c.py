"""The core in C without Python: it is compiled alone, and a C program with nothing else speaks the wire."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from shmserve.layout import COUNTER_LINE, COUNTER_OFFSET, HEADER, REPLY, REQUEST, Geometry, header_bytes, sequence_of
from shmserve.protocol import MAGIC, WIRE_VERSION, Kind, Status
from tests.support.native import NATIVE, core

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "native/core").glob("*.c"))
STRICT = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-pedantic", "-Werror")
GEOMETRY = Geometry(slots=3, metadata_bytes=64, payload_bytes=100_000)
SEQUENCE = sequence_of(5, 2)
#: Each word is another number, so that a wrong place shows.
REQUEST_WORDS = (SEQUENCE, Kind.RESET, *range(102, 102 + len(REQUEST.names) - 2))
REPLY_WORDS = (SEQUENCE, Status.STALE, *range(202, 202 + REPLY.names.index("taken") - 2))

Step = Callable[..., list[str]]


class Target(NamedTuple):
    """A way to compile and run the core."""

    compiler: str
    flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()

    def compile(self, *arguments: str | Path) -> None:
        """Run the compiler without the variables that could name more paths; a warning is an error."""
        command = [self.compiler, *STRICT, *self.flags, *map(str, arguments)]
        subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})

    def require(self) -> None:
        for name in (self.compiler, *self.runner[:1]):
            if shutil.which(name) is None:
                pytest.skip(f"no {name} here (apt-get install gcc, gcc-aarch64-linux-gnu, qemu-user)")


TARGETS = {
    "native": Target("gcc"),
    "sanitized": Target("gcc", ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")),
    # User-mode emulation: it shows that the core is right there, not that its order is.
    "aarch64": Target("aarch64-linux-gnu-gcc", ("-static",), ("qemu-aarch64",)),
}


@pytest.fixture(scope="module", params=list(TARGETS.values()), ids=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    found.require()
    return found


@pytest.fixture(scope="module")
def objects(target: Target, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The core's object files, compiled without a path to Python's headers and without a warning."""
    folder = tmp_path_factory.mktemp("objects")
    for source in SOURCES:
        target.compile("-c", source, "-o", folder / f"{source.stem}.o")
    return sorted(folder.glob("*.o"))


@pytest.fixture(scope="module")
def program(target: Target, objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("program") / "core_program"
    source = Path(__file__).with_name("core_program.c")
    target.compile("-I", ROOT / "native", source, *objects, "-o", found)
    return found


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A segment as the supervisor makes it."""
    path = tmp_path / "segment"
    path.write_bytes(header_bytes(GEOMETRY, epoch=7, generation=8, channel=9).ljust(GEOMETRY.segment_bytes, b"\0"))
    return path


@pytest.fixture
def step(target: Target, program: Path, segment: Path) -> Step:
    def run(name: str, sequence: int = SEQUENCE, *words: int) -> list[str]:
        arguments = [*target.runner, str(program), name, str(segment), *(str(int(word)) for word in (sequence, *words))]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()

    return run


def words_at(segment: Path, offset: int, count: int) -> list[int]:
    data = segment.read_bytes()[offset : offset + 8 * count]
    return [int.from_bytes(data[at : at + 8], sys.byteorder) for at in range(0, 8 * count, 8)]


def write_words(segment: Path, offset: int, *words: int) -> None:
    with segment.open("r+b") as file:
        file.seek(offset)
        file.write(b"".join(int(word).to_bytes(8, sys.byteorder) for word in words))


def test_no_object_of_the_core_names_python(objects: list[Path]) -> None:
    listed = subprocess.run(["nm", "--undefined-only", *objects], capture_output=True, text=True, check=True).stdout
    undefined = set(re.findall(r"U (\w+)", listed))

    assert len(objects) == len(SOURCES) > 3
    assert "clock_gettime" in undefined
    assert [name for name in undefined if re.match("_?Py", name)] == []


def test_the_program_reads_the_header(step: Step) -> None:
    identity = [MAGIC, WIRE_VERSION, 7, 8, 9, GEOMETRY.slots, GEOMETRY.metadata_bytes, GEOMETRY.payload_bytes]

    assert step("identity") == [str(word) for word in identity]
    assert len(identity) == len(HEADER.names)


def test_a_request_lies_where_the_layout_says(step: Step, segment: Path) -> None:
    step("publish", SEQUENCE, *REQUEST_WORDS)

    counter, _, _, processor, *hints = words_at(segment, COUNTER_OFFSET, len(COUNTER_LINE.names))
    assert words_at(segment, GEOMETRY.slot_offset(2), len(REQUEST.names)) == list(REQUEST_WORDS)
    assert counter == SEQUENCE
    assert 1 <= processor <= (os.cpu_count() or 1)
    assert hints == [0, 0]
    assert step("request") == [str(int(word)) for word in REQUEST_WORDS]
    assert step("wait", SEQUENCE, SEQUENCE) == ["-1"]
    assert step("wait", SEQUENCE, SEQUENCE - 64) == ["0"]


def test_a_request_is_withdrawn_and_kept(step: Step, segment: Path) -> None:
    place = GEOMETRY.slot_offset(2) + REQUEST.offset("cancelled")

    step("cancel")
    assert words_at(segment, place, 1) == [SEQUENCE]
    assert step("cancelled") == ["1"]
    step("keep")
    assert words_at(segment, place, 1) == [0]
    assert step("cancelled") == ["0"]


def test_attempts_are_counted_for_one_sequence(step: Step, segment: Path) -> None:
    assert step("taken") == ["0"]
    assert [step("take"), step("take"), step("taken")] == [["1"], ["2"], ["1"]]
    assert words_at(segment, GEOMETRY.slot_offset(2) + REPLY.offset("taken"), 2) == [SEQUENCE, 2]

    assert step("take", SEQUENCE + 64) == ["1"]
    assert step("taken") == ["0"]


def test_a_reply_lies_where_the_layout_says(step: Step, segment: Path) -> None:
    write_words(segment, COUNTER_OFFSET, 41)
    assert step("reply") == ["none"]

    step("complete", SEQUENCE, *REPLY_WORDS)

    assert words_at(segment, GEOMETRY.slot_offset(2), len(REPLY.names)) == [*REPLY_WORDS, 0, 0]
    assert words_at(segment, COUNTER_OFFSET, 1) == [42]
    assert step("reply") == [str(int(word)) for word in (*REPLY_WORDS, 0, 0)]
    assert step("reply", SEQUENCE + 64) == ["none"]


def test_a_slot_that_the_segment_does_not_have_is_not_touched(step: Step, segment: Path) -> None:
    before = segment.read_bytes()

    assert step("publish", sequence_of(5, 3), *REQUEST_WORDS) == ["no", "such", "slot"]

    assert segment.read_bytes() == before


def test_an_announced_write_is_copied_as_far_as_it_is_written(step: Step, segment: Path) -> None:
    (write_id,) = map(int, step("announce", SEQUENCE, 3, 70_000))

    assert write_id == sequence_of(1, 2)
    assert words_at(segment, COUNTER_OFFSET + COUNTER_LINE.offset("write_id"), 2) == [write_id, 70_000]
    assert step("copy", SEQUENCE, write_id) == ["70000", str(3 * 70_000)]
    assert step("copy", SEQUENCE, write_id + 64) == ["0", "0"]


@pytest.mark.parametrize("written", [100_001, 1 << 63, (1 << 64) - 1])
def test_a_false_byte_count_copies_no_more_than_the_payload(step: Step, written: int) -> None:
    (write_id,) = map(int, step("announce", SEQUENCE, 1, written))

    assert step("copy", SEQUENCE, write_id) == ["100000", "100000"]


def test_a_false_write_id_copies_nothing(step: Step, segment: Path) -> None:
    write_words(segment, COUNTER_OFFSET + COUNTER_LINE.offset("write_id"), sequence_of(1, 3), 70_000)

    assert step("copy", SEQUENCE, sequence_of(1, 3)) == ["0", "0"]


def test_a_python_without_the_interpreter_lock_is_refused_by_name(tmp_path: Path) -> None:
    # The headers of a free-threaded Python define this name; with it the module refuses before it uses anything else.
    flags = {**os.environ, "CC": "gcc", "CFLAGS": "-DPy_GIL_DISABLED=1"}
    flags.pop("SHMSERVE_PURE", None)
    TARGETS["native"].require()
    places = ["--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "objects")]
    setup = [sys.executable, "setup.py", "--quiet", "build_ext", *places]
    subprocess.run(setup, cwd=ROOT, env=flags, check=True, capture_output=True)
    (library,) = tmp_path.glob(f"*/_core{sysconfig.get_config_var('EXT_SUFFIX')}")

    code = f"import sys; sys.path.insert(0, {str(library.parent)!r}); import _core"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.returncode == 1
    assert "ImportError: shmserve._core relies on the global interpreter lock" in ran.stderr


def test_the_extension_is_built_with_the_protections_of_a_library_that_reads_foreign_memory() -> None:
    if not NATIVE:
        pytest.skip("installed without a compiler")

    def read(*options: str) -> str:
        return subprocess.run(["readelf", *options, core.__file__], capture_output=True, text=True, check=True).stdout

    assert "GNU_RELRO" in read("--program-headers", "--wide")
    assert re.search(r"FLAGS.*NOW", read("--dynamic"))
    symbols = read("--dyn-syms", "--wide")
    assert "__stack_chk_fail" in symbols
    assert re.findall(r"(?:FUNC|OBJECT) +GLOBAL +DEFAULT +\d+ (\w+)", symbols) == ["PyInit__core"]
