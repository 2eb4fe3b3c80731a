"""How an engine's process ends.

Python's own end takes torch apart, which costs most of a second of a processor that the robots have better use for. The
functions that a policy has registered with `atexit` run all the same, for a while. Its destructors do not, its threads are
not waited for, and the supervisor ends the processes that it has started.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn

#: For all functions of `atexit` together.
LIMIT_S = 2.0


def leave(status: int) -> NoReturn:
    """End this process with `status`; to be called in the main thread, once nothing is left to answer."""
    late = threading.Timer(LIMIT_S, _end, (status,))
    late.daemon = True
    late.start()
    with contextlib.suppress(BaseException):  # the model's own code
        atexit._run_exitfuncs()
    _end(status)


def _end(status: int) -> NoReturn:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
    os._exit(status)
