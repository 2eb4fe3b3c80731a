"""States of the machine that the benchmarks measure in: their busy programs run, and end; none of this asserts a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import busy_loop, states
from bench.peers.cpu_time import of_trees
from bench.states import STATES, Load
from tests.support.daemon_process import is_running, wait_until

ROOT = Path(states.__file__).parent.parent


class Clock:
    """Replacement for the module `time` in which every look at a clock takes 10 us of processor time."""

    def __init__(self) -> None:
        self.now = self.used = self.slept = 0

    def monotonic_ns(self) -> int:
        self.now += 10_000
        self.used += 10_000
        return self.now

    def thread_time_ns(self) -> int:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        self.slept += int(seconds * 1e9)


@pytest.mark.parametrize(("busy_ms", "share"), [(4, 0.5), (2, 0.25), (8, 1.0)])
def test_a_busy_loop_uses_its_part_of_every_period(monkeypatch: pytest.MonkeyPatch, busy_ms: int, share: float) -> None:
    clock = Clock()
    monkeypatch.setattr(busy_loop, "time", clock)

    busy_loop.run(busy_ms * busy_loop.MS, 8 * busy_loop.MS, 0, 800 * busy_loop.MS)

    assert clock.used / clock.now == pytest.approx(share, abs=0.01)
    assert clock.now == pytest.approx(800 * busy_loop.MS, rel=0.01)


def test_a_busy_loop_without_a_processor_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(busy_loop, "time", clock)
    clock.now = 400 * busy_loop.MS

    busy_loop.run(4 * busy_loop.MS, 8 * busy_loop.MS, 0, 800 * busy_loop.MS)

    assert clock.used == pytest.approx(200 * busy_loop.MS, rel=0.05)


@pytest.mark.parametrize("name", ["disturbed", "busy"])
def test_the_loops_of_a_state_run_in_its_block_and_end_with_it(name: str) -> None:
    with Load(STATES[name]) as load:
        pids = load.pids()
        running = [is_running(pid) for pid in pids]
        used = of_trees(pids)
        wait_until("the loops have used a processor", lambda: of_trees(pids) > used)

    assert running == [True] * STATES[name].loops() != []
    assert not any(map(is_running, pids))
    assert 0 < load.share() <= 1


def test_a_quiet_machine_has_no_loops() -> None:
    with Load(STATES["quiet"]) as load:
        assert load.pids() == []

    assert load.share() == 0.0


def test_a_load_that_ends_before_the_measurement_fails_it() -> None:
    with pytest.raises(RuntimeError, match="ended before the measurement"), Load(STATES["busy"], 0.01) as load:
        wait_until("the loops have ended", lambda: not any(map(is_running, load.pids())))


def test_a_killed_benchmark_takes_its_busy_loops_with_it() -> None:
    program = (
        "import time\n"
        "from bench.states import STATES, Load\n"
        "with Load(STATES['disturbed'], 600) as load:\n"
        "    print(*load.pids(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as benchmark:
        assert benchmark.stdout is not None
        pids = list(map(int, benchmark.stdout.readline().split()))
        assert pids and all(map(is_running, pids))

        benchmark.send_signal(signal.SIGKILL)

    wait_until("the loops have ended", lambda: not any(map(is_running, pids)))


def test_a_busy_loop_whose_parent_has_ended_does_not_begin() -> None:
    command = [sys.executable, "-IS", str(states.PROGRAM), "8", "8", "600", "0", str(os.getppid())]

    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)

    assert done.stdout == b""


def test_a_command_runs_in_a_state_and_its_status_is_returned(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import sys; print('ran'); sys.exit(3)"]

    status = states.main(["busy", "--seconds", "60", "--", *command])

    said = capfd.readouterr()
    assert status == 3
    assert said.out == "ran\n"
    assert "% of the processors" in said.err
