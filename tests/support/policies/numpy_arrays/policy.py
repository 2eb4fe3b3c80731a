"""Says what it was given, changes it, and keeps parts of what it was given last."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.kept: deque[tuple[int, np.ndarray]] = deque(maxlen=8)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        if "frame" not in observation:
            return {key: [type(value).__name__, str(getattr(value, "dtype", ""))] for key, value in observation.items()}
        step, frame = observation["step"], observation["frame"]
        frame += 1
        frame.shape = (-1,)  # of the policy's own object: the next request has an array of its own
        parts = {"whole": frame, "part": frame[7:], "other dtype": frame.view(np.uint8)}
        if observation["keep"] in parts:
            self.kept.append((step, parts[observation["keep"]]))
        return {"steps": [step for step, _ in self.kept], "frames": [frame for _, frame in self.kept]}
