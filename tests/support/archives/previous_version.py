"""The version that was current before, as the store's index has it."""

from __future__ import annotations

from shmserve.daemon.store import Store, StoredVersion


def previous(store: Store) -> StoredVersion | None:
    return store.index.versions.get(store.index.previous or "")
