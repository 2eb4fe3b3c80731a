"""The pure backend: the types and functions of the native core in Python, under the same names.

Each type has the interface that `shmserve/_core.pyi` declares, makes the same checks in the same order, and passes the same
tests (tests/unit/core/test_backend_interface.py compares the two).
"""

from __future__ import annotations

from .client_fast_path import ClientFastPath
from .counter_poller import (
    CounterPoller,
    mark_asleep,
    mark_awake,
    poll_all,
    poll_first,
    same_cpu_writers,
    sleeping_writers,
    spin,
    spin_unless_blocked,
)
from .cut_through import CutThroughCopier, abandon, bytes_in_flight
from .histograms import Histograms
from .semaphore import Semaphore
from .server_fast_path import ServerFastPath
from .slots import Slots
from .tree_decoder import TreeDecoder, stage
from .tree_encoder import TreeEncoder

__all__ = [
    "ClientFastPath",
    "CounterPoller",
    "CutThroughCopier",
    "Histograms",
    "Semaphore",
    "ServerFastPath",
    "Slots",
    "TreeDecoder",
    "TreeEncoder",
    "abandon",
    "bytes_in_flight",
    "mark_asleep",
    "mark_awake",
    "poll_all",
    "poll_first",
    "same_cpu_writers",
    "sleeping_writers",
    "spin",
    "spin_unless_blocked",
    "stage",
]
