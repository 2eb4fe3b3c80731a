"""The core between two processes, and the instructions that keep its order on aarch64."""

from __future__ import annotations

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
