"""A checkpoint's config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class PolicyFeature:
    type: str
    shape: tuple[int, ...]


@dataclass
class PreTrainedConfig:
    type: str
    device: str
    input_features: dict[str, PolicyFeature]
    chunk_size: int
    output_features: dict[str, PolicyFeature]

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **hub: Any) -> PreTrainedConfig:
        document = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        features, outputs = (
            {name: PolicyFeature(feature["type"], tuple(feature["shape"])) for name, feature in document[side].items()}
            for side in ("input_features", "output_features")
        )
        return cls(document["type"], document["device"], features, document["chunk_size"], outputs)

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        return {name: feature for name, feature in self.input_features.items() if feature.type == "VISUAL"}
