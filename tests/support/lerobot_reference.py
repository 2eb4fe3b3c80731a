"""Small random checkpoints, made and saved by LeRobot itself, and LeRobot's own way to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

CPU = torch.device("cpu")
STATE, FRONT, ACTION = "observation.state", "observation.images.front", "action"
JOINTS = 6
#: Constructor arguments that make each policy small, and the feature of its camera.
SMALL: dict[str, dict[str, Any]] = {
    "act": {
        "pretrained_backbone_weights": None,
        "dim_model": 64,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 8,
        "chunk_size": 10,
        "n_action_steps": 4,
    },
    "diffusion": {
        "pretrained_backbone_weights": None,
        "down_dims": (32, 64),
        "n_groups": 4,
        "diffusion_step_embed_dim": 16,
        "horizon": 8,
        "n_action_steps": 3,
        "num_train_timesteps": 5,
    },
    "vqbet": {
        "pretrained_backbone_weights": None,
        "crop_shape": (40, 56),
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 32,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
        "vqvae_n_embed": 4,
        "vqvae_embedding_dim": 16,
        "vqvae_enc_hidden_dim": 16,
    },
    "tdmpc": {
        "horizon": 3,
        "n_gaussian_samples": 16,
        "n_pi_samples": 4,
        "n_elites": 4,
        "cem_iterations": 2,
        "latent_dim": 8,
        "mlp_dim": 16,
        "image_encoder_hidden_dim": 8,
        "q_ensemble_size": 2,
    },
}
#: TDMPC takes one square frame, under this name alone.
CAMERA = {"tdmpc": ("observation.image", (3, 48, 48))}


def features(kind: str) -> dict[str, Any]:
    camera, shape = CAMERA.get(kind, (FRONT, (3, 48, 64)))
    return {
        "input_features": {
            STATE: PolicyFeature(FeatureType.STATE, (JOINTS,)),
            camera: PolicyFeature(FeatureType.VISUAL, shape),
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))},
    }


def save(path: Path, kind: str, **settings: Any) -> Path:
    """Save a policy with random weights and statistics, with its processors, and return the path."""
    torch.manual_seed(0)
    config = make_policy_config(kind, device="cpu", **features(kind), **{**SMALL.get(kind, {}), **settings})
    policy = get_policy_class(kind)(config)
    before, after = make_pre_post_processors(config, dataset_stats=_statistics(config))
    for part in (policy, before, after):
        part.save_pretrained(path)
    return path


def _statistics(config: Any) -> dict[str, dict[str, torch.Tensor]]:
    shapes = {STATE: (JOINTS,), ACTION: (JOINTS,), **dict.fromkeys(config.image_features, (3, 1, 1))}
    return {
        name: {
            "mean": torch.rand(shape),
            "std": 1 + torch.rand(shape),
            "min": -1 - 50 * torch.rand(shape),
            "max": 1 + 50 * torch.rand(shape),
        }
        for name, shape in shapes.items()
    }


class Lerobot:
    """A checkpoint as LeRobot runs it in its own control loop (predict_action), without shmserve."""

    def __init__(self, path: Path) -> None:
        config = PreTrainedConfig.from_pretrained(str(path))
        self.policy = get_policy_class(config.type).from_pretrained(str(path), config=config)
        self._before, self._after = make_pre_post_processors(config, pretrained_path=str(path))

    def batch(self, observation: dict[str, np.ndarray], task: str = "") -> dict[str, Any]:
        arrays = {name: value.copy() for name, value in observation.items()}
        found: dict[str, Any] = self._before(prepare_observation_for_inference(arrays, CPU, task, ""))
        return found

    def action(self, observation: dict[str, np.ndarray], task: str = "") -> Any:
        with torch.inference_mode():
            action = self._after(self.policy.select_action(self.batch(observation, task)))
        return action[0].numpy()

    def chunk(self, observation: dict[str, np.ndarray], task: str = "") -> Any:
        """Return the rows of a chunk, each through the postprocessor by itself, as LeRobot's policy server sends them."""
        with torch.inference_mode():
            chunk = self.policy.predict_action_chunk(self.batch(observation, task))
            return torch.cat([self._after(chunk[:, row]) for row in range(chunk.shape[1])]).numpy()

    def reset(self) -> None:
        for part in (self.policy, self._before, self._after):
            part.reset()


def observations(kind: str, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return random observations of one robot."""
    camera, (channels, height, width) = CAMERA.get(kind, (FRONT, (3, 48, 64)))
    random = np.random.default_rng(seed)
    return [
        {
            STATE: random.standard_normal(JOINTS).astype(np.float32),
            camera: random.integers(0, 256, (height, width, channels), dtype=np.uint8),
        }
        for _ in range(count)
    ]


__all__ = ["ACTION", "FRONT", "STATE", "Lerobot", "NormalizationMode", "features", "observations", "save"]
