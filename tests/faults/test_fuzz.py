"""The fuzz targets, in the form that every run of the tests can afford: 200,000 inputs, the same ones each time."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time

import pytest

from fuzz import corpus
from fuzz.all_targets import SHARES, split
from fuzz.mutation import Mutator
from fuzz.replay import Finding, replay
from fuzz.target import Target
from tests.support.folders import REPOSITORY

_INPUTS = 200_000
_ROOT = REPOSITORY


@pytest.mark.parametrize("name", SHARES)
def test_whatever_others_write_is_read_or_refused(name: str) -> None:
    # A process of its own: the channel's target silences the log, and a hang must not be the tests'.
    command = [sys.executable, "-m", "fuzz.replay", "--inputs", str(_INPUTS), "--target", name]
    ran = subprocess.run(command, check=False, cwd=_ROOT, capture_output=True, text=True, timeout=140)
    print(ran.stdout)

    assert ran.returncode == 0, ran.stderr
    assert f"{split(_INPUTS, [name])[name]:,} inputs, no finding" in ran.stdout


def test_the_shares_are_all_of_it() -> None:
    assert sum(SHARES.values()) == 100
    assert sum(split(_INPUTS, SHARES).values()) == _INPUTS


def test_the_same_seed_gives_the_same_inputs() -> None:
    inputs = [b"abc", b"\x00" * 40]

    def made(seed: int) -> list[bytes]:
        mutator = Mutator(seed, inputs, (b"word",))
        return [mutator.next() for _ in range(200)]

    assert made(1) == made(1) != made(2)
    assert len(set(made(1))) > 150


@pytest.mark.parametrize("name", SHARES)
def test_the_committed_corpus_holds_each_input_once(name: str) -> None:
    kept = corpus.read(name)

    assert len(kept) == len(set(kept))


def _raises(data: bytes) -> None:
    if b"!" in data:
        raise KeyError("reached")


def _sleeps(data: bytes) -> None:
    if b"!" in data:
        time.sleep(1.1)


def _grows(data: bytes) -> None:
    if b"!" in data and not _kept:
        # Not from the heap: an earlier test may have left as much of it in memory.
        _kept.append(mmap.mmap(-1, 24 << 20))
        _kept[0].write(b"\x01" * len(_kept[0]))


_kept: list[mmap.mmap] = []


@pytest.mark.parametrize(
    ("run", "says"), [(_raises, "KeyError: 'reached'"), (_sleeps, r"took \d+\.\d s"), (_grows, "the process grew by")]
)
def test_an_error_a_hang_and_growth_are_findings(run: object, says: str) -> None:
    with pytest.raises(Finding, match=says) as found:
        replay("made_up", Target(run, lambda: [b"seed"], (b"!",)), 4000, 1)  # type: ignore[arg-type]

    _kept.clear()
    assert found.value.data
