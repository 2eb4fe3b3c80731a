"""Loads for as long as the file that GATE names is not there."""

import os
import time
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        gate = Path(os.environ["GATE"])
        gate.with_suffix(".entered").touch()
        until = time.monotonic() + 60
        while not gate.exists():
            if time.monotonic() > until:
                raise TimeoutError("the test never opened its gate")
            time.sleep(0.005)

    def infer(self, observation: dict[str, Any]) -> Any:
        return observation["value"]
