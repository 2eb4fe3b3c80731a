"""Newest observations of a producer that never waits, for a consumer that does."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Newest(Generic[Item]):
    """A place for one item. A later one replaces it, so the consumer never falls behind."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._is_closed = False
        self.replaced = 0  # items that nobody took

    def put(self, item: Item) -> None:
        with self._changed:
            self.replaced += self._item is not None
            self._item = item
            self._changed.notify()

    def take(self) -> Item | None:
        """Wait for an item and remove it; None once the place is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._is_closed)
            item, self._item = self._item, None
            return None if self._is_closed else item

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
