"""The policy that balances a CartPole from the last few camera frames, and nothing else of its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

HISTORY = 3
FRAME_SHAPE = (400, 600, 3)
FRAMES_SHAPE = (HISTORY, *FRAME_SHAPE)

# The cart and its pole never leave these rows. Every fourth is enough: the pole is a straight line.
ROWS = slice(168, 320, 4)
# Blue tells all parts apart: cart 0, pole 101, axle 203, background 255.
BLUE = 2

KEYPOINTS = 8
# A pixel moved between two frames is 1/300 of the picture: bring it to the scale of the positions.
VELOCITY_GAIN = 20.0


def shrink(frames: torch.Tensor) -> torch.Tensor:
    """What the network looks at: uint8[n,400,600,3] becomes float32[n,1,19,300], 0 for background, 1 for the cart."""
    dark = 1.0 - frames[:, None, ROWS, :, BLUE].to(torch.float32) / 255.0
    return functional.avg_pool2d(dark, 2)


class KeypointNet(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """Finds the same few points in every frame, and decides from where they are and how they moved.

    Spatial softmax, after Levine et al., "End-to-End Training of Deep Visuomotor Policies", JMLR 17 (2016): each
    channel of the last convolution becomes the mean position of its own activation, which is finer than a pixel.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, kernel_size=(3, 5), padding=(1, 2)),
            nn.ReLU(),
            nn.Conv2d(8, KEYPOINTS, kernel_size=1),
        )
        self.head = nn.Sequential(nn.Linear(2 * KEYPOINTS * HISTORY, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.decide = nn.Linear(64, 2)
        self.register_buffer("rows", torch.linspace(-1.0, 1.0, 10), persistent=False)
        self.register_buffer("columns", torch.linspace(-1.0, 1.0, 150), persistent=False)

    def keypoints(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32[n,1,19,300] from `shrink` to float32[n, 2 * KEYPOINTS]: the column and row of each point, -1 to 1."""
        heat = self.encoder(pictures)
        weight = torch.softmax(heat.flatten(2), dim=-1).view_as(heat)
        column = weight.sum(dim=2) @ self.columns
        row = weight.sum(dim=3) @ self.rows
        return torch.cat((column, row), dim=-1)

    def features(self, points: torch.Tensor) -> torch.Tensor:
        """float32[n, HISTORY, 2 * KEYPOINTS], oldest first, to float32[n, 64]."""
        moved = (points[:, 1:] - points[:, :-1]) * VELOCITY_GAIN
        features: torch.Tensor = self.head(torch.cat((points[:, -1:], moved), dim=1).flatten(1))
        return features

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32[HISTORY,1,19,300], oldest first, to the two logits, float32[2]."""
        logits: torch.Tensor = self.decide(self.features(self.keypoints(pictures)[None]))[0]
        return logits


class Policy:
    """From `{"frames": uint8[3,400,600,3]}`, oldest first, to `{"action": 0 | 1, "logits": float32[2]}`."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._net = KeypointNet()
        self._net.load_state_dict(load_file(path / "weights.safetensors"))
        self._net.to(device).eval()

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Push left (0) or right (1), for the moment of the last frame.

        Raises ValueError if the frames are of another shape or dtype: a robot with another camera must hear of it.
        """
        frames = observation["frames"]
        if tuple(frames.shape) != FRAMES_SHAPE or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames are {frames.dtype}{list(frames.shape)}, this policy was trained on uint8{list(FRAMES_SHAPE)}: "
                "send the last frames of CartPole-v1's rgb_array rendering, oldest first, at their full size"
            )
        with torch.inference_mode():
            logits = self._net(shrink(frames))
        return {"action": int(logits.argmax()), "logits": logits}

    def example_observation(self) -> dict[str, Any]:
        """An observation of the right shape, for warming up: an empty white picture."""
        return {"frames": np.full(FRAMES_SHAPE, 255, dtype=np.uint8)}

    def metadata(self) -> dict[str, Any]:
        """What a robot needs to know before it asks."""
        return {
            "observation": {"frames": {"dtype": "uint8", "shape": list(FRAMES_SHAPE), "order": "oldest first"}},
            "action": {"action": "0 pushes left, 1 pushes right", "logits": {"dtype": "float32", "shape": [2]}},
            "control_rate_hz": 50,
            "parameters": sum(p.numel() for p in self._net.parameters()),
        }
