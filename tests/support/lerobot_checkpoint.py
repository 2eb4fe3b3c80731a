"""Writes LeRobot checkpoints without LeRobot: the files that save_pretrained leaves, for the stand-in's policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STATE, FRONT, ACTION = "observation.state", "observation.images.front", "action"
JOINTS = [
    f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
#: State and action are kept in units of 10. Frames are used as they are.
MODES = {"STATE": "MEAN_STD", "ACTION": "MEAN_STD", "VISUAL": "IDENTITY"}
Statistics = dict[str, dict[str, Any]]


def statistics(**others: dict[str, Any]) -> Statistics:
    scale = {"mean": np.zeros(6, np.float32), "std": np.full(6, 10, np.float32)}
    return {STATE: scale, ACTION: scale, **others}


def config_of(kind: str = "act", *, size: tuple[int, int] = (48, 64), **settings: Any) -> dict[str, Any]:
    """Return the content of config.json; `size`: height and width of a frame."""
    return {
        "type": kind,
        "n_obs_steps": 2 if kind == "diffusion" else 1,
        "device": "mps",  # of the machine on which it was trained
        "use_amp": True,
        "chunk_size": 5,
        "n_action_steps": 5,
        "temporal_ensemble_coeff": None,
        "pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1",
        "normalization_mapping": MODES,
        "input_features": {
            STATE: {"type": "STATE", "shape": [6]},
            FRONT: {"type": "VISUAL", "shape": [3, *size]},
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [6]}},
        **({"vlm_model_name": "owner/cached"} if kind == "smolvla" else {}),
        **settings,
    }


def write_checkpoint(
    path: Path,
    config: dict[str, Any] | None = None,
    *,
    known: Statistics | None = None,
    modes: dict[str, str] | None = None,
    rename_map: dict[str, str] | None = None,
    weights: dict[str, Any] | None = None,
    manifest: str = "",
) -> Path:
    """Write the files of a checkpoint to `path` and return it; `known` are its statistics, `modes` the ways to normalise."""
    config = config_of() if config is None else config
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=4))
    save_file({"gain": np.ones((), np.float32)} if weights is None else weights, path / "model.safetensors")
    flat = {
        f"{name}.{each}": np.asarray(value, np.float32)
        for name, table in (statistics() if known is None else known).items()
        for each, value in table.items()
    }
    features = {**config["input_features"], **config["output_features"]}
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": rename_map or {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "device_processor", "config": {"device": "mps", "float_dtype": None}},
        _normalizer("normalizer_processor", "policy_preprocessor_step_3_normalizer_processor", features, modes),
    ]
    after = [
        _normalizer(
            "unnormalizer_processor",
            "policy_postprocessor_step_0_unnormalizer_processor",
            config["output_features"],
            modes,
        ),
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        (path / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
        for step in steps:
            if "state_file" in step:
                save_file(flat, path / step["state_file"])
    if manifest:
        (path / "model.toml").write_text(manifest)
    return path


def _normalizer(name: str, file: str, features: dict[str, Any], modes: dict[str, str] | None) -> dict[str, Any]:
    settings = {"eps": 1e-8, "features": features, "norm_map": MODES if modes is None else modes}
    return {"registry_name": name, "config": settings, "state_file": f"{file}.safetensors"}


def edited(file: Path, change: Any) -> None:
    """Change a JSON file in place; `change` gets its content."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
