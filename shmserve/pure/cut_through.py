"""Stand-in for cut-through copying, which pure Python does not do: every payload is copied after its publication."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class CutThroughCopier:
    """A copier that never copies ahead."""

    __slots__ = ()

    def __init__(
        self, memory: npt.NDArray[np.uint8], counter: int, payload: int, stride: int, slots: int, room: int, /
    ) -> None:
        """Take the places, in bytes, and keep none of them."""

    def set_target(self, arena: npt.NDArray[np.uint8] | None, /) -> None:
        """Do nothing: no byte is copied into the arena."""

    def commit(self, write_id: int, /) -> None:
        """Do nothing: no write is being copied."""

    def close(self) -> None:
        """Do nothing: no memory is held."""


def bytes_in_flight(copiers: list[CutThroughCopier], /) -> int:
    """Return -1: no unpublished write is known."""
    return -1


def abandon(copiers: list[CutThroughCopier], /) -> None:
    """Do nothing: no unpublished write is waited for."""
