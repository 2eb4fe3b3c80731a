"""The fuzz targets: the corpus and seeded mutations, a few in each run of the tests and 200,000 in the long form."""

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

_SHORT = 2_000
_LONG = 200_000
#: The channel's target silences the log, and a hang must not be the tests': each run has its own process.
_REPLAY = [sys.executable, "-m", "fuzz.replay"]


def _replay(*arguments: str) -> str:
    ran = subprocess.run(
        [*_REPLAY, *arguments], check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=140
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _inputs_of(output: str) -> dict[str, int]:
    """The number of inputs that ran, by target."""
    rows = [line.split() for line in output.splitlines() if " a second " in line]
    return {row[0]: int(row[1].replace(",", "")) for row in rows}


@pytest.mark.fault("T04", "T05", "T07", "T10", "T42", "T71")
def test_untrusted_input_is_read_or_refused() -> None:
    output = _replay("--inputs", str(_SHORT))

    ran = _inputs_of(output)
    least = {name: share + len(corpus.read(name)) for name, share in split(_SHORT, SHARES).items()}
    assert ran.keys() == SHARES.keys() and all(ran[name] >= least[name] for name in SHARES)
    assert "no finding" in output


@pytest.mark.long
@pytest.mark.parametrize("name", SHARES)
def test_much_untrusted_input_is_read_or_refused(name: str) -> None:
    output = _replay("--inputs", str(_LONG), "--target", name)

    assert _inputs_of(output)[name] >= split(_LONG, [name])[name] + len(corpus.read(name))
    assert "no finding" in output


def test_the_shares_are_all_of_it() -> None:
    assert sum(SHARES.values()) == 100
    assert sum(split(_LONG, SHARES).values()) == _LONG


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
