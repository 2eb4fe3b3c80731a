"""Policies whose arithmetic a test can follow, behind LeRobot's methods."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from .pretrained import PreTrainedPolicy


class _Policy(PreTrainedPolicy):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.pretrained_backbone_weights is not None:
            raise OSError("nothing is downloaded here")
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.reset()

    def _rows(self, state: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Row i of a chunk moves every joint by i + 1 times the mean of the frames."""
        frames = []
        for name, feature in self.config.input_features.items():
            entry = batch[name]
            assert entry.dtype == torch.float32 and entry.shape[0] == 1
            if feature["type"] == "VISUAL":
                assert entry.shape[1] == feature["shape"][0] and entry.is_contiguous()
                assert 0 <= float(entry.min()) <= float(entry.max()) <= 1
                frames.append(entry.mean())
        assert isinstance(batch["task"], list)
        words = len(batch["task"][0].split()) if self.config.type == "smolvla" else 0
        rows = torch.arange(1, self.config.chunk_size + 1, dtype=torch.float32)
        return state[:, None] + words + self.gain * torch.stack(frames).mean() * rows[None, :, None]


class ACTPolicy(_Policy):
    """With temporal_ensemble_coeff an action is the mean of all that the chunks gave for its step."""

    def reset(self) -> None:
        self._queue: deque[torch.Tensor] = deque()
        self._chunks: list[torch.Tensor] = []

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        return self._rows(batch["observation.state"], batch)

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.config.temporal_ensemble_coeff is not None:
            self._chunks = [chunk[:, 1:] for chunk in self._chunks if chunk.shape[1] > 1]
            self._chunks.append(self.predict_action_chunk(batch))
            return torch.stack([chunk[:, 0] for chunk in self._chunks]).mean(0)
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).unbind(1))
        return self._queue.popleft()


class DiffusionPolicy(_Policy):
    """Looks at the mean of the latest two states, which select_action collects."""

    def reset(self) -> None:
        self._queues: dict[str, deque[torch.Tensor]] = {"observation.state": deque(maxlen=2), "action": deque()}

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        return self._rows(torch.stack(list(self._queues["observation.state"])).mean(0), batch)

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        self._queues["observation.state"].append(batch["observation.state"])
        if not self._queues["action"]:
            self._queues["action"].extend(self.predict_action_chunk(batch).unbind(1))
        return self._queues["action"].popleft()


class SmolVLAPolicy(ACTPolicy):
    """Moves by the number of words of the instruction, too; its language model lies on the hub."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.vlm_model_name == "owner/absent":
            raise OSError(
                "We couldn't connect to the hub to load the files, and couldn't find them in the cached files."
            )
