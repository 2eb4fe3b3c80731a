"""LeRobot checkpoint: a directory as `save_pretrained` leaves it, read without LeRobot, without torch, and without running code.

It holds config.json with the policy's type, model.safetensors (or a PEFT adapter), and the two processors that LeRobot saves
beside them. Each refusal names the file or the feature, and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.errors import ModelPackageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
#: LeRobot's own record of the training; optional.
TRAINING = "train_config.json"
#: As an error names the format's files.
FILES = f"{CONFIG}, {WEIGHTS}, {PREPROCESSOR} and {POSTPROCESSOR} of a LeRobot checkpoint"

ACTION, STATE = "action", "observation.state"
IMAGES = "observation.images."
#: More than any of these files needs.
_JSON_BYTES = 16 << 20
#: Statistics that each way to normalise reads.
_STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
#: Policies of LeRobot that leave normalisation to the steps of their processors.
_NORMALISED_BY_STEPS = ("act", "diffusion", "vqbet", "tdmpc", "smolvla", "pi0", "pi05")
#: Of tensors that held the statistics before there were processors.
_OLD_NORMALISATION = ("normalize", "unnormalize", "input_normalizer.", "output_normalizer.")
_MIGRATION = "python -m lerobot.processor.migrate_policy_normalization --pretrained-path"


@dataclass(frozen=True)
class Feature:
    """An entry of the policy's input or output, as LeRobot describes it: its kind (STATE, VISUAL, ENV, ACTION) and its shape."""

    kind: str
    shape: tuple[int, ...]  # of a frame: channels, height, width


@dataclass(frozen=True)
class LerobotCheckpoint:
    """Contents of the checkpoint's JSON files."""

    path: Path
    type: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Feature]  # without cameras that the policy fills in itself
    action: Feature
    preprocessor: tuple[Mapping[str, Any], ...]  # its steps
    postprocessor: tuple[Mapping[str, Any], ...]
    adapter: Mapping[str, Any] | None  # of PEFT, over the weights of another checkpoint
    rate_hz: float | None  # of the environment that it was trained in, if the training recorded one

    @property
    def weights(self) -> Path:
        return self.path / (WEIGHTS if self.adapter is None else ADAPTER_WEIGHTS)

    @property
    def rename_map(self) -> dict[str, str]:
        """The robot's names and the policy's, as the preprocessor renames them."""
        step = step_of(self.preprocessor, "rename_observations_processor")
        renames = _table(_table(_table(step).get("config")).get("rename_map"))
        return {robot: policy for robot, policy in renames.items() if isinstance(policy, str)}

    def setting(self, name: str) -> Any:
        return self.config.get(name)


