"""SIGKILL to clients, engines and the supervisor, at random microseconds and at named steps."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from chaos.service import RobotProcess, Service, naming, wait_served
from chaos.steps import steps
from tests.support.daemon_process import wait_until

#: Longest life of a robot before it is killed: to attach, to send requests, to wait.
_LIFE_S = 0.03
_REACH_S = 2.0
_RECLAIM_LIMIT_S = 10.0
#: Steps of an engine's start: see daemon/engine/engine.py.
_ENGINE_STEPS = ("loading", "loaded", "warm", "serve", "serving")
#: A daemon whose model cannot be loaded ends within this time.
_END_LIMIT_S = 30.0
#: More results than a robot can have in flight.
_SEVERAL = 5
#: The spare engine may be killed at any moment of its start, or as it takes over.
_SPARE_START_S, _TAKE_OVER_S = 4.0, 0.02


def kill_clients(service: Service, kills: int) -> str:
    """Kill clients beside two robots that must not notice: half of the kills at a random moment, half at a named step."""
    honest = service.busy_robots(2)
    supervisor, engine = service.daemon.pid, service.daemon.engine_pid
    baseline = service.objects()
    reclaimed_ms: list[float] = []
    reached: list[str] = []
    unreached: set[str] = set()
    named = steps(service.transport)
    for number in range(kills):
        step = named[number // 2 % len(named)] if number % 2 else None
        # Every second one resizes, and one that is to die as it leaves does so soon.
        victim = service.robot(
            window=3, step=step, grows=number % 4 > 1 or step is not None, cycles=12 if step else None
        )
        if number % 4 == 0:  # on a busy machine the others, perhaps all of them, may die before they have a channel
            wait_until("the robot holds a channel", lambda: service.objects() > baseline)
        until_s = time.monotonic() + (_REACH_S if step else service.random.uniform(0, _LIFE_S))
        while step and not victim.ended and time.monotonic() < until_s:
            time.sleep(0.0005)
        time.sleep(max(0.0, until_s - time.monotonic()) if not step else 0)
        if step and victim.ended:
            reached.append(step)
        elif step:
            unreached.add(step)
        if not victim.ended:
            held = service.objects() > baseline
            victim.kill(_RECLAIM_LIMIT_S)
            if held:
                reclaimed_ms.append(_until_reclaimed(service, victim, baseline) * 1000)
        with naming(victim.pid, supervisor, engine):
            wait_until("the channel is reclaimed", lambda: service.objects() <= baseline)
        service.settle(victim, killed=True)
    wait_served(honest, 3)
    assert (service.daemon.pid, service.daemon.engine_pid) == (supervisor, engine), "the service did not survive"
    reclaimed_ms.sort()
    p50, p99 = (reclaimed_ms[int(len(reclaimed_ms) * part)] for part in (0.5, 0.99))
    return (
        f"{kills} clients killed, {len(reached)} of them by themselves at {len(set(reached))} named steps; channel reclaimed "
        f"after p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {reclaimed_ms[-1]:.1f} ms (of {len(reclaimed_ms)} that held "
        f"one); not reached: {', '.join(sorted(unreached)) or 'none'}"
    )


def _until_reclaimed(service: Service, victim: RobotProcess, baseline: int) -> float:
    """Return the seconds from now, when the client is dead, until its channel's memory is given up."""
    began_s = time.monotonic()
    with naming(victim.pid, service.daemon.pid):
        while service.objects() > baseline:
            assert time.monotonic() - began_s < _RECLAIM_LIMIT_S, "the channel of a dead client is not reclaimed"
            time.sleep(0.0002)
    return time.monotonic() - began_s


def kill_engines(service: Service, kills: int) -> str:
    """Kill engines under the load of three robots, each time until the next engine serves all of them."""
    robots = service.busy_robots(3)
    outages_s = []
    for _ in range(kills):
        time.sleep(service.random.uniform(0, 0.2))
        os.kill(service.daemon.engine_pid, signal.SIGKILL)
        outages_s.append(wait_served(robots, _SEVERAL))
        service.daemon.wait_ready()
    return f"{kills} engines killed under load; every robot was served again after {_span(outages_s)}"


def kill_spares(service: Service, kills: int) -> str:
    """Kill the spare engine as it starts, as it waits and as it takes over from a killed engine; some are stopped instead."""
    robots = service.busy_robots(3)
    outages_s = []
    for number in range(kills):
        if number % 4:
            service.daemon.wait_spare()
        else:
            time.sleep(service.random.uniform(0, _SPARE_START_S))
        spare = service.daemon.status()["engine"]["spare"]["pid"]
        engine = service.daemon.engine_pid
        first, second = (spare, engine) if number % 2 else (engine, spare)
        for pid in (first, second):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if pid == spare and number % 5 == 0 else signal.SIGKILL)
            time.sleep(service.random.uniform(0, _TAKE_OVER_S))
        outages_s.append(wait_served(robots, _SEVERAL))
        service.daemon.wait_ready()
    return (
        f"{kills} times the engine killed, and the spare engine killed or stopped as it took over; every robot was served "
        f"again after {_span(outages_s)}"
    )


def kill_supervisors(service: Service, kills: int) -> str:
    """Kill the supervisor: engines die with it, robots attach to its successor, which sweeps the names.

    The engine of every second successor kills itself at a named step of its start.
    """
    robots = service.busy_robots(3)
    outages_s = []
    at_steps = 0
    for number in range(kills):
        time.sleep(service.random.uniform(0, 0.2))
        service.daemon.kill9()
        service.daemon.environment.pop("SHMSERVE_FAILPOINTS", None)
        if number % 2:
            step = _ENGINE_STEPS[number // 2 % len(_ENGINE_STEPS)]
            service.daemon.environment["SHMSERVE_FAILPOINTS"] = f"engine.1.{step}=kill"
            at_steps += 1
        service.daemon.package = None  # the version that served last
        if number % 2 and not _lives(service):
            # A daemon whose first engine dies before it serves ends and says why; systemd starts it again.
            service.daemon.environment.pop("SHMSERVE_FAILPOINTS")
            service.daemon.start()
        elif number % 2 == 0:
            service.daemon.start()
        outages_s.append(wait_served(robots, _SEVERAL))
    service.daemon.environment.pop("SHMSERVE_FAILPOINTS", None)
    return (
        f"{kills} supervisors killed under load, {at_steps} successors' engines killed at named steps; every robot was "
        f"served {_span(outages_s)} after the successor was ready"
    )


def _lives(service: Service) -> bool:
    """Return whether a daemon whose first engine kills itself still serves."""
    process = service.daemon.spawn()
    try:
        service.daemon.wait_ready()
    except AssertionError:
        # It may answer once more that it has failed before it ends.
        process.wait(timeout=_END_LIMIT_S)
        return False
    return True


def _span(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} s (median), {ordered[-1]:.2f} s (longest)"
