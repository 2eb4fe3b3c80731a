"""A checkpoint's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class PreTrainedConfig:
    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **hub: Any) -> PreTrainedConfig:
        return cls(**json.loads((Path(pretrained_name_or_path) / "config.json").read_text()))
