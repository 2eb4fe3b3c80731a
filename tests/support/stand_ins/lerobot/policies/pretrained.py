"""Loading of a policy's weights, in which missing ones pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model


class PreTrainedPolicy(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: Any, strict: bool = False) -> Any:
        policy = cls._load_as_safetensor(
            cls(config), str(Path(pretrained_name_or_path) / "model.safetensors"), config.device, strict
        )
        policy.to(config.device)
        policy.eval()
        return policy

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        load_model(model, model_file, strict=strict, device=map_location)
        return model
