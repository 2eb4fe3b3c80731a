"""Policies by type, and the processors that a checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .modeling import ACTPolicy, DiffusionPolicy, SmolVLAPolicy

#: The plugin's type is known once utils.import_utils.register_third_party_plugins has run.
POLICIES: dict[str, type[Any]] = {"act": ACTPolicy, "diffusion": DiffusionPolicy, "smolvla": SmolVLAPolicy}


def get_policy_class(name: str) -> type[Any]:
    if name not in POLICIES:
        raise ValueError(f"Unknown policy name '{name}'. Available policies: {list(POLICIES)}")
    return POLICIES[name]


class _Scale:
    """Passes a feature on as it is if there are no statistics for it."""

    def __init__(self, state: Path, *, inverse: bool) -> None:
        self._statistics = load_file(state)
        self._inverse = inverse

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: self._scaled(name, value) for name, value in batch.items()}

    def _scaled(self, name: str, value: Any) -> Any:
        if f"{name}.mean" not in self._statistics:
            return value
        mean, std = (self._statistics[f"{name}.{each}"] for each in ("mean", "std"))
        return value * std + mean if self._inverse else (value - mean) / (std + 1e-8)


def _step(path: Path, entry: dict[str, Any], overrides: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    name = entry["registry_name"]
    settings = {**entry["config"], **overrides.pop(name, {})}
    if name == "rename_observations_processor":
        return lambda batch: {settings["rename_map"].get(key, key): value for key, value in batch.items()}
    if name == "to_batch_processor":
        return lambda batch: {**batch, "task": [batch["task"]]}
    if name == "device_processor":
        return lambda batch: {
            key: value.to(settings["device"]) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
    return _Scale(path / entry["state_file"], inverse=name == "unnormalizer_processor")


class _Processor:
    def __init__(self, path: Path, file: str, overrides: dict[str, Any]) -> None:
        left = dict(overrides)
        self.steps = [_step(path, entry, left) for entry in json.loads((path / file).read_text())["steps"]]
        if left:
            raise KeyError(f"Override keys {list(left)} do not match any step")

    def reset(self) -> None:
        pass


class _Before(_Processor):
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for step in self.steps:
            batch = step(batch)
        return batch


class _After(_Processor):
    def __call__(self, action: torch.Tensor) -> torch.Tensor:
        assert action.ndim == 2  # a batch of actions
        batch = {"action": action}
        for step in self.steps:
            batch = step(batch)
        return batch["action"]


def make_pre_post_processors(
    policy_cfg: Any,
    pretrained_path: str | None = None,
    pretrained_revision: str | None = None,
    *,
    preprocessor_overrides: dict[str, Any],
    postprocessor_overrides: dict[str, Any],
) -> tuple[_Before, _After]:
    assert pretrained_path is not None
    path = Path(pretrained_path)
    return (
        _Before(path, "policy_preprocessor.json", preprocessor_overrides),
        _After(path, "policy_postprocessor.json", postprocessor_overrides),
    )
