"""A store of versions as its tests use it, and what must be on its disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmserve.daemon.store import Store, StoredVersion
from tests.support.archives.packages import opened

Open = Callable[..., Store]


def add(store: Store, path: Path, name: str | None = None, **settings: Any) -> StoredVersion:
    with opened(path) as descriptor:
        return asyncio.run(store.add(descriptor, name, **settings))


def good(store: Store) -> StoredVersion | None:
    return asyncio.run(store.last_good())


def entries(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "models" / "versions"))


def expected_entries(store: Store) -> set[str]:
    return {name for version in store.versions() for name in (version.digest, version.digest + ".json")}
