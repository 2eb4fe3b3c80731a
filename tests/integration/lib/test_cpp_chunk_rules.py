"""ActionChunks in C++ and in Python run the same scripts, and give the same actions."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable

import pytest

from tests.support.chunk_script import ERRORS, run_in_python
from tests.support.cpp_library import compile_cpp
from tests.support.folders import SUPPORT

MS = 1_000_000
BEGIN_NS = 1_000 * MS
Run = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def run_in_cpp() -> Run:
    program = compile_cpp(SUPPORT / "cpp_programs/scripted_chunks.cpp")

    def run(script: list[str]) -> list[str]:
        ended = subprocess.run([program], input="\n".join(script), capture_output=True, text=True, check=True)
        return [line.strip() for line in ended.stdout.splitlines()]

    return run


def new(
    fallback: str = "hold",
    *,
    steps: int = 4,
    prefetch: int = 0,
    overrun: int = 0,
    period_ms: int = 20,
    max_wait_ms: int = 0,
    max_age_ms: int = -1,
    connected: bool = True,
    aggregate: str = "latest",
) -> str:
    age_ns = max_age_ms * MS if max_age_ms >= 0 else -1
    numbers = f"{BEGIN_NS} {steps} {prefetch} {overrun} {period_ms * MS} {max_wait_ms * MS}"
    return f"new {numbers} {fallback} {age_ns} {connected:d} {aggregate}"


def then(latency_ms: int = 0, *, reply: int = 0, version: int = 1, rows: int = 8, submit: int = 0) -> str:
    return f"next {latency_ms * MS} {reply} {version} {rows} {submit}"


def steps(first: int, count: int, period_ms: int = 20) -> list[str]:
    """`step` lines, numbered from `first`."""
    return [f"step {BEGIN_NS + number * period_ms * MS} 0" for number in range(first, first + count)]


#: Name, script, and what each step gives: (source, request, row), or a status.
TABLE: list[tuple[str, list[str], list[str]]] = [
    (
        "rows in their order",
        [new(), then(), *steps(0, 6)],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "chunk 1 0", "chunk 1 1"],
    ),
    (
        "a late chunk is joined where the time is",
        [new(max_wait_ms=100), then(50), *steps(0, 2)],
        ["chunk 0 3", "chunk 1 3"],
    ),
    (
        "overrun rows until the next chunk",
        [new(overrun=2), then(), *steps(0, 1), then(50), *steps(1, 7)],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "overrun 0 4", "overrun 0 5", "hold 0 5", "chunk 1 3"],
    ),
    (
        "hold for ever",
        [new("hold", steps=2), then(), *steps(0, 1), then(reply=7), *steps(1, 4)],
        ["chunk 0 0", "chunk 0 1", "hold 0 1", "hold 0 1", "hold 0 1"],
    ),
    (
        "repeat the last until its age",
        [new("repeat_last", steps=2, max_age_ms=50), then(), *steps(0, 1), then(reply=7), *steps(1, 3)],
        ["chunk 0 0", "chunk 0 1", "repeat_last 0 1", "status -100"],
    ),
    (
        "zeros",
        [new("zero", steps=2), then(rows=2), *steps(0, 1), then(reply=-3), *steps(1, 2)],
        ["chunk 0 0", "chunk 0 1", "zero 0 0"],
    ),
    (
        "no action",
        [new("raise", steps=1), then(rows=1), *steps(0, 1), then(reply=8), *steps(1, 1), then(rows=1), *steps(2, 1)],
        ["chunk 0 0", "status -100", "chunk 2 0"],
    ),
    (
        "nothing to hold before the first chunk",
        [new("hold"), then(30), *steps(0, 3)],
        ["status -100", "status -100", "chunk 0 2"],
    ),
    (
        "another model ends the plan",
        [new(prefetch=3), then(), *steps(0, 1), then(version=2), *steps(1, 2)],
        ["chunk 0 0", "chunk 0 1", "chunk 1 1"],
    ),
    (
        "an observation that cannot be sent is returned, and a lack of slots is not",
        [
            new("hold", steps=1),
            then(rows=1),
            *steps(0, 1),
            then(submit=-7),
            *steps(1, 1),
            then(submit=-2),
            *steps(2, 1),
        ],
        ["chunk 0 0", "status -7", "hold 0 0"],
    ),
    (
        "a service that is away is found again",
        [
            *[
                new("hold", steps=1),
                then(rows=1),
                *steps(0, 1),
                then(reply=-3),
                f"connect {30 * MS} 0 -4",
                *steps(1, 1),
            ],
            *[then(rows=1), *steps(2, 4)],
        ],
        ["chunk 0 0", "hold 0 0", "hold 0 0", "hold 0 0", "chunk 2 0", "chunk 3 0"],
    ),
    (
        "a reset forgets the plan and what is in flight",
        [new("hold", prefetch=3), then(), *steps(0, 1), then(70), *steps(1, 1), "reset", *steps(2, 1)],
        ["chunk 0 0", "chunk 0 1", "reset 0", "status -100"],
    ),
    (
        "overlapping rows are averaged",
        [new(prefetch=1, aggregate="weighted_average"), then(), *steps(0, 6)],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "chunk 0.7 1.9", "chunk 0.7 2.9"],
    ),
    (
        "overlapping rows are an own function's",
        [new(prefetch=1, aggregate="own"), then(), *steps(0, 6)],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "chunk 0.25 3.25", "chunk 0.25 4.25"],
    ),
    (
        "rows of another model are not averaged",
        [new(prefetch=3, aggregate="weighted_average"), then(), *steps(0, 1), then(version=2), *steps(1, 2)],
        ["chunk 0 0", "chunk 0 1", "chunk 1 1"],
    ),
    (
        "rows of a plan with a gap are not averaged",
        [
            *[new(aggregate="weighted_average"), then(), *steps(0, 4), then(reply=7), *steps(4, 1)],
            *[then(), *steps(5, 1)],
        ],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "hold 0 3", "chunk 2 0"],
    ),
    (
        "the lead is learned",
        [new(prefetch=-1), then(30), *steps(0, 12)],
        [
            *[
                "status -100",
                "status -100",
                "chunk 0 2",
                "chunk 0 3",
                "chunk 1 2",
                "chunk 1 3",
                "chunk 2 2",
                "chunk 2 3",
            ],
            *["chunk 3 2", "chunk 3 3", "chunk 4 2", "chunk 4 3"],
        ],
    ),
    (
        "a loop that is too fast gets no row twice",
        [new(), then(), *steps(0, 6, period_ms=5)],
        ["chunk 0 0", "chunk 0 1", "chunk 0 2", "chunk 0 3", "chunk 1 0", "chunk 1 1"],
    ),
]


def short(line: str) -> str:
    """Source, request and row of a step's line."""
    words = line.split()
    return line if len(words) < 5 else " ".join([words[0], *words[2:4]])


