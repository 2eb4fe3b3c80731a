"""Choice between the native core and pure Python, made once at import.

The backend is the extension `shmserve._core` (native/python/) or the package `shmserve.pure`; both have the same names with
the same interface, which `_core.pyi` declares. No other module asks which of the two it is: it imports the names from here.

`SHMSERVE_PURE=1` chooses Python, on a machine without a compiler, to compare the two, or to look for a fault. Where the
extension is missing and nobody chose Python, the import warns, because a request then takes about twice as long.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Final

from .fence import check_processor

if TYPE_CHECKING:
    from ._core import (
        ClientFastPath,
        CounterPoller,
        CutThroughCopier,
        Histograms,
        Semaphore,
        ServerFastPath,
        Slots,
        TreeDecoder,
        TreeEncoder,
        abandon,
        bytes_in_flight,
        mark_asleep,
        mark_awake,
        poll_all,
        poll_first,
        same_cpu_writers,
        sleeping_writers,
        spin,
        spin_unless_blocked,
        stage,
    )

__all__ = [
    "BACKEND",
    "CHOICE",
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

_VARIABLE = "SHMSERVE_PURE"


def check_interpreter(gil_disabled: bool) -> None:
    """Raise ImportError for a build of Python without the global interpreter lock, which both backends rely on."""
    if gil_disabled:
        raise ImportError(
            "shmserve relies on the global interpreter lock, which this build of Python does not have: use a build with it"
        )


def _chosen() -> ModuleType:
    check_interpreter("t" in sys.abiflags)
    if os.environ.get(_VARIABLE) != "1":
        try:
            return importlib.import_module("shmserve._core")
        except ModuleNotFoundError as error:
            if error.name != "shmserve._core":
                raise
            problem = "was not built"
        except ImportError as error:
            problem = f"cannot be loaded ({error})"
        warnings.warn(
            f"shmserve runs in pure Python, and a request takes about twice as long: its native core {problem}. Install gcc "
            "and the Python headers (apt-get install gcc python3-dev) and install shmserve again, or set "
            f"{_VARIABLE}=1 to choose pure Python",
            RuntimeWarning,
            stacklevel=2,
        )
    check_processor(platform.machine())
    return importlib.import_module("shmserve.pure")


_backend = _chosen()
_is_native: Final = _backend.__name__ == "shmserve._core"
#: Name of the backend, for people to read: `native` or `pure`.
BACKEND: Final = "native" if _is_native else "pure"
#: Variables for a child process that is to choose the same backend without another warning.
CHOICE: Final[dict[str, str]] = {} if _is_native else {_VARIABLE: "1"}

if not TYPE_CHECKING:
    CounterPoller, CutThroughCopier = _backend.CounterPoller, _backend.CutThroughCopier
    Histograms, Slots, Semaphore = _backend.Histograms, _backend.Slots, _backend.Semaphore
    TreeEncoder, TreeDecoder, stage = _backend.TreeEncoder, _backend.TreeDecoder, _backend.stage
    ClientFastPath, ServerFastPath = _backend.ClientFastPath, _backend.ServerFastPath
    abandon, bytes_in_flight = _backend.abandon, _backend.bytes_in_flight
    poll_all, poll_first = _backend.poll_all, _backend.poll_first
    same_cpu_writers, sleeping_writers = _backend.same_cpu_writers, _backend.sleeping_writers
    mark_asleep, mark_awake = _backend.mark_asleep, _backend.mark_awake
    spin, spin_unless_blocked = _backend.spin, _backend.spin_unless_blocked
