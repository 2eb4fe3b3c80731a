"""Messages of a supervisor for tests that play one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from shmserve.daemon.ipc.messages import Load

_LOAD = Load(
    serial=1,
    package="",
    version=None,
    called="echo",
    device="cpu",
    allow_code=True,
    threads=None,
    memory_bytes=None,
    lock_memory=False,
    priority=0,
    spin_us=0,
    wake_ahead=True,
    request_bell=None,
    trusted_transport=False,
    register_bytes=None,
    device_leaves=False,
    serving_model=None,
)


def load(package: Path, **fields: Any) -> Load:
    """The first message to an engine that is to serve `package`."""
    return replace(_LOAD, package=str(package), **fields)
