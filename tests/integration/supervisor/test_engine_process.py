"""How an engine's process and what the model has started end: together, and nothing else with them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shmserve.daemon.supervisor.engine_process import EngineProcess
from tests.support.stranger_process import Stranger, needs_root


async def killed(engine: EngineProcess) -> None:
    engine.kill()


async def killed_by_another(engine: EngineProcess) -> None:
    os.kill(engine.pid, signal.SIGKILL)


async def stopped(engine: EngineProcess) -> None:
    engine.kill(signal.SIGSTOP)  # so that it is killed for it
    await engine.stop(0.1)


async def ended_by_itself(engine: EngineProcess) -> None:
    engine.close()  # as the end of the supervisor looks to it


@pytest.mark.parametrize(
    "end", [killed, killed_by_another, stopped, pytest.param(ended_by_itself, marks=pytest.mark.long)]
)
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_processes_of_a_model_are_killed_before_the_engine_s_pid_is_reused(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[EngineProcess], Awaitable[None]]
) -> None:
    states = []
    kill_group = os.killpg

    def note(group: int, number: int) -> None:
        stat = Path(f"/proc/{group}/stat")
        states.append(stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "reaped")
        kill_group(group, number)

    async def run() -> tuple[int, int]:
        engine = EngineProcess()
        await engine.start()
        waiting = asyncio.create_task(engine.wait())
        await end(engine)
        found = await waiting, await engine.wait()
        assert not engine.alive
        engine.kill()  # nobody
        engine.close()
        return found

    monkeypatch.setattr(os, "killpg", note)
    first, again = asyncio.run(run())

    assert states == ["Z"], "once, while it is a zombie"
    assert first == again == (0 if end is ended_by_itself else -signal.SIGKILL)


@needs_root
@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not schedule by sessions")
def test_an_engine_leaves_the_background_at_once_also_without_privileges() -> None:
    """The kernel lets an ordinary user change a session's priority once in a tenth of a second, all users together."""
    supervisor = Stranger("priorities")
    try:
        assert (supervisor.says(), supervisor.says()) == ("10", "0")
    finally:
        supervisor.finish()
