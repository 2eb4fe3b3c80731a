"""Histograms of an engine's stages and of their total."""

from __future__ import annotations

from typing import Any

from shmserve.histogram_buckets import BUCKETS, FIRST_BIT, SUB_BITS, bucket_of

from .memory import words_of

#: Queued, staged, infer, copied, and their total.
_STAGES = 5
#: Buckets of the durations below 2 ms, to look up by their 128 ns steps: five times as fast as counting bits.
_STEP_BITS = FIRST_BIT - SUB_BITS
_NEAR_NS = 1 << 21
_NEAR = bytes(bucket_of(step << _STEP_BITS) for step in range(_NEAR_NS >> _STEP_BITS))


class Histograms:
    """The histograms of an engine's stages, one after the other."""

    def __init__(self, memory: Any, place: int, /) -> None:
        """Find them at `place` in `memory`, in words of 8 bytes."""
        words = words_of(memory)
        if not 0 <= place <= len(words) - _STAGES * BUCKETS:
            raise ValueError("the histograms are not in this memory")
        self._words = words
        self._place = place

    def record(self, queued_ns: int, staged_ns: int, infer_ns: int, copied_ns: int, /) -> None:
        """Count one request in the histograms of its stages and of its total."""
        words, near, at = self._words, _NEAR, self._place
        for duration_ns in (
            queued_ns,
            staged_ns,
            infer_ns,
            copied_ns,
            queued_ns + staged_ns + infer_ns + copied_ns,
        ):
            bucket = near[duration_ns >> _STEP_BITS] if duration_ns < _NEAR_NS else bucket_of(duration_ns)
            words[at + bucket] += 1
            at += BUCKETS

    def close(self) -> None:
        """Release the memory; may be called twice."""
        self._words.release()
