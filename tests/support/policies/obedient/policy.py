"""Does what the observation asks for, and counts how often it ran."""

import contextlib
import datetime
import enum
import gc
import os
import signal
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class NotForClients:
    """A type that only this file knows."""


class Pair(NamedTuple):
    first: Any
    second: Any


class Mode(enum.IntEnum):
    HOLD = 3


class Task(str, enum.Enum):
    FOLD = "fold"


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.runs = 0
        self.resets = 0
        self.tags: list[int] = []

    def infer(self, observation: dict[str, Any]) -> Any:
        self.runs += 1
        if "tag" in observation:
            self.tags.append(observation["tag"])
        return getattr(self, f"_{observation['do']}")(observation)

    def reset(self, client_id: int) -> None:
        self.resets += 1

    def _count(self, observation: dict[str, Any]) -> Any:
        return {"runs": self.runs, "resets": self.resets}

    def _tags(self, observation: dict[str, Any]) -> Any:
        tags, self.tags = self.tags, []
        return tags

    def _echo(self, observation: dict[str, Any]) -> Any:
        return observation["value"]

    def _types(self, observation: dict[str, Any]) -> Any:
        return {key: f"{type(value).__module__}.{type(value).__qualname__}" for key, value in observation.items()}

    def _wait(self, observation: dict[str, Any]) -> Any:
        gate = Path(observation["gate"])
        gate.with_suffix(".entered").touch()
        until = time.monotonic() + 60
        while not gate.exists():
            if time.monotonic() > until:
                raise TimeoutError("the test never opened its gate")
            time.sleep(0.005)
        return {"waited": True, "runs": self.runs}

    def _collector(self, observation: dict[str, Any]) -> Any:
        return {"enabled": gc.isenabled(), "frozen": gc.get_freeze_count()}

    def _sleep(self, observation: dict[str, Any]) -> Any:
        time.sleep(observation["s"])

    def _echo_after(self, observation: dict[str, Any]) -> Any:
        time.sleep(observation["s"])
        return observation["value"]

    def _grow(self, observation: dict[str, Any]) -> Any:
        return torch.full((observation["items"],), observation["value"], dtype=torch.int64)

    def _take_memory(self, observation: dict[str, Any]) -> Any:
        return len(b"\1" * observation["bytes"])

    def _raise_as(self, observation: dict[str, Any]) -> Any:
        raise type(observation["name"], (Exception,), {})(observation["text"])

    def _raise(self, observation: dict[str, Any]) -> Any:
        secret = "only-in-the-log"
        if secret:
            raise LookupError(observation["text"])

    def _raise_system_exit(self, observation: dict[str, Any]) -> Any:
        sys.exit(observation["text"])

    def _mixed(self, observation: dict[str, Any]) -> Any:
        return {
            "tensor": torch.arange(3),
            "scalar": torch.tensor(1.5),
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "ordered": OrderedDict(x=observation["x"], deep=[torch.zeros(2, requires_grad=False)]),
            "date": datetime.date(2026, 11, 22),
        }

    def _subclassed(self, observation: dict[str, Any]) -> Any:
        return {
            "ordered": OrderedDict(tensor=torch.arange(3), deep=[np.float32(1)]),
            "text": np.str_("fold"),
            "texts": np.array(["left", "right"]),
            "pair": Pair(torch.zeros(2), 1),
            "mode": Mode.HOLD,
            "task": Task.FOLD,
            "frame": np.zeros((2, 2), np.uint8).view(np.recarray),
            "weights": torch.nn.Parameter(torch.ones(2)),
            "shape": torch.zeros(2, 3).shape,
        }

    def _masked(self, observation: dict[str, Any]) -> Any:
        return {"depth": [np.ma.masked_less([1.0, 2.0], 1.5)]}

    def _circle(self, observation: dict[str, Any]) -> Any:
        circle: list[Any] = []
        circle.append(circle)
        return {"circle": circle}

    def _meta(self, observation: dict[str, Any]) -> Any:
        return {"ghost": torch.ones(2, device="meta")}

    def _unsupported(self, observation: dict[str, Any]) -> Any:
        return {"things": [NotForClients()]}

    def _unreadable(self, observation: dict[str, Any]) -> Any:
        return {"generator": (number for number in range(3))}

    def _exit(self, observation: dict[str, Any]) -> Any:
        os._exit(3)

    def _segfault(self, observation: dict[str, Any]) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _garble_once(self, observation: dict[str, Any]) -> Any:
        marker = Path(observation["marker"])
        if not marker.exists():
            marker.touch()
            for entry in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry))) as sock:
                    sock.send(bytes.fromhex(observation["bytes"]))
            time.sleep(60)
        return {"survived": True}

    def _exit_once(self, observation: dict[str, Any]) -> Any:
        marker = Path(observation["marker"])
        if not marker.exists():
            marker.touch()
            os._exit(3)
        return {"survived": True}
