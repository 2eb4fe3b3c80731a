"""The core between two processes, and the instructions that keep its order on both processors."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from .test_core_in_c import SOURCES, TARGETS, Target

NATIVE = Path(__file__).resolve().parents[3] / "native"


@pytest.mark.parametrize(
    ("name", "requests"),
    [("native", 2_000), ("sanitized", 500), ("aarch64", 300)],
    ids=["native", "sanitized", "aarch64"],
)
def test_two_processes_exchange_whole_requests_and_replies(name: str, requests: int, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.require()
    program = tmp_path / "exchange_program"
    target.compile("-I", NATIVE, Path(__file__).with_name("exchange_program.c"), *SOURCES, "-o", program)
    done = subprocess.run([*target.runner, program, str(requests)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{requests} requests, "), done.stdout


@pytest.mark.parametrize(("name", "rounds"), [("native", 40_000), ("aarch64", 300)], ids=["native", "aarch64"])
def test_of_a_client_that_withdraws_and_an_engine_that_takes_one_sees_the_other(
    name: str, rounds: int, tmp_path: Path
) -> None:
    target = TARGETS[name]
    target.require()
    program = tmp_path / "withdraw_program"
    target.compile("-I", NATIVE, Path(__file__).with_name("withdraw_program.c"), *SOURCES, "-o", program)
    done = subprocess.run([*target.runner, program, str(rounds)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{rounds} requests\n", "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads instructions of x86-64")
@pytest.mark.parametrize("function", ["ring_cancel", "ring_take"])
def test_a_full_fence_stands_behind_the_store_on_x86_64(function: str, tmp_path: Path) -> None:
    TARGETS["native"].require()
    assembly = tmp_path / "ring.s"
    TARGETS["native"].compile("-I", NATIVE, "-S", NATIVE / "core/ring.c", "-o", assembly)
    body = assembly.read_text().partition(f"\n{function}:")[2].partition(".cfi_endproc")[0]

    # Instructions with `lock`, and exchanges with memory, are full fences there, too.
    assert len(re.findall(r"\n\s+(?:mfence|lock|xchg)", body)) == 1


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each function, compiled for aarch64: its instructions with an order, in their order."""
    target: Target = TARGETS["aarch64"]
    target.require()
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        assembly = tmp_path_factory.mktemp("assembly") / f"{source.stem}.s"
        target.compile("-I", NATIVE, "-S", source, "-o", assembly)
        function = ""
        for line in assembly.read_text().splitlines():
            if label := re.fullmatch(r"(\w+):", line):
                function = label[1]
                found[function] = []
            elif instruction := re.match(r"\s+(stlr|ldar|ldapr|dmb\s+\w+)\b", line):
                found[function].append(" ".join(instruction[1].split()).replace("ldapr", "ldar"))
    return found


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("ring_publish", ["stlr"]),
        ("ring_copy_request", ["dmb ishld"]),
        ("ring_cancel", ["dmb ish"]),
        ("ring_take", ["ldar", *["stlr", "dmb ish"] * 2]),  # of a first attempt, and of a further one
        ("ring_is_taken", ["ldar"]),
        ("ring_complete", ["stlr", "stlr"]),
        ("ring_copy_reply", ["ldar"]),
        ("announce_write", ["stlr", "dmb ish"]),
        ("announce_progress", ["stlr"]),
        ("cut_through_advance", ["ldar", "ldar", "dmb ishld"]),
    ],
)
def test_the_compiled_core_keeps_its_order_on_aarch64(
    instructions: dict[str, list[str]], function: str, expected: list[str]
) -> None:
    assert instructions[function] == expected
