"""Shared memory as 8-byte words, and its state after `close`."""

from __future__ import annotations

from typing import Any, NoReturn

from shmserve.layout import WORD


def words_of(memory: Any) -> memoryview:
    """Return a contiguous buffer as words; raises ValueError if it does not consist of aligned words."""
    view = memoryview(memory)
    if not view.c_contiguous or view.nbytes % WORD:
        raise ValueError("this memory does not consist of words of 8 bytes")
    return view.cast("B").cast("Q")


class Closed:
    """Stand-in for the table that every method looks up first, after `close`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getitem__(self, index: object) -> NoReturn:
        raise ValueError(f"{self._what} closed")
