"""The choice between the native core and pure Python, made once at import.

`core` is the extension `shmserve._core` (native/python/) where this installation has it, else None, and then the Python
beside each of its types does the same work. `SHMSERVE_PURE=1` chooses Python, to compare the two or to look for a fault.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _core as core
else:

    def _core() -> ModuleType | None:
        if os.environ.get("SHMSERVE_PURE") == "1":
            return None
        try:
            from . import _core
        except ImportError:  # installed without a compiler
            return None
        return _core

    core = _core()

__all__ = ["NATIVE", "core"]

#: Whether the native core is used.
NATIVE = core is not None
