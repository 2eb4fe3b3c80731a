"""ActionChunks with a real daemon: restarts, updates and failures in the middle of a control loop."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client import (
    EngineLost,
    InferenceFailed,
    NoFreshAction,
    ServiceUnavailable,
    ShmServeError,
)
from shmserve.client.action_chunks import ActionChunks, ActionStep
from tests.support.daemon_process import POLICIES, Daemon, environment, wait_until
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too

PERIOD_S = 0.02


@pytest.fixture(scope="module")
def chunked() -> Iterator[Daemon]:
    """One daemon of the policy that gives chunks, for the tests that do not harm it."""
    daemon = Daemon("chunked")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def make(daemon: Daemon, **settings: Any) -> ActionChunks:
    defaults: dict[str, Any] = {"steps": 8, "period": PERIOD_S, "max_wait": 0.0, "fallback": "hold", "prefetch": 4}
    return ActionChunks(daemon.client(), **{**defaults, **settings})


def loop(chunks: ActionChunks, ended: Callable[[list[ActionStep | ShmServeError]], bool]) -> list[Any]:
    """A 50 Hz control loop: what each step gave, an ActionStep or a typed error, until `ended`."""
    found: list[ActionStep | ShmServeError] = []
    until = time.monotonic() + 60
    beat = time.monotonic()
    while not ended(found):
        assert time.monotonic() < until, found[-5:]
        try:
            found.append(chunks.step({"step": len(found)}))
        except ShmServeError as error:
            found.append(error)
        beat = max(beat + PERIOD_S, time.monotonic())
        time.sleep(max(0.0, beat - time.monotonic()))
    return found


def is_fresh(step: Any) -> bool:
    return isinstance(step, ActionStep) and step.fresh


def fresh_since(start: int, count: int = 20) -> Callable[[list[Any]], bool]:
    return lambda found: sum(map(is_fresh, found[start:])) >= count


def new_model_acts(found: list[Any]) -> bool:
    return bool(found) and is_fresh(found[-1]) and found[-1].action[2] == 2.0


def check_steps(found: list[Any]) -> None:
    """Every row is that of its chunk, of an observation not older than the steps since, and none comes twice."""
    rows = []
    for number, step in enumerate(found):
        if is_fresh(step):
            asked, row = int(step.action[0]), int(step.action[1])
            assert row == step.index and asked <= number
            rows.append((asked, row))
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows)


def restart(daemon: Daemon, how: str) -> None:
    if how == "SIGKILL":
        daemon.kill9()
    else:
        daemon.stop()


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_restart_of_the_daemon_costs_a_loop_only_the_steps_of_the_outage(
    start_daemon: Callable[..., Daemon], how: str
) -> None:
    daemon = start_daemon("chunked")
    with make(daemon) as chunks:
        found = loop(chunks, fresh_since(0))
        restart(daemon, how)
        outage = loop(chunks, lambda steps: len(steps) > 25)
        daemon.spawn()
        recovered = loop(chunks, fresh_since(0))
        daemon.wait_ready()

    check_steps(found)
    assert is_fresh(outage[0]) or outage[0].source == "hold"
    held = [step for step in outage if step.source == "hold"]
    assert held and all(not step.fresh and isinstance(step.error, ServiceUnavailable) for step in held[1:])
    assert outage[-1].source == "hold" and outage[-1].age > held[0].age
    # Not one step was without an action or raised: hold had something to repeat.
    assert all(isinstance(step, ActionStep) for step in recovered)
    assert is_fresh(recovered[-1]) and recovered[-1].error is None
    check_steps(recovered)


@pytest.mark.long
def test_with_the_rule_to_raise_a_restart_is_typed_errors_and_then_fresh_actions_again(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("chunked")
    with make(daemon, fallback="raise") as chunks:
        loop(chunks, fresh_since(0))
        daemon.kill9()
        outage = loop(chunks, lambda steps: len(steps) > 25)
        daemon.spawn()
        recovered = loop(chunks, fresh_since(0))
        daemon.wait_ready()

    errors = [step for step in outage if not isinstance(step, ActionStep)]
    assert isinstance(outage[-1], NoFreshAction)
    assert all(isinstance(error, NoFreshAction) for error in errors)
    assert isinstance(errors[-1].__cause__, ServiceUnavailable)
    assert "no daemon serves" in str(errors[-1])
    assert is_fresh(recovered[-1])


@pytest.mark.long
def test_a_loop_may_start_before_its_daemon(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("chunked")
    with make(daemon) as chunks:
        early = loop(chunks, lambda steps: len(steps) == 5)
        daemon.spawn()
        found = loop(chunks, fresh_since(0))
        daemon.wait_ready()

    assert all(isinstance(step, NoFreshAction) for step in early)
    check_steps(found)


@pytest.mark.long
def test_a_step_that_may_wait_rides_through_a_restart(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("chunked")
    with make(daemon, period=None, prefetch=0, max_wait=60.0, fallback="raise") as chunks:
        for number in range(8):
            assert chunks.step({"step": number}).index == number
        daemon.kill9()
        daemon.spawn()

        step = chunks.step({"step": 8})

        assert (int(step.action[0]), step.index, step.fresh) == (8, 0, True)
        assert chunks.stats().errors == 1
        daemon.wait_ready()


@pytest.mark.long
def test_an_update_of_the_model_ends_the_old_models_chunk(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = start_daemon("chunked")
    package = tmp_path / "other"
    shutil.copytree(POLICIES / "chunked", package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / "policy.py").read_text()
    (package / "policy.py").write_text(source.replace("MARK = 1.0", "MARK = 2.0"))
    with make(daemon, prefetch=7) as chunks:
        loop(chunks, fresh_since(0))
        command = [str(Path(sys.executable).parent / "shmserve-admin"), "--name", daemon.name]
        update = subprocess.Popen(
            [*command, "--runtime-dir", str(daemon.runtime_dir), "update-model", str(package)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = loop(chunks, new_model_acts)
        output, _ = update.communicate(timeout=60)
        found += loop(chunks, fresh_since(0))
        assert update.returncode == 0, output

    marks = [float(step.action[2]) for step in found if is_fresh(step)]
    assert marks == sorted(marks) and set(marks) == {1.0, 2.0}
    assert len({step.version for step in found}) == 2
    assert chunks.stats().version_changes == 1
    # The loop went on through the update: hold always had something.
    assert all(isinstance(step, ActionStep) for step in found)


@pytest.mark.long
def test_an_engine_that_dies_costs_one_request(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("chunked")
    with make(daemon, period=None, prefetch=0, max_wait=60.0) as chunks:
        for number in range(8):
            chunks.step({"step": number})

        step = chunks.step({"step": 8, "die": True})

        assert (step.source, step.fresh) == ("hold", False)
        assert isinstance(step.error, EngineLost)
        assert chunks.step({"step": 9}).fresh
        daemon.wait_ready()


def test_a_model_that_raises_costs_one_request(chunked: Daemon) -> None:
    with make(chunked, period=None, prefetch=0, max_wait=60.0, fallback="raise") as chunks:
        with pytest.raises(NoFreshAction, match="LookupError: no such joint") as raised:
            chunks.step({"step": 0, "fail": True})

        assert isinstance(raised.value.__cause__, InferenceFailed)
        assert chunks.step({"step": 1}).fresh


def test_a_late_chunk_is_joined_where_the_time_is(chunked: Daemon, gate: Gate) -> None:
    with make(chunked, steps=16, period=0.1, prefetch=0, max_wait=60.0) as chunks:
        chunks.step({"step": 0})
        captured = time.monotonic()
        chunks.reset()
        wait_until("three periods have passed", lambda: time.monotonic() > captured + 0.35)

        step = chunks.step({"step": 1}, capture_time=captured)

        assert step.index is not None and step.index >= 3
        assert step.age >= 0.35
        assert chunks.stats().skipped >= 3


def test_an_observation_too_old_for_a_usable_chunk_is_not_inferred(chunked: Daemon) -> None:
    engine = chunked.engine_pid
    with make(chunked, steps=2, period=0.01, prefetch=0, max_wait=30.0, fallback="raise") as chunks:
        with pytest.raises(NoFreshAction, match="too old when its turn came"):
            # An engine that ran it would end.
            chunks.step({"step": 1, "die": True}, capture_time=time.monotonic() - 5)

        assert chunks.step({"step": 2}).fresh
        assert chunked.engine_pid == engine


def test_a_chunk_that_arrives_after_its_step_is_used_by_a_later_step(chunked: Daemon, gate: Gate) -> None:
    with make(chunked, period=None, prefetch=0, fallback="raise", max_wait=60.0) as chunks:
        for number in range(8):
            chunks.step({"step": number})
        with pytest.raises(NoFreshAction, match="has not arrived within max_wait"):
            chunks.step({"step": 8, "gate": gate.observation["gate"]}, max_wait=0.05)
        gate.open()

        step = chunks.step({"step": 9})

        # Asked in the step before: its first row was for that one.
        assert (int(step.action[0]), step.index) == (8, 1)


def test_a_reset_reaches_the_policy_and_forgets_the_chunk(chunked: Daemon) -> None:
    with make(chunked, period=None, prefetch=0, max_wait=60.0) as chunks:
        before = chunks.step({"step": 0})
        chunks.reset()
        after = chunks.step({"step": 1})

    assert (int(after.action[0]), after.index) == (1, 0)
    assert after.action[3] == before.action[3] + 1


def test_a_request_in_flight_past_its_deadline_is_not_followed_by_a_second(chunked: Daemon, gate: Gate) -> None:
    client = chunked.client(timeout=0.2)
    settings: dict[str, Any] = {"steps": 8, "period": None, "fallback": "raise"}
    with ActionChunks(client, max_wait=60.0, **settings) as chunks:
        chunks.step({"step": 0})
        chunks.reset()
        for number in range(6):
            with pytest.raises(NoFreshAction):
                chunks.step({"step": number, "gate": gate.observation["gate"]}, max_wait=0.1)
        gate.open()

        step = chunks.step({"step": 6})

        assert step.fresh
        assert client.late_replies == 0
        assert chunks.stats().errors in (0, 1)  # it may have expired before it began


def test_a_closed_client_ends_the_loop(chunked: Daemon) -> None:
    client = chunked.client()
    with ActionChunks(client, steps=8, period=None, max_wait=60.0, fallback="hold") as chunks:
        chunks.step({"step": 0})
        client.close()

        with pytest.raises(ShmServeError, match="was closed"):
            loop_until_raised(chunks)


def loop_until_raised(chunks: ActionChunks) -> None:
    for number in range(100):
        chunks.step({"step": number})
        time.sleep(PERIOD_S)