def step_of(steps: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Return the step that is registered under this name, or None."""
    return next((step for step in steps if step.get("registry_name") == name), None)


def is_checkpoint(directory: Path) -> bool:
    """Return whether the directory is one of LeRobot's, complete or not; others have a config.json and weights, too."""
    if not any((directory / name).is_file() for name in (WEIGHTS, ADAPTER)):
        return False
    try:
        config = _read_json(directory / CONFIG)
    except ModelPackageError:
        return False
    if not isinstance(config.get("type"), str):
        return False
    return "input_features" in config or all((directory / name).is_file() for name in (PREPROCESSOR, POSTPROCESSOR))


def read_checkpoint(path: Path) -> LerobotCheckpoint:
    """Return the checkpoint at `path`; raises ModelPackageError for one that cannot be served as LeRobot would run it."""
    config = _read_json(path / CONFIG)
    kind = config.get("type")
    if not isinstance(kind, str):
        raise ModelPackageError(f"{path / CONFIG} has no type of a policy, so {path} is not a LeRobot checkpoint")
    adapter = _read_json(path / ADAPTER) if (path / ADAPTER).is_file() else None
    weights = WEIGHTS if adapter is None else ADAPTER_WEIGHTS
    if not (path / weights).is_file():
        raise ModelPackageError(f"{path} holds no {weights}: save the checkpoint with policy.save_pretrained")
    _require_processors(path)
    preprocessor, postprocessor = (_steps(path / name) for name in (PREPROCESSOR, POSTPROCESSOR))
    inputs, outputs = (_features(path, config, side) for side in ("input_features", "output_features"))
    if ACTION not in outputs:
        raise ModelPackageError(f"{path / CONFIG}: output_features has no {ACTION!r}, so the policy gives no actions")
    checkpoint = LerobotCheckpoint(
        path=path,
        type=kind,
        config=config,
        inputs={name: feature for name, feature in inputs.items() if "empty_camera" not in name},
        action=outputs[ACTION],
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        adapter=adapter,
        rate_hz=_rate_hz(path / TRAINING),
    )
    for name, feature in checkpoint.inputs.items():
        if feature.kind == "VISUAL" and len(feature.shape) != 3:
            raise ModelPackageError(
                f"{path / CONFIG}: {name} has shape {list(feature.shape)}; a frame has channels, height and width"
            )
    if not checkpoint.inputs:
        raise ModelPackageError(f"{path / CONFIG}: input_features lists nothing that a robot could send")
    try:
        _check_statistics(checkpoint)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ModelPackageError):
            raise
        raise ModelPackageError(
            f"{path}: {PREPROCESSOR} or {POSTPROCESSOR} describes its normalisation in another way than LeRobot ({error})"
        ) from error
    return checkpoint


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        if (size := file.stat().st_size) > _JSON_BYTES:
            raise ModelPackageError(f"{file} has {size} bytes, more than {_JSON_BYTES}")
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelPackageError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelPackageError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelPackageError(f"{file} must be a JSON object, not {type(document).__name__}")
    return document


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _require_processors(path: Path) -> None:
    absent = [name for name in (PREPROCESSOR, POSTPROCESSOR) if not (path / name).is_file()]
    if not absent:
        return
    if (path / WEIGHTS).is_file() and any(name.startswith(_OLD_NORMALISATION) for name in _names(path / WEIGHTS)):
        raise ModelPackageError(
            f"{path} was saved before LeRobot had processors: its normalisation is inside {WEIGHTS}, where LeRobot no longer "
            f"looks for it. Migrate it and serve the new directory: {_MIGRATION} {path}"
        )
    raise ModelPackageError(
        f"{path} holds no {' and no '.join(absent)}: without them the robot would move by numbers of another scale. "
        "Save them beside the policy: preprocessor.save_pretrained(path) and postprocessor.save_pretrained(path)"
    )


def _steps(file: Path) -> tuple[Mapping[str, Any], ...]:
    steps = _read_json(file).get("steps")
    if not isinstance(steps, list) or not all(
        isinstance(step, dict)
        and isinstance(step.get("registry_name", step.get("class")), str)
        and isinstance(step.get("config", {}), dict)
        for step in steps
    ):
        raise ModelPackageError(
            f"{file} is not a processor of LeRobot: steps must be a list of steps with a name and a config"
        )
    for step in steps:
        state = step.get("state_file")
        if state is not None and not (
            isinstance(state, str) and Path(state).name == state and (file.parent / state).is_file()
        ):
            raise ModelPackageError(
                f"{file}: its step {_name(step)!r} needs the file {state!r}, which is not in {file.parent}"
            )
    return tuple(steps)


def _name(step: Mapping[str, Any]) -> str:
    return str(step.get("registry_name", step.get("class")))


def _features(path: Path, config: Mapping[str, Any], side: str) -> dict[str, Feature]:
    try:
        return {
            str(name): Feature(str(feature["type"]), tuple(int(length) for length in feature["shape"]))
            for name, feature in (config.get(side) or {}).items()
        }
    except (TypeError, ValueError, KeyError, AttributeError):
        raise ModelPackageError(
            f"{path / CONFIG}: {side} must be a table of features with type and shape, as LeRobot saves it"
        ) from None


def _rate_hz(file: Path) -> float | None:
    try:
        rate: Any = _table(_read_json(file).get("env")).get("fps")
    except ModelPackageError:
        return None
    return float(rate) if isinstance(rate, (int, float)) and rate > 0 else None


