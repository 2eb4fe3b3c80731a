"""Continuation of a chunk: the entries about the chunk that the robot executes, for a policy with real-time chunking."""

from __future__ import annotations

from typing import Any

from shmserve.errors import InvalidArgument
from shmserve.real_time_chunking import DECLARATION, ENTRIES, INFERENCE_DELAY, LEFT_OVER

from .chunk_rows import Chunk, map_leaves


class Continuation:
    """Adds the entries of real-time chunking to the observations for one model version, if it declares them."""

    def __init__(self) -> None:
        self._version: str | None = None  # the version that was described last
        self._is_declared = False

    def note(self, model: dict[str, Any] | None) -> None:
        """Note a description of the model; None: nothing is known."""
        self._version = None if model is None else model.get("version")
        self._is_declared = model is not None and model.get(DECLARATION) is True

    def knows(self, version: str) -> bool:
        """Return whether this is the version that was described last."""
        return version == self._version

    def applies_to(self, chunk: Chunk) -> bool:
        """Return whether the rows of this chunk may be sent: to the model version that they are from, and that takes them."""
        return self._is_declared and chunk.version == self._version

    @staticmethod
    def added(observation: Any, chunk: Chunk, start: int, delay: int) -> dict[str, Any]:
        """Return a copy of the observation with the rest of `chunk` from row `start` on, and the delay in rows.

        Raises InvalidArgument for an observation that cannot have these entries.
        """
        if not isinstance(observation, dict):
            raise InvalidArgument(
                f"the policy takes real-time chunking, so the observation must be a dict to which {' and '.join(ENTRIES)} "
                f"can be added, not {type(observation).__name__}"
            )
        if own := [name for name in ENTRIES if name in observation]:
            raise InvalidArgument(
                f"the observation has {' and '.join(own)}, which ActionChunks adds for this policy: leave it out, or send "
                "requests of your own with ShmClient"
            )
        left_over = map_leaves(chunk.rows, lambda rows: rows[start:])
        return {**observation, INFERENCE_DELAY: delay, LEFT_OVER: left_over}
