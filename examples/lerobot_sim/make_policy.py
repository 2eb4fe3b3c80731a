"""Saves a small ACT policy with random weights for the simulated arm, as LeRobot's training would leave it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from arm import CAMERA, SIZE, STATE, STATE_NUMBERS, TORQUES
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

#: Rows of a chunk, and how many of them are executed before the next chunk takes over.
CHUNK, EXECUTED = 20, 15


def save(path: Path) -> None:
    torch.manual_seed(0)
    config = make_policy_config(
        "act",
        device="cpu",
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (STATE_NUMBERS,)),
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, *SIZE)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (TORQUES,))},
        pretrained_backbone_weights=None,
        chunk_size=CHUNK,
        n_action_steps=EXECUTED,
        dim_model=128,
        n_heads=4,
        dim_feedforward=256,
        n_encoder_layers=2,
    )
    statistics = {
        STATE: {"mean": torch.zeros(STATE_NUMBERS), "std": torch.ones(STATE_NUMBERS)},
        CAMERA: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
        "action": {"mean": torch.zeros(TORQUES), "std": torch.full((TORQUES,), 0.2)},
    }
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    for part in (get_policy_class("act")(config), before, after):
        part.save_pretrained(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the directory to write")
    save(parser.parse_args().path)


if __name__ == "__main__":
    main()
