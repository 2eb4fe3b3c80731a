"""Example of the warm-up as in a slot, and its copy for an operator who tries the model with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shmserve.schema import Schema

log = logging.getLogger(__name__)

#: Its schema and its payload.
Example = tuple[Schema, npt.NDArray[np.uint8]]


def write_example(example: Example | None, fds: Sequence[int]) -> tuple[int, int]:
    """Write metadata and payload to the memory behind the one descriptor, and close it; return the bytes of each.

    0 bytes: the model has no example, or it could not be written.
    """
    try:
        if example is None or not fds:
            return 0, 0
        parts = [memoryview(example[0].metadata), example[1].data]
        at = 0
        for part in parts:
            while part.nbytes:
                written = os.pwrite(fds[0], part, at)
                part, at = part[written:], at + written
        return len(example[0].metadata), example[1].nbytes
    except OSError as error:
        log.error("the example could not be copied: %s", error)
        return 0, 0
    finally:
        for descriptor in fds:
            os.close(descriptor)
