"""Counts of one robot's requests and results, in shared memory, readable after the robot was killed."""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from pathlib import Path

WORD = 8


class Word(IntEnum):
    """Words that the robot counts; each request adds one to SUBMITTED, then one to RESULTS or one to ERRORS."""

    SUBMITTED = 0
    RESULTS = 1
    ERRORS = 2
    #: Replies that are not the right function of their input by exactly one version, or belong to another request.
    WRONG = 3
    #: Requests that ended with an error that is not typed.
    UNTYPED = 4
    #: Results delivered after their deadline.
    LATE = 5
    #: Time of the robot's first reply (CLOCK_MONOTONIC, ns).
    ATTACHED_NS = 6
    #: Forked children that were refused in every call.
    CHILDREN = 7
    #: Signals that its handler got.
    SIGNALS = 8


class Tally:
    """Words of one robot, which it writes and the run reads.

    They are in a memfd and not in a file on disk: a store to a page that the kernel has just written back waits for the
    file system, and SIGKILL does not end a process in that wait.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapped = mmap.mmap(descriptor, WORD * len(Word))
        self.words = memoryview(self._mapped).cast("Q")

    @classmethod
    def create(cls) -> Tally:
        """Create a tally with all words 0; another process opens it by `path`."""
        descriptor = os.memfd_create("chaos-tally")
        os.ftruncate(descriptor, WORD * len(Word))
        return cls(descriptor)

    @classmethod
    def open(cls, path: Path) -> Tally:
        """Open the tally that another process of this user has created and not closed."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    @property
    def path(self) -> Path:
        """Return the path at which any process of this user finds it until it is closed."""
        return Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def add(self, word: Word) -> None:
        self.words[word] += 1

    def __getitem__(self, word: Word) -> int:
        return self.words[word]

    def close(self) -> None:
        self.words.release()
        self._mapped.close()
        os.close(self._descriptor)


class Account:
    """Sum over all robots of a run."""

    def __init__(self) -> None:
        self._sum = dict.fromkeys(Word, 0)
        #: Requests in flight when their robot was killed.
        self.out_at_death = 0

    def close(self, tally: Tally, *, killed: bool, window: int) -> None:
        """Add a robot that has ended; raise AssertionError if its figures do not agree."""
        for word in Word:
            self._sum[word] += tally[word]
        out = tally[Word.SUBMITTED] - tally[Word.RESULTS] - tally[Word.ERRORS]
        assert 0 <= out <= (window if killed else 0), f"{out} requests have neither a result nor an error"
        self.out_at_death += out
        tally.close()

    def check(self) -> None:
        """Raise AssertionError unless every request is accounted for and every reply was correct."""
        for word in (Word.WRONG, Word.UNTYPED, Word.LATE):
            assert self._sum[word] == 0, f"{self._sum[word]} requests ended {word.name.lower()}"

    def __str__(self) -> str:
        found = self._sum
        balance = "=" if found[Word.SUBMITTED] == self._settled else "IS NOT"
        return (
            f"submitted {found[Word.SUBMITTED]:,} {balance} results {found[Word.RESULTS]:,} + typed errors "
            f"{found[Word.ERRORS]:,} + in flight when their robot was killed {self.out_at_death:,}; "
            f"wrong {found[Word.WRONG]}, untyped {found[Word.UNTYPED]}, after their deadline {found[Word.LATE]}"
        )

    @property
    def _settled(self) -> int:
        return self._sum[Word.RESULTS] + self._sum[Word.ERRORS] + self.out_at_death
