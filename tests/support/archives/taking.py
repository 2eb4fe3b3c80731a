"""Receives packages for tests: in this process, or as the daemon does through a process under limits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmserve.daemon.store import Limits, Progress
from shmserve.daemon.store.atomic_files import remove_tree
from shmserve.daemon.store.intake import copy_package
from shmserve.daemon.store.receive import IntakeEvents, Receive, Received
from tests.support.archives.packages import opened

Take = Callable[..., Received]


async def receive_here(
    source: int, staging: Path, limits: Limits | None = None, progress: Callable[[Progress], None] | None = None
) -> Received:
    """As `receive`, in this process: the limits of a process (time, memory, descriptors) do not apply."""
    events, reported = IntakeEvents(progress), list[dict[str, Any]]()
    staging.mkdir(mode=0o700)
    umask = os.umask(0o077)
    target = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        copy_package(source, target, limits or Limits(), reported.append)
        for event in reported:
            events.take(event)
    except BaseException:
        remove_tree(staging)
        raise
    finally:
        os.close(target)
        os.umask(umask)
    assert events.root is not None
    return Received(staging, staging / events.root, events.files)


def taker(folder: Path, receive: Receive = receive_here) -> Take:
    """Receives what is at a path, or these bytes, into folder/staging."""

    def take(source: Path | bytes, **limits: Any) -> Received:
        if isinstance(source, bytes):
            (folder / "sent").write_bytes(source)
            source = folder / "sent"

        async def received(descriptor: int) -> Received:
            return await receive(descriptor, folder / "staging", Limits(**limits), None)

        with opened(source) as descriptor:
            return asyncio.run(received(descriptor))

    return take
