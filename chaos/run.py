"""Command that injects the faults and prints the account.

    python -m chaos.run [--transport named] [--client-kills 1000] [--only updates --updates 3] ...

Each fault has a separate daemon and robots. The exit status is 0 if every request is accounted for, every reply was
correct, no process hangs, and no object in /dev/shm, process or socket is left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from chaos.c_robots import kill_beside_c_clients
from chaos.clocks import step_clock
from chaos.failing_calls import fail_calls
from chaos.forks import fork_clients
from chaos.full_filesystems import fill_disk, fill_shared_memory
from chaos.growth import attach_and_detach, many_requests
from chaos.kills import kill_clients, kill_engines, kill_spares, kill_supervisors
from chaos.service import Service
from chaos.shortages import no_descriptors
from chaos.stalls import never_read, stop_and_go
from chaos.storms import signal_storm
from chaos.updates import kill_during_updates

_STOP_S = 2.0


@dataclass(frozen=True)
class Fault:
    """Fault: its default number for each transport, the text of its count, and the function that injects it."""

    count: int
    counted: str
    act: Callable[[Service, int], str]
    #: It mounts file systems, and runs in a separate mount namespace.
    mounts: bool = False
    #: It starts the daemon itself, in an environment that it prepares.
    begins: bool = False
    #: It needs a C compiler.
    compiles: bool = False
    #: Its daemon keeps a spare engine.
    spare: bool = False


FAULTS = {
    "client-kills": Fault(500, "clients killed", kill_clients),
    "engine-kills": Fault(50, "engines killed", kill_engines),
    "spare-kills": Fault(20, "engines killed together with the spare one", kill_spares, spare=True),
    "supervisor-kills": Fault(50, "supervisors killed", kill_supervisors),
    "c-clients": Fault(
        100, "clients in C killed, engines and supervisors beside others", kill_beside_c_clients, compiles=True
    ),
    "stops": Fault(6, "SIGSTOPs", lambda service, count: stop_and_go(service, count, _STOP_S)),
    "silent": Fault(10, "clients that never read", never_read),
    "forks": Fault(20, "clients killed that have forked", fork_clients),
    "storm": Fault(10, "seconds of signals", signal_storm),
    "clock-steps": Fault(12, "steps of the wall clock", step_clock, begins=True, compiles=True),
    "updates": Fault(12, "updates with a kill in each", kill_during_updates),
    "failing-calls": Fault(12, "up to the N-th call of each function", fail_calls, compiles=True),
    "descriptors": Fault(4, "times without descriptors", no_descriptors),
    "full-memory": Fault(4, "times a full /dev/shm", fill_shared_memory, begins=True, mounts=True),
    "full-disk": Fault(10, "models that arrive at a full disk", fill_disk, begins=True, mounts=True),
    "attachments": Fault(0, "clients that attach and leave, for growth", attach_and_detach),
    "requests": Fault(0, "requests of one client, for growth", many_requests),
}
_UNSHARED = "CHAOS_OWN_MOUNTS"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transport", action="append", choices=("named", "sealed"), help="both unless given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", action="append", choices=list(FAULTS), help="run this fault, and no others except those also named"
    )
    for name, fault in FAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=fault.count, metavar="N", help=fault.counted)
    found = parser.parse_args()
    for transport in found.transport or ("named", "sealed"):
        for name, fault in FAULTS.items():
            count = getattr(found, name.replace("-", "_"))
            if count and name in (found.only or FAULTS):
                _make(transport, name, fault, count, found.seed)
    if _UNSHARED not in os.environ:
        print("every request accounted for, nothing left behind")
    return 0


def _make(transport: str, name: str, fault: Fault, count: int, seed: int) -> None:
    """Inject a fault and print its account, or the reason why it cannot be injected."""
    if fault.compiles and shutil.which("cc") is None:
        print(f"{transport}: {name} not run: a C compiler is missing")
    elif fault.mounts and _UNSHARED not in os.environ:
        if os.geteuid() or shutil.which("unshare") is None:
            print(f"{transport}: {name} not run: mounting takes root and unshare")
            return
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "chaos.run"]
        command += ["--transport", transport, "--seed", str(seed), "--only", name, f"--{name}", str(count)]
        subprocess.run(command, check=True, env={**os.environ, _UNSHARED: "1"})
    else:
        began_s = time.monotonic()
        service = Service(transport, seed, begins=not fault.begins, spare=fault.spare)
        with service:
            said = fault.act(service, count)
        print(f"{transport}: {said}\n    {service.account}; {time.monotonic() - began_s:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
