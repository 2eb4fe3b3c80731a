"""Updates while engines, the supervisor and robots are killed: each result is from exactly one version."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.service import Service, wait_served
from shmserve.client import ShmServeError
from shmserve.varlink import VarlinkError
from tests.support.admin_command import engines_of, update

_KILLED = ("engine", "robot", "supervisor")


def kill_during_updates(service: Service, updates: int) -> str:
    """Run updates with a kill in each: an update is accepted or refused, and every reply names its version."""
    robots = service.busy_robots(3)
    gains = (2, 3)
    outcomes: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        for number in range(updates):
            changing = pool.submit(_outcome, service, service.package(gains[number % 2]))
            time.sleep(service.random.uniform(0, 1.5))
            who = _KILLED[number % len(_KILLED)]
            killed[who] += 1
            if who == "robot":
                victim = robots.pop(0)
                victim.send(signal.SIGKILL)
                service.settle(victim, killed=True)
                robots += service.busy_robots(1)
            elif who == "engine":  # the serving engine, or the new one
                os.kill(service.random.choice(engines_of(service.daemon.pid)), signal.SIGKILL)
            else:
                service.daemon.kill9()
                service.daemon.package = None  # the version that served last
                service.daemon.start()
            outcomes[changing.result()] += 1
            wait_served(robots, 3)
            service.daemon.wait_ready()
    update(service.daemon, service.package(gains[updates % 2]))
    wait_served(robots, 3)
    return (
        f"{updates} updates under load with a kill in each ({', '.join(f'{who} {n}' for who, n in killed.items())}): "
        f"{', '.join(f'{outcome} {n}' for outcome, n in sorted(outcomes.items()))}; the next one was taken"
    )


def _outcome(service: Service, package: Path) -> str:
    try:
        return "taken" if update(service.daemon, package)["changed"] else "served already"
    except VarlinkError:
        return "refused"
    except (ShmServeError, ConnectionError):
        return "cut off with the supervisor"
