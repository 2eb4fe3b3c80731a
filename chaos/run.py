"""Runs the faults and prints the account.

    python -m chaos.run [--transport named] [--client-kills 1000] [--engine-kills 100] [--supervisor-kills 100] ...

Each fault has a daemon and robots of its own. Ends with 0 if every request is accounted for, every answer was right,
nobody hangs and nothing is left: no object in /dev/shm, no process, no socket.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from chaos.failing_calls import fail_calls
from chaos.growth import attach_and_detach, many_requests
from chaos.kills import kill_clients, kill_engines, kill_supervisors
from chaos.service import Service
from chaos.shortages import no_descriptors
from chaos.stalls import never_read, stop_and_go

Fault = Callable[[Service], str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transport", action="append", choices=("named", "sealed"), help="both unless given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client-kills", type=int, default=500, metavar="N", help="for each transport")
    parser.add_argument("--engine-kills", type=int, default=50, metavar="N")
    parser.add_argument("--supervisor-kills", type=int, default=50, metavar="N")
    parser.add_argument("--stops", type=int, default=6, metavar="N", help="SIGSTOPs")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each SIGSTOP lasts")
    parser.add_argument("--silent", type=int, default=10, metavar="N", help="clients that never read")
    parser.add_argument(
        "--failing-calls", type=int, default=12, metavar="N", help="up to the N-th call of each function"
    )
    parser.add_argument("--descriptors", type=int, default=4, metavar="N", help="times without descriptors")
    parser.add_argument("--attachments", type=int, default=0, metavar="N", help="attach and detach so often")
    parser.add_argument("--requests", type=int, default=0, metavar="N", help="of one client, for growth")
    found = parser.parse_args()
    faults: list[tuple[int, Fault]] = [
        (found.client_kills, lambda service: kill_clients(service, found.client_kills)),
        (found.engine_kills, lambda service: kill_engines(service, found.engine_kills)),
        (found.supervisor_kills, lambda service: kill_supervisors(service, found.supervisor_kills)),
        (found.stops, lambda service: stop_and_go(service, found.stops, found.seconds)),
        (found.silent, lambda service: never_read(service, found.silent)),
        (found.failing_calls, lambda service: fail_calls(service, found.failing_calls)),
        (found.descriptors, lambda service: no_descriptors(service, found.descriptors)),
        (found.attachments, lambda service: attach_and_detach(service, found.attachments)),
        (found.requests, lambda service: many_requests(service, found.requests)),
    ]
    for transport in found.transport or ("named", "sealed"):
        for count, fault in faults:
            if not count:
                continue
            began_s = time.monotonic()
            service = Service(transport, found.seed)
            with service:
                said = fault(service)
            print(f"{transport}: {said}\n    {service.account}; {time.monotonic() - began_s:.0f} s", flush=True)
    print("every request accounted for, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
