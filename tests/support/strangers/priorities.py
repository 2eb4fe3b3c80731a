"""Moves a process of its own to the background and at once to the foreground, as a supervisor without privileges does."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from unittest import mock

from shmserve.daemon.supervisor import engine_process
from tests.support.stranger_process import become


def _sleeper(control: int, stats: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, start_new_session=True)


async def main() -> None:
    become()
    with mock.patch.object(engine_process, "_spawn", _sleeper):
        engine = engine_process.EngineProcess()
        await engine.start()
    session = Path(f"/proc/{engine.pid}/autogroup")
    for in_background, niceness in ((True, "10"), (False, "0")):
        engine.in_background = in_background
        while session.read_text().split()[-1] != niceness:  # other users' changes count as well
            await asyncio.sleep(0.02)
        print(session.read_text().split()[-1], flush=True)
    engine.kill()
    await engine.wait()
    engine.close()


if __name__ == "__main__":
    asyncio.run(main())
