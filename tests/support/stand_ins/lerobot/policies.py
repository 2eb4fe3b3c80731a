"""A policy whose arithmetic a test can follow, behind LeRobot's methods, and processors that normalise."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from .configs import PolicyFeature, PreTrainedConfig


class ACTPolicy(torch.nn.Module):  # type: ignore[misc]
    """Row i of a chunk moves every joint by i + 1 times the mean of the camera's picture."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig) -> ACTPolicy:
        policy = cls(config)
        policy.to(config.device).eval()
        return policy

    def reset(self) -> None:
        self._queue: deque[torch.Tensor] = deque()

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        state = batch["observation.state"]
        pictures = [batch[name] for name in self.config.image_features]
        for name, picture in zip(self.config.image_features, pictures, strict=True):
            assert picture.shape == (1, *self.config.image_features[name].shape)
            assert picture.dtype == torch.float32 and 0 <= float(picture.min()) <= float(picture.max()) <= 1
        assert state.shape == (1, *self.config.input_features["observation.state"].shape)
        assert isinstance(batch["task"], list)
        step = torch.stack([picture.mean() for picture in pictures]).mean()
        rows = torch.arange(1, self.config.chunk_size + 1, dtype=torch.float32)
        return state[:, None] + step * rows[None, :, None]

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).unbind(1))
        return self._queue.popleft()


def get_policy_class(name: str) -> type[ACTPolicy]:
    if name != "act":
        raise ValueError(f"Policy type '{name}' is not available.")
    return ACTPolicy


class NormalizationMode(str, Enum):
    IDENTITY = "IDENTITY"
    MEAN_STD = "MEAN_STD"


@dataclass
class _Normalizer:
    """Passes a feature on as it is if there are no statistics for it."""

    features: dict[str, PolicyFeature]
    norm_map: dict[str, NormalizationMode]
    stats: dict[str, dict[str, list[float]]]

    def scale(self, name: str) -> torch.Tensor:
        return torch.tensor(self.stats.get(name, {"std": [1.0]})["std"])


_MODES = {
    "STATE": NormalizationMode.MEAN_STD,
    "ACTION": NormalizationMode.MEAN_STD,
    "VISUAL": NormalizationMode.IDENTITY,
}


class _Before:
    def __init__(self, device: str, normalizer: _Normalizer) -> None:
        self._device = device
        self.steps = [object(), normalizer]
        self._normalizer = normalizer

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        state = batch["observation.state"].to(self._device) / self._normalizer.scale("observation.state")
        return {**batch, "observation.state": state, "task": [batch["task"]]}

    def reset(self) -> None:
        pass


class _After:
    def __init__(self, normalizer: _Normalizer) -> None:
        self.steps = [normalizer, object()]
        self._normalizer = normalizer

    def __call__(self, action: torch.Tensor) -> torch.Tensor:
        assert action.ndim == 2  # [batch, joints]
        return action * self._normalizer.scale("action")

    def reset(self) -> None:
        pass


def make_pre_post_processors(
    policy_cfg: PreTrainedConfig,
    pretrained_path: str | None = None,
    *,
    preprocessor_overrides: dict[str, Any],
    postprocessor_overrides: dict[str, Any],
) -> tuple[_Before, _After]:
    assert pretrained_path is not None
    stats = json.loads((Path(pretrained_path) / "policy_preprocessor.json").read_text())
    features = {**policy_cfg.input_features, **policy_cfg.output_features}
    before = _Before(preprocessor_overrides["device_processor"]["device"], _Normalizer(features, _MODES, stats))
    return before, _After(_Normalizer(policy_cfg.output_features, _MODES, stats))
