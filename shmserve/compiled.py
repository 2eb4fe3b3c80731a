"""The compiled steps of a request (compiled/), where this installation has them; elsewhere Python does the same.

`SHMSERVE_COMPILED=0` leaves them out, to compare or to look for a fault.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _compiled as steps
else:

    def _steps() -> ModuleType | None:
        if os.environ.get("SHMSERVE_COMPILED") == "0":
            return None
        try:
            from . import _compiled
        except ImportError:  # installed without a compiler
            return None
        return _compiled

    steps = _steps()

__all__ = ["COMPILED", "steps"]

#: Whether there are any.
COMPILED = steps is not None
