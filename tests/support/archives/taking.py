"""Receives packages for tests: in this process, or as the daemon does through a process under limits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shmserve.daemon.store import BytesIngested, PackageLimits
from shmserve.daemon.store.atomic_files import remove_tree
from shmserve.daemon.store.ingest import Ingest, IngestedPackage, IngestEvents
from shmserve.daemon.store.ingest_worker import copy_package
from shmserve.daemon.store.kept_files import KeptFile
from tests.support.archives.packages import opened

Take = Callable[..., IngestedPackage]


async def ingest_here(
    source: int,
    staging: Path,
    limits: PackageLimits | None = None,
    progress: Callable[[BytesIngested], None] | None = None,
    kept: Sequence[KeptFile] = (),
) -> IngestedPackage:
    """As `ingest`, in this process: the limits of a process (time, memory, descriptors) do not apply."""
    events, reported = IngestEvents(progress), list[dict[str, Any]]()
    staging.mkdir(mode=0o700)
    umask = os.umask(0o077)
    target = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        copy_package(source, target, limits or PackageLimits(), kept, reported.append)
        for event in reported:
            events.take(event)
    except BaseException:
        remove_tree(staging)
        raise
    finally:
        os.close(target)
        os.umask(umask)
    assert events.root is not None
    return IngestedPackage(staging, staging / events.root, events.files)


def taker(folder: Path, receive: Ingest = ingest_here) -> Take:
    """Receives what is at a path, or these bytes, into folder/staging."""

    def take(source: Path | bytes, kept: Sequence[KeptFile] = (), **limits: Any) -> IngestedPackage:
        if isinstance(source, bytes):
            (folder / "sent").write_bytes(source)
            source = folder / "sent"

        async def received(descriptor: int) -> IngestedPackage:
            return await receive(descriptor, folder / "staging", PackageLimits(**limits), None, kept)

        with opened(source) as descriptor:
            return asyncio.run(received(descriptor))

    return take
