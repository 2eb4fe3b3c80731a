"""Has a thread of its own and threads of torch and numpy; says how its threads and programs are scheduled."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

_POLICY_OF_A_PROGRAM = "import os; print(os.sched_getscheduler(0))"


def _scheduled(thread: int = 0) -> int:
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self._own = threading.Thread(target=threading.Event().wait, daemon=True)
        self._own.start()
        # Large enough for more than one thread.
        torch.ones(512, 512) @ torch.ones(512, 512)

    def infer(self, observation: dict[str, Any]) -> Any:
        assert self._own.native_id is not None
        libraries = {*map(int, os.listdir("/proc/self/task"))} - {os.getpid(), self._own.native_id}
        of_libraries = [_scheduled(each) for each in libraries]
        program = subprocess.run([sys.executable, "-c", _POLICY_OF_A_PROGRAM], capture_output=True, check=True)
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(_scheduled()))
        thread.start()
        thread.join()
        return {
            "serving": _scheduled(),
            "own": _scheduled(self._own.native_id),
            "libraries": of_libraries,
            "later": later[0],
            "program": int(program.stdout),
        }
