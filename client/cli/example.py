"""Example of the model that serves: the observation of its warm-up, copied from the engine."""

from __future__ import annotations

import os
from typing import Any

from .connection import AdminConnection


def fetch_example(connection: AdminConnection) -> Any:
    """Return the observation of the warm-up; None if the model has none, or its engine is busy, or this side cannot read it.

    Also None for a caller who may look at the service and not operate it.
    """
    import numpy as np

    from shmserve.codec import Decoder, SlotMemory
    from shmserve.metadata import MetadataError
    from shmserve.varlink import PERMISSION_DENIED, VarlinkError

    memory = os.memfd_create("shmserve-example")
    try:
        try:
            found = connection.call("Example", fd=memory, timeout_s=30.0)
        except VarlinkError as error:
            if error.error == PERMISSION_DENIED:
                return None
            raise
        metadata_bytes, payload_bytes = found["metadata_bytes"], found["payload_bytes"]
        if not metadata_bytes:
            return None
        content = np.frombuffer(os.pread(memory, metadata_bytes + payload_bytes, 0), np.uint8)
    finally:
        os.close(memory)
    if content.size < metadata_bytes + payload_bytes:
        return None
    slot = SlotMemory(content[:metadata_bytes], content[metadata_bytes:])
    try:
        return Decoder().decode(slot, 1, metadata_bytes, payload_bytes, False)
    except MetadataError:  # a dtype that only torch has
        return None