# Statistics


def _check_statistics(checkpoint: LerobotCheckpoint) -> None:
    """Refuse statistics that are missing: LeRobot passes a feature without them on as it is, without a word."""
    normalised: set[str] = set()
    for steps, file in ((checkpoint.preprocessor, PREPROCESSOR), (checkpoint.postprocessor, POSTPROCESSOR)):
        for step in steps:
            settings = _table(step.get("config"))
            modes = _table(settings.get("norm_map"))
            if not modes:
                continue
            known = _statistics_of(checkpoint.path, step)
            chosen = settings.get("normalize_observation_keys")
            for name, feature in _table(settings.get("features")).items():
                kind = str(_table(feature).get("type"))
                of_action = kind == "ACTION"
                if of_action != (file == POSTPROCESSOR) or "empty_camera" in name:
                    continue  # a policy is asked with observations, and answers with actions
                if not of_action and chosen is not None and name not in chosen:
                    continue
                mode = str(modes.get(kind, "IDENTITY"))
                if mode != "IDENTITY":
                    normalised.add(name)
                    key = ACTION if of_action else name
                    _check_feature(checkpoint, f"{checkpoint.path / file}: {name}", mode, known.get(key, {}), feature)
    _check_covered(checkpoint, normalised)


def _check_feature(
    checkpoint: LerobotCheckpoint, where: str, mode: str, found: Mapping[str, Any], feature: Mapping[str, Any]
) -> None:
    missing = [name for name in _STATISTICS.get(mode, ()) if name not in found]
    if missing:
        raise ModelPackageError(
            f"{where} is normalised ({mode}), and the checkpoint has no statistics for it ({', '.join(missing)}): the robot "
            "would move by numbers of another scale. Save the checkpoint with the processors that it was trained with, or "
            f"migrate it: {_MIGRATION} {checkpoint.path}"
        )
    shape = tuple(feature.get("shape") or ())
    for name in _STATISTICS.get(mode, ()):
        values = found[name]
        if not np.isfinite(values).all():
            raise ModelPackageError(
                f"{where} has statistics that are not finite ({name}): compute them from the dataset again"
            )
        if len(shape) == 1 and values.size != shape[0]:
            raise ModelPackageError(
                f"{where} has {shape[0]} numbers and its {name} has {values.size}: save the processors of this policy"
            )


def _check_covered(checkpoint: LerobotCheckpoint, normalised: set[str]) -> None:
    """Refuse a feature that config.json says is normalised, if no step of the processors does so."""
    modes = _table(checkpoint.setting("normalization_mapping"))
    if checkpoint.type not in _NORMALISED_BY_STEPS:
        return
    for name, feature in {**checkpoint.inputs, ACTION: checkpoint.action}.items():
        mode = modes.get(feature.kind, "IDENTITY")
        if mode != "IDENTITY" and name not in normalised:
            file = POSTPROCESSOR if name == ACTION else PREPROCESSOR
            raise ModelPackageError(
                f"{checkpoint.path / CONFIG} says that {name} is normalised ({mode}), and no step of {file} does it: the "
                "robot would move by numbers of another scale. Save the processors that the policy was trained with"
            )


def _statistics_of(path: Path, step: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the step's statistics as numpy arrays, by feature and name."""
    found: dict[str, dict[str, Any]] = {}
    for name, table in _table(_table(step.get("config")).get("stats")).items():
        found[name] = {each: np.asarray(value, np.float64) for each, value in _table(table).items()}
    if step.get("state_file") is not None:
        for name, values in _tensors(path / step["state_file"]).items():
            feature, _, each = name.rpartition(".")
            found.setdefault(feature, {})[each] = values
    return found


def _tensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError  # with shmserve[daemon]; a robot's environment reads no checkpoint
    from safetensors.numpy import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise ModelPackageError(f"{file} is not a complete safetensors file: {error}") from error


def _names(file: Path) -> list[str]:
    """Return the names of the tensors in a file, without reading them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ModelPackageError(f"{file} is not a complete safetensors file: {error}") from error
