"""Steps of the wall clock by an hour in both directions, while requests are in flight.

Only the processes of the service see the changed clock, through a shim between them and their C library (other_clock.c,
compiled when needed). Stepping the real clock would harm the machine.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from pathlib import Path

from chaos.service import Service, wait_served
from chaos.tally import Word
from tests.support.daemon_process import wait_until

HOUR_S = 3600
_SOURCE = Path(__file__).with_name("other_clock.c")
_IMPATIENT_S = 0.05


class OtherClock:
    """Wall clock of the processes that run in `environment`."""

    def __init__(self, folder: Path) -> None:
        library = folder / "other_clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
        self._offset = folder / "offset"
        self.step(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def step(self, offset_s: int) -> None:
        """Set the clock to this many seconds from the kernel's."""
        descriptor = os.open(self._offset, os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, struct.pack("l", offset_s), 0)
        os.close(descriptor)


def step_clock(service: Service, steps: int) -> str:
    """Step the clock while the engine is stopped and requests wait: timeouts pass in time, no request is lost.

    The service must not have begun.
    """
    clock = OtherClock(service.folder)
    service.begin(clock.environment)
    robots = service.busy_robots(2)
    impatient = service.robot(timeout_s=_IMPATIENT_S)
    for number in range(steps):
        engine = service.daemon.engine_pid
        os.kill(engine, signal.SIGSTOP)
        try:
            errors = impatient.tally[Word.ERRORS]
            clock.step((HOUR_S, -HOUR_S, 0)[number % 3])
            wait_until("timeouts pass", lambda errors=errors: impatient.tally[Word.ERRORS] > errors + 1, HOUR_S / 60)
        finally:
            os.kill(engine, signal.SIGCONT)
        wait_served(robots, 5)
    return (
        f"{steps} steps of the wall clock, forwards and backwards by an hour or two, each with requests out: "
        f"{impatient.tally[Word.ERRORS]} short timeouts passed in their time, the others were served"
    )
