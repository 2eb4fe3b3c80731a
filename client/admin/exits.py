"""What shmserve-admin's exit statuses mean."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from shmserve.errors import ServiceUnavailable, ShmServeError
from shmserve.varlink import PERMISSION_DENIED, VarlinkError

DONE = 0
REFUSED = 1
USAGE = 2  # click's own
NO_DAEMON = 3

P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str, status: int = REFUSED) -> None:
    """Say on standard error what went wrong, and exit."""
    print(f"shmserve-admin: {message}", file=sys.stderr)
    sys.exit(status)


def with_exit_status(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what the connection raises into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ServiceUnavailable as error:
            fail(str(error), NO_DAEMON)
        except VarlinkError as error:
            if error.error == PERMISSION_DENIED:
                setting = error.parameters.get("setting")
                fail(f"the daemon takes no admin commands from uid {os.geteuid()}: {setting} must name this user")
            fail(str(error.parameters.get("message", error)))
        except (ShmServeError, OSError, ValueError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted", 130)
        raise AssertionError("fail() exits")

    return run
