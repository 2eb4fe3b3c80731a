"""When a spare engine is not kept, or not used: want of memory, another release, a service that is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shmserve.daemon.config.config import Config
from shmserve.daemon.ipc.release import Installation
from shmserve.daemon.supervisor import spare_engine
from shmserve.daemon.supervisor.spare_engine import SpareEngine, SpareState
from tests.support.daemon_process import hurry

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

Wait = Callable[[SpareState], Awaitable[None]]


class Keeping:
    """A spare engine that is kept in this process's event loop."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = Config(tmp_path, tmp_path)
        self.calm_s = 9.0
        self.shortage: dict[int, str] = {}
        monkeypatch.setattr(spare_engine, "memory_shortage", lambda needed, stalled: self.shortage.get(needed))
        monkeypatch.setattr(spare_engine, "_CHECK_S", 0.01)
        monkeypatch.setattr(spare_engine, "_CALM_S", 0.01)
        monkeypatch.setattr(spare_engine, "_MEMORY_PAUSE_S", 0.1)

    def run(self, story: Callable[[SpareEngine, Wait], Awaitable[None]]) -> None:
        async def main() -> None:
            spare = SpareEngine(self.config, lambda: self.calm_s)
            keeper = asyncio.create_task(spare.run())

            async def wait(state: SpareState) -> None:
                while spare.status.state is not state:
                    assert not keeper.done()
                    if spare.status.pid is not None:
                        hurry(spare.status.pid)
                    await asyncio.sleep(0.01)

            try:
                await story(spare, wait)
            finally:
                keeper.cancel()
                await spare.kill()

        asyncio.run(main())


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeping:
    return Keeping(tmp_path, monkeypatch)


def test_it_is_ended_when_memory_runs_short_and_started_again_later(
    keeping: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(spare: SpareEngine, wait: Wait) -> None:
        keeping.shortage = {spare_engine.START_BYTES: "little is left"}
        await wait(SpareState.NO_MEMORY)
        assert spare.status.reason == "little is left" and spare.take() is None
        keeping.shortage = {}
        await wait(SpareState.READY)
        pid = spare.status.pid
        keeping.shortage = {spare_engine.START_BYTES: "too little", spare_engine.KEEP_BYTES: "too little"}
        await wait(SpareState.NO_MEMORY)
        assert (spare.status.pid, spare.status.memory_bytes, spare.take()) == (None, None, None)
        keeping.shortage = {}
        await wait(SpareState.READY)
        assert spare.status.pid != pid

    with caplog.at_level("INFO"):
        keeping.run(story)

    assert [line for line in caplog.messages if "no spare" in line] == [
        "no spare engine is kept: little is left",
        "no spare engine is kept: too little",
    ]


def test_none_is_started_while_robots_wait(keeping: Keeping) -> None:
    async def story(spare: SpareEngine, wait: Wait) -> None:
        keeping.calm_s = 0.0
        await asyncio.sleep(0.2)
        assert spare.status.state is SpareState.WAITING and spare.status.pid is None
        keeping.calm_s = 9.0
        await wait(SpareState.STARTING)

    keeping.run(story)


def test_one_that_is_still_importing_is_used_too(keeping: Keeping) -> None:
    async def story(spare: SpareEngine, wait: Wait) -> None:
        await wait(SpareState.STARTING)
        engine = spare.take()
        assert engine is not None and engine.alive
        assert spare.status.state is SpareState.WAITING and spare.status.uses == 1
        engine.kill()
        await engine.wait()
        engine.close()

    keeping.run(story)


def test_one_from_before_another_release_was_installed_is_never_used(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(number: int) -> None:
        monkeypatch.setattr(Installation, "present", classmethod(lambda cls: cls(((number, 2, 3), None))))

    async def story(spare: SpareEngine, wait: Wait) -> None:
        await wait(SpareState.READY)
        first = spare.status.pid
        install(1)
        assert spare.take() is None, "noticed as it is needed"
        await wait(SpareState.READY)
        second = spare.status.pid
        assert second not in (None, first)
        install(2)
        while spare.status.pid == second:  # noticed at once
            await asyncio.sleep(0.01)
        await wait(SpareState.READY)
        assert spare.status.pid not in (None, first, second)

    keeping.run(story)


def test_the_installation_is_another_one_once_a_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "__init__.py"
    module.write_text("")
    monkeypatch.setattr("shmserve.__file__", str(module))
    before = Installation.present()
    assert Installation.present() == before

    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(module)
    after = Installation.present()
    module.unlink()

    assert len({before, after, Installation.present()}) == 3
