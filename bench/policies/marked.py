"""Policy that marks its begin and its end for bench/step_counter.c, and counts the engine's calls on request."""

import os
import sys
import time
from types import FrameType
from typing import Any

import numpy as np


class Policy:
    """Policy that returns `{"actions": float32[16, 7], "calls": [int, int]}`.

    It sleeps for the observation's `sleep_s`. The calls are those of Python functions and of built-in functions that the
    engine made since the last request, if that had a true `count_calls`; otherwise they are zero.
    """

    def __init__(self, path: object = None, device: object = None) -> None:
        """Accept the arguments of a model package's class, and use neither."""
        self._calls = {"call": 0, "c_call": 0}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        os.getppid()
        sys.setprofile(None)
        time.sleep(observation["sleep_s"])
        reply = {"actions": np.zeros((16, 7), np.float32), "calls": list(self._calls.values())}
        self._calls = dict.fromkeys(self._calls, 0)
        os.getppid()
        if observation["count_calls"]:
            sys.setprofile(self._count)
        return reply

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        # The policy's own frame ends with its return; the next call of it is the first event that is not the engine's.
        if event in self._calls and frame.f_code.co_filename != __file__:
            self._calls[event] += 1
