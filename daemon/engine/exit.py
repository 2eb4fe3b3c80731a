"""Fast exit of an engine process.

The interpreter's regular shutdown takes torch apart, which costs most of a second of CPU time. This exit runs the
functions that a policy has registered with `atexit`, within a time limit. It runs no destructors and waits for no
threads; the supervisor ends the processes that the policy has started.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn

#: Time limit for all functions of `atexit` together.
LIMIT_S = 2.0


def leave(status: int) -> NoReturn:
    """End this process with `status`; called in the main thread, once every request is answered."""
    late = threading.Timer(LIMIT_S, _end, (status,))
    late.daemon = True
    late.start()
    with contextlib.suppress(BaseException):  # the model's own code
        atexit._run_exitfuncs()
    _end(status)


def _end(status: int) -> NoReturn:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never opened
            stream.flush()
    os._exit(status)
