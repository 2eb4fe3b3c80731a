"""LeRobot checkpoints as packages: recognised by content, served in the mode of their policy, or refused with the reason."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.lerobot_checkpoint import (
    ACTION,
    FRONT,
    STATE,
    config_of,
    edited,
    statistics,
    write_checkpoint,
)

MANIFEST = '[model]\nformat = "lerobot"\n[lerobot]\n'


def refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(ModelPackageError) as caught:
        ModelPackage.read(directory, **settings)
    return str(caught.value)


def test_a_checkpoint_is_recognised_by_its_content(tmp_path: Path) -> None:
    package = ModelPackage.read(write_checkpoint(tmp_path / "act_so101"))

    assert (package.name, package.format, package.weights) == ("act_so101", "lerobot", "model.safetensors")
    assert package.lerobot is not None and package.lerobot.checkpoint.inputs.keys() == {STATE, FRONT}
    assert not package.grad  # LeRobot runs its policies in inference mode


def test_a_package_may_have_its_checkpoint_in_a_directory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "arm" / "checkpoint")
    (tmp_path / "arm" / "model.toml").write_text(MANIFEST + 'checkpoint = "checkpoint"')

    package = ModelPackage.read(tmp_path / "arm")

    assert (package.name, package.weights) == ("arm", "checkpoint/model.safetensors")


@pytest.mark.parametrize("type_key", ["model_type", "architectures"])
def test_a_model_for_transformers_is_not_taken_for_a_checkpoint(tmp_path: Path, type_key: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({type_key: "llama"}))

    assert "it is a model for transformers" in refusal(tmp_path)


def test_a_checkpoint_beside_a_policy_is_refused_naming_both(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "policy.py").touch()

    assert "holds policy.py and a LeRobot checkpoint" in refusal(tmp_path)


# Statistics


@pytest.mark.parametrize("missing", [STATE, ACTION, FRONT])
def test_a_normalised_feature_without_statistics_is_refused(tmp_path: Path, missing: str) -> None:
    modes = {"STATE": "MEAN_STD", "ACTION": "MEAN_STD", "VISUAL": "MEAN_STD"}
    known = statistics(**{FRONT: {"mean": np.zeros((3, 1, 1)), "std": np.ones((3, 1, 1))}})
    # As of a checkpoint that was made before LeRobot had processors: they are there by other names.
    renamed = {f"so100.buffer.{name}" if name == missing else name: each for name, each in known.items()}
    write_checkpoint(tmp_path, known=renamed, modes=modes)

    text = refusal(tmp_path)

    assert f": {missing} is normalised (MEAN_STD), and the checkpoint has no statistics for it (mean, std)" in text
    assert "lerobot.processor.migrate_policy_normalization" in text
    assert ("policy_postprocessor.json" if missing == ACTION else "policy_preprocessor.json") in text


@pytest.mark.parametrize(
    ("mode", "names"), [("MIN_MAX", "min, max"), ("QUANTILES", "q01, q99"), ("QUANTILE10", "q10, q90")]
)
def test_each_way_to_normalise_needs_its_own_statistics(tmp_path: Path, mode: str, names: str) -> None:
    write_checkpoint(tmp_path, modes={"STATE": mode, "ACTION": "IDENTITY", "VISUAL": "IDENTITY"})

    assert f"{STATE} is normalised ({mode}), and the checkpoint has no statistics for it ({names})" in refusal(tmp_path)


def test_what_is_used_as_it_is_needs_no_statistics(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path,
        config_of(normalization_mapping=dict.fromkeys(("STATE", "ACTION", "VISUAL"), "IDENTITY")),
        known={"observation.other": {"mean": np.zeros(1)}},
        modes=dict.fromkeys(("STATE", "ACTION", "VISUAL"), "IDENTITY"),
    )

    assert ModelPackage.read(tmp_path).format == "lerobot"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full(6, np.inf), "statistics that are not finite (std)"),
        (np.full(6, np.nan), "statistics that are not finite (std)"),
        (np.ones(7), "has 6 numbers and its std has 7"),
        (np.ones(1), "has 6 numbers and its std has 1"),
    ],
)
def test_statistics_that_would_give_wrong_numbers_are_refused(tmp_path: Path, values: Any, says: str) -> None:
    write_checkpoint(tmp_path, known=statistics(**{STATE: {"mean": np.zeros(6), "std": values}}))

    assert says in refusal(tmp_path)


def test_a_step_that_leaves_a_feature_as_it_is_although_the_policy_was_trained_otherwise_is_refused(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, modes={"STATE": "MEAN_STD", "ACTION": "IDENTITY", "VISUAL": "IDENTITY"})

    assert "config.json says that action is normalised (MEAN_STD), and no step of policy_postprocessor.json" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("name", [STATE, ACTION])
def test_a_feature_that_no_step_normalises_although_the_policy_was_trained_so_is_refused(
    tmp_path: Path, name: str
) -> None:
    file = write_checkpoint(tmp_path) / ("policy_postprocessor.json" if name == ACTION else "policy_preprocessor.json")
    edited(file, lambda content: [step["config"].get("features", {}).pop(name, None) for step in content["steps"]])

    assert f"config.json says that {name} is normalised (MEAN_STD), and no step of {file.name} does it" in refusal(
        tmp_path
    )


# Incomplete checkpoints


def test_a_checkpoint_from_before_processors_is_sent_to_the_migration(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, weights={"normalize_inputs.buffer_observation_state.mean": np.zeros(6, np.float32)})
    for file in tmp_path.glob("policy_*"):
        file.unlink()

    text = refusal(tmp_path)

    assert f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {tmp_path}" in text


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path, name: str) -> None:
    (write_checkpoint(tmp_path) / name).unlink()

    assert re.search(f"holds no {name}: without them .*save_pretrained", refusal(tmp_path))


def _broken(name: str, content: bytes | None) -> Any:
    def change(path: Path) -> None:
        (path / name).unlink() if content is None else (path / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _broken("policy_preprocessor_step_3_normalizer_processor.safetensors", None),
            "'normalizer_processor' needs the",
        ),
        (
            _broken("policy_preprocessor_step_3_normalizer_processor.safetensors", b"?"),
            "not a complete safetensors file",
        ),
        (_broken("policy_preprocessor.json", b"[1]"), "must be a JSON object, not list"),
        (_broken("policy_preprocessor.json", b'{"steps": [{}]}'), "is not a processor of LeRobot"),
        (_broken("policy_preprocessor.json", b"[" * 99999), "is not JSON"),
        (
            lambda path: edited(path / "config.json", lambda config: config.update(input_features={})),
            "input_features lists nothing",
        ),
        (
            lambda path: edited(path / "config.json", lambda config: config.update(input_features={STATE: 6})),
            "input_features must be a table of features",
        ),
        (
            lambda path: edited(
                path / "config.json", lambda config: config["input_features"][FRONT].update(shape=[48, 64])
            ),
            "observation.images.front has shape [48, 64]; a frame has channels, height and width",
        ),
        (
            lambda path: edited(path / "config.json", lambda config: config.update(output_features=None)),
            "output_features has no 'action'",
        ),
        (_broken("adapter_config.json", b"{}"), "holds no adapter_model.safetensors"),
    ],
    ids=[
        "no state",
        "cut state",
        "list",
        "no name",
        "deep",
        "no inputs",
        "no feature",
        "flat frame",
        "no action",
        "no adapter",
    ],
)
def test_a_broken_checkpoint_is_refused_naming_the_file(tmp_path: Path, change: Any, says: str) -> None:
    change(write_checkpoint(tmp_path, manifest=MANIFEST))

    text = refusal(tmp_path)

    assert says in text and str(tmp_path) in text


def _normalizer(**settings: Any) -> Any:
    def change(path: Path) -> None:
        edited(path / "policy_preprocessor.json", lambda content: content["steps"][3]["config"].update(settings))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _normalizer(features=[1]),
        _normalizer(features={STATE: 6}),
        _normalizer(features={STATE: {"type": "STATE", "shape": 6}}),
        _normalizer(features={STATE: {"type": ["STATE"], "shape": ["six"]}}),
        _normalizer(norm_map={"STATE": ["MEAN_STD"]}),
        _normalizer(norm_map="MEAN_STD"),
        _normalizer(normalize_observation_keys=5),
        _normalizer(stats={STATE: {"mean": "zero", "std": {}}}),
        lambda path: edited(path / "policy_preprocessor.json", lambda content: content["steps"][3].update(config=[])),
        lambda path: edited(
            path / "policy_preprocessor.json", lambda content: content["steps"][3].update(state_file=5)
        ),
        lambda path: edited(path / "policy_preprocessor.json", lambda content: content["steps"][0].update(config=None)),
        lambda path: edited(path / "config.json", lambda config: config.update(normalization_mapping=[1])),
        lambda path: edited(path / "config.json", lambda config: config.update(n_obs_steps={})),
        lambda path: edited(path / "config.json", lambda config: config.update(type=["act"])),
    ],
    ids=[str(number) for number in range(14)],
)
def test_whatever_the_files_say_nothing_but_a_refusal_is_raised(tmp_path: Path, change: Any) -> None:
    change(write_checkpoint(tmp_path, manifest=MANIFEST))

    with contextlib.suppress(ModelPackageError):
        ModelPackage.read(tmp_path)


def test_cameras_that_the_policy_fills_in_itself_are_not_asked_of_robots(tmp_path: Path) -> None:
    config = config_of("smolvla")
    config["input_features"]["observation.images.empty_camera_0"] = {"type": "VISUAL", "shape": [3, 480, 640]}

    package = ModelPackage.read(write_checkpoint(tmp_path, config))

    assert package.lerobot is not None and package.lerobot.checkpoint.inputs.keys() == {STATE, FRONT}
