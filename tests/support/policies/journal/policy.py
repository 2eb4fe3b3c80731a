"""Writes down what it is asked before it does it, so that a test can count, whatever happens to this process."""

import os
import time
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        pass

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        with open(observation["journal"], "a") as journal:
            journal.write(f"{observation['tag']}\n")
            journal.flush()
            os.fsync(journal.fileno())
        if observation.get("fail"):
            raise LookupError("as it was told")
        if "gate" in observation:
            until = time.monotonic() + 60
            while not Path(observation["gate"]).exists() and time.monotonic() < until:
                time.sleep(0.005)
        return {"tag": observation["tag"]}
