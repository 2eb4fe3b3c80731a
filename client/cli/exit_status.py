"""Exit statuses of shmserve-admin."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from shmserve.errors import ServiceUnavailable, ShmServeError
from shmserve.varlink import PERMISSION_DENIED, VarlinkError

DONE = 0
REFUSED = 1
USAGE = 2  # click's own
NO_DAEMON = 3
#: Of `wait-ready`: the service has not failed, it was still starting when the wait ended.
NOT_READY_YET = 4
#: Of `export`: done, of a recording that was cut off.
CUT_OFF = 5
#: The shell's convention for a program that a signal ended.
INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 128 + signal.SIGPIPE

P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str, status: int = REFUSED) -> NoReturn:
    """Print the message on standard error, and exit."""
    print(f"shmserve-admin: {message}", file=sys.stderr)
    sys.exit(status)


def with_exit_status(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an exception of the command into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()  # here, because a closed stdout at the end of Python prints a traceback
        except BrokenPipeError:  # only of standard output: the connection raises ServiceUnavailable
            _end_unread()
        except ServiceUnavailable as error:
            fail(str(error), NO_DAEMON)
        except VarlinkError as error:
            if error.error == PERMISSION_DENIED:
                fail(_denied(error.parameters.get("setting"), error.parameters.get("method")))
            fail(str(error.parameters.get("message", error)))
        except OSError as error:
            fail(_words(error))
        except (ShmServeError, ValueError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        return result

    return run


def _end_unread() -> NoReturn:
    """End like a program that SIGPIPE ended: the reader of standard output has gone (`| head`)."""
    # Discard the buffer: Python would report an error for it as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(READER_GONE)


def _denied(setting: object, method: object) -> str:
    """Return the text of a refused connection, or of a refused call of a user who may look."""
    if method is None:
        return f"the daemon takes no admin commands from uid {os.geteuid()}: {setting} must name this user"
    return (
        f"uid {os.geteuid()} may look at this service and not operate it ({str(method).rpartition('.')[2]}): run as the "
        f"daemon's user or as root (sudo), or have the setting {setting} name this user"
    )


def _words(error: OSError) -> str:
    """Return the text of a system error without its number.

    >>> _words(FileNotFoundError(2, "No such file or directory", "a.rec")), _words(PermissionError("run it with sudo"))
    ('a.rec: No such file or directory', 'run it with sudo')
    """
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
