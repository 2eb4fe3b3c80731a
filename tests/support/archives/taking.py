"""Takes a package in as the daemon does, through the process under limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmserve.daemon.store import PackageLimits
from shmserve.daemon.store.ingest import IngestedPackage, ingest
from tests.support.archives.packages import opened

Take = Callable[..., IngestedPackage]


def taker(folder: Path) -> Take:
    """Receives what is at a path, or these bytes, into folder/staging."""

    def take(source: Path | bytes, **limits: Any) -> IngestedPackage:
        if isinstance(source, bytes):
            (folder / "sent").write_bytes(source)
            source = folder / "sent"
        with opened(source) as descriptor:
            return asyncio.run(ingest(descriptor, folder / "staging", PackageLimits(**limits)))

    return take