@pytest.mark.parametrize(("script", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_both_follow_the_rule(
    run_in_cpp: Run, monkeypatch: pytest.MonkeyPatch, script: list[str], expected: list[str]
) -> None:
    in_cpp = run_in_cpp(script)

    assert [short(line) for line in in_cpp[1:]] == expected
    assert in_cpp == run_in_python(script, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        new(steps=0),
        new(steps=4, prefetch=4),
        new().replace(f" {20 * MS} ", " 999 ").replace(" 0 hold", " 0 hold"),
        new("repeat_last"),
        new("hold", max_age_ms=10),
    ],
    ids=["no steps", "prefetch of all", "period", "no age", "an age that nothing uses"],
)
def test_both_refuse_settings_that_make_no_sense(run_in_cpp: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert run_in_cpp([line]) == run_in_python([line], monkeypatch) == ["refused"]


def random_script(seed: int) -> list[str]:
    """Sixty steps with delays, failures, restarts, updates and resets at random."""
    chance = random.Random(seed)
    count = chance.randint(1, 8)
    fallback = chance.choice(["hold", "repeat_last", "zero", "raise"])
    script = [
        new(
            fallback,
            steps=count,
            prefetch=chance.choice([-1, chance.randint(0, count - 1)]),
            overrun=chance.randint(0, 3),
            period_ms=chance.choice([0, 1, 20]),
            max_wait_ms=chance.choice([0, 0, 3, 45]),
            max_age_ms=chance.randint(0, 200) if fallback == "repeat_last" else -1,
            connected=chance.random() < 0.9,
            aggregate=chance.choice(["latest", "weighted_average", "own"]),
        ),
        then(rows=20),
    ]
    now_ns, version = BEGIN_NS, 1
    for _ in range(60):
        roll = chance.random()
        if roll < 0.25:
            failed = [*ERRORS, *[0] * 20]
            version += chance.random() < 0.2
            latency_ms = chance.choice([0, 0, 1, 7, 30, 90])
            # A submit of these raises in Python, and is returned in C++.
            submit = chance.choice([-7, -2, -3, -4, *[0] * 20])
            rows = chance.choice([count, 20, 20, count - 1])
            script.append(then(latency_ms, reply=chance.choice(failed), version=version, rows=rows, submit=submit))
        elif roll < 0.3:
            script.append(
                f"connect {chance.choice([0, 15, 60]) * MS} {chance.choice([0, 0, -6])} {chance.choice([0, -4])}"
            )
        elif roll < 0.33:
            script.append("reset")
        now_ns += chance.choice([1, 5, 19, 20, 20, 21, 50]) * MS + chance.randint(-200_000, 200_000)
        script.append(f"step {now_ns} {chance.choice([0, 0, now_ns - 3 * MS])}")
    return [*script, "stats"]


@pytest.mark.parametrize(
    "count", [pytest.param(300, id="short"), pytest.param(5000, id="long", marks=pytest.mark.long)]
)
def test_both_give_the_same_actions_whatever_happens(
    run_in_cpp: Run, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    scripts = [random_script(seed) for seed in range(count)]
    in_cpp = iter(run_in_cpp([line for script in scripts for line in script]))

    for seed, script in enumerate(scripts):
        in_python = run_in_python(script, monkeypatch)
        assert [next(in_cpp) for _ in in_python] == in_python, f"seed {seed}"
    assert next(in_cpp, None) is None
