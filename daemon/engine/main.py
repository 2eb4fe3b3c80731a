"""Start of an engine process: it imports torch, waits for the order to load a model, and becomes that engine.

The supervisor starts it with exec, never with fork alone, as
`python -m shmserve.daemon.engine.main CONTROL_FD STATS_FD RELEASE WIRE_VERSION SUPERVISOR_PID`. A process that the supervisor
keeps as the spare engine waits here, with everything imported that a model needs, until it is used.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING

from shmserve.shortened import shortened

from ..host import descriptors
from ..host.logging import configure_engine_logging, separate_loggers
from ..ipc.control import ControlSocket
from ..ipc.messages import Accepted, Failed, Load, Preload, Preloaded, Stop
from ..ipc.release import RELEASE_MISMATCH, mismatch
from ..ipc.stats import Counter, Stats
from .exit import leave
from .loop.time_slice import request_time_slice, request_time_slice_for_every_thread
from .signals import handle_signals

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
#: Interval of a waiting process's heartbeats.
_HEARTBEAT_S = 1.0
_ERROR_TEXT = 2000


def main() -> int:
    """Serve by the control socket's messages; return 0 after an orderly stop, 1 if the model cannot be served."""
    descriptors.keep_from_children()  # otherwise a program of the policy could speak to the supervisor as this engine
    handle_signals()
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))  # a wait that ends for a request that is due ends in time
    *release, supervisor = sys.argv[3:]
    if os.getppid() != int(supervisor):
        return 0  # the supervisor has died already
    # faulthandler writes to the log's stream as well: the policy may close standard error.
    faulthandler.enable(configure_engine_logging())
    request_time_slice()  # before there are other threads
    control = ControlSocket(socket.socket(fileno=int(sys.argv[1])))
    # Before anything that both processes must agree on: the layout of the stats, the messages.
    if (said := mismatch(release)) is not None:
        log.error("%s", said)
        control.send(Failed("start", RELEASE_MISMATCH, said))
        return 1
    stats = Stats(int(sys.argv[2]))
    os.close(int(sys.argv[2]))
    # The objects of torch and the service never become garbage; the collector would take a third of a second to see it.
    gc.disable()
    try:
        engine_class = _import_engine()
    except BaseException as error:  # noqa: BLE001  a broken installation of torch may raise anything
        return _report_failed_import(control, "torch", error)
    separate_loggers()  # before the first code that is not the service's
    gc.freeze()
    gc.enable()
    while not control.closed:
        stats.words[Counter.HEARTBEAT_NS] = time.monotonic_ns()
        for arrival in control.receive(_HEARTBEAT_S):
            match arrival.message:
                case Load() as load:
                    control.send(Accepted())
                    engine = engine_class(control, stats, load)
                    if not engine.load():
                        return 1
                    request_time_slice_for_every_thread()
                    engine.run()
                    return 0
                case Preload(modules):
                    for module in modules:
                        try:
                            importlib.import_module(module)
                        except BaseException as error:  # noqa: BLE001  as above
                            return _report_failed_import(control, module, error)
                    control.send(Preloaded())
                case Stop():
                    return 0
    return 0  # the supervisor exited before it sent a load request


def _import_engine() -> type[Engine]:
    """Import torch and all that an engine consists of, except the loaders of the package formats."""
    from .engine import Engine

    return Engine


def _report_failed_import(control: ControlSocket, module: str, error: BaseException) -> int:
    last_lines = "".join(traceback.format_exception(error)[-3:]).rstrip()
    log.error("an engine cannot start: importing %s failed\n%s", module, last_lines)
    message = f"importing {module} failed: {error}"
    control.send(Failed("start", type(error).__name__, shortened(message, _ERROR_TEXT)))
    return 1


if __name__ == "__main__":
    leave(main())
