"""Models that run in the process and behind the service: no model, a small convolution, the encoder of a ViT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: Set to 1 for a rehearsal: a small image, and an encoder of one narrow layer. Daemons and engines inherit it.
SMALL = "BENCH_GPU_SMALL"
IS_SMALL = os.environ.get(SMALL) == "1"
SHAPE = (64, 64, 3) if IS_SMALL else (480, 640, 3)
_LAYERS, _WIDTH, _IMAGE = (1, 48, 32) if IS_SMALL else (12, 768, 224)
_HEADS = 12


class Nothing(nn.Module):  # type: ignore[misc]
    """Model that returns the first seven bytes: only the transfer remains."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten()[:7].float()


class Convolution(nn.Module):  # type: ignore[misc]
    """Model with three layers and a head, like a small visuomotor policy."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
        ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(1024, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(image.permute(2, 0, 1).unsqueeze(0).float() / 255))
        return found[0]


class Encoder(nn.Module):  # type: ignore[misc]
    """Model of the size of a ViT-B: 12 layers of 768, patches of 16 (in a rehearsal one layer of 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, 16, 16)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 4 * _WIDTH, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scaled = nn.functional.interpolate(image.permute(2, 0, 1).unsqueeze(0).float() / 255, (_IMAGE, _IMAGE))
        found: torch.Tensor = self.head(self.body(self.patches(scaled).flatten(2).transpose(1, 2)).mean(1))
        return found[0]


MODELS: dict[str, type[nn.Module]] = {"nothing": Nothing, "convolution": Convolution, "encoder": Encoder}


def made(name: str, device: torch.device) -> nn.Module:
    """Make the model, with the same weights every time."""
    torch.manual_seed(0)
    return MODELS[name]().eval().to(device)


class _Policy:
    """Policy with one of the models, for the daemon."""

    model = ""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._model = made(self.model, device)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"action": self._model(observation["image"])}

    def example_observation(self) -> dict[str, Any]:
        return {"image": torch.zeros(SHAPE, dtype=torch.uint8)}


class NothingPolicy(_Policy):
    model = "nothing"


class ConvolutionPolicy(_Policy):
    model = "convolution"


class EncoderPolicy(_Policy):
    model = "encoder"
