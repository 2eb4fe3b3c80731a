"""Keeps references to its last observations since step 0, parts of them and none at all in turn, and gives them all back."""

from collections import deque
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.kept: deque[tuple[int, torch.Tensor]] = deque(maxlen=8)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        step, frame = observation["step"], observation["frame"]
        keep = observation["keep"]
        if step == 0:
            self.kept.clear()
        if keep == "whole":
            self.kept.append((step, frame))
        elif keep == "row":
            self.kept.append((step, frame[1]))
        elif keep == "numpy":
            self.kept.append((step, torch.from_numpy(frame.cpu().numpy()[2:])))
        return {"steps": [step for step, _ in self.kept], "frames": [frame for _, frame in self.kept]}
