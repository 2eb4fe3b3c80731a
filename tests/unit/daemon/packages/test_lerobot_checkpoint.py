"""LeRobot checkpoints as packages: recognised by content, served in the mode of their policy, or refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.lerobot_checkpoint import (
    ACTION,
    FRONT,
    JOINTS,
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


@pytest.mark.parametrize(
    ("kind", "settings", "mode", "sampling"),
    [
        ("act", {}, "chunk", False),
        ("act", {"temporal_ensemble_coeff": 0.01}, "action", False),
        ("diffusion", {}, "action", True),
        ("diffusion", {"n_obs_steps": 1}, "action", True),
        ("vqbet", {}, "action", True),
        ("tdmpc", {}, "action", True),
        ("smolvla", {}, "chunk", True),
        ("a_plugins", {}, "chunk", False),
        ("a_plugins", {"n_obs_steps": 3}, "action", False),
    ],
)
def test_the_policy_decides_between_chunks_and_actions(
    tmp_path: Path, kind: str, settings: dict[str, Any], mode: str, sampling: bool
) -> None:
    package = ModelPackage.read(write_checkpoint(tmp_path, config_of(kind, **settings)))

    assert package.lerobot is not None
    assert (package.lerobot.mode, package.stateful, package.sampling) == (mode, mode == "action", sampling)


@pytest.mark.parametrize(
    ("kind", "settings", "mode", "reason"),
    [
        ("diffusion", {}, "chunk", "looks at its latest observations, and LeRobot's select_action alone collects them"),
        ("vqbet", {}, "chunk", "looks at its latest observations"),
        ("a_plugins", {"n_obs_steps": 2}, "chunk", "looks at its latest observations"),
        ("act", {"temporal_ensemble_coeff": 0.01}, "chunk", "temporal_ensemble_coeff = 0.01.* set .* to null"),
        ("gaussian_actor", {}, "chunk", "gives single actions"),
        ("smolvla", {"rtc_config": {"enabled": True}}, "action", "real-time chunking works with chunks"),
        ("pi0", {"use_relative_actions": True}, "action", "relative to the state that the chunk was asked with"),
        ("act", {}, "steps", "'steps' must be one of chunk, action"),
    ],
)
def test_a_mode_that_the_policy_cannot_have_is_refused_with_the_reason(
    tmp_path: Path, kind: str, settings: dict[str, Any], mode: str, reason: str
) -> None:
    write_checkpoint(tmp_path, config_of(kind, **settings), manifest=f'{MANIFEST}mode = "{mode}"')

    assert re.search(rf"model\.toml: \[lerobot\] mode = .*{reason}", refusal(tmp_path))


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
            lambda path: edited(path / "config.json", lambda config: config.update(output_features=None)),
            "output_features has no 'action'",
        ),
        (_broken("adapter_config.json", b"{}"), "holds no adapter_model.safetensors"),
    ],
    ids=["no state", "cut state", "list", "no name", "deep", "no inputs", "no feature", "no action", "no adapter"],
)
def test_a_broken_checkpoint_is_refused_naming_the_file(tmp_path: Path, change: Any, says: str) -> None:
    change(write_checkpoint(tmp_path, manifest=MANIFEST))

    text = refusal(tmp_path)

    assert says in text and str(tmp_path) in text


def test_cameras_that_the_policy_fills_in_itself_are_not_asked_of_robots(tmp_path: Path) -> None:
    config = config_of("smolvla")
    config["input_features"]["observation.images.empty_camera_0"] = {"type": "VISUAL", "shape": [3, 480, 640]}

    package = ModelPackage.read(write_checkpoint(tmp_path, config))

    assert package.lerobot is not None and package.lerobot.checkpoint.inputs.keys() == {STATE, FRONT}


# model.toml


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("mod = 'chunk'", "'mod' is not a key of [lerobot]; did you mean 'mode'?"),
        ("joints = 'pan'", "[lerobot] joints = 'pan' must be a list"),
        ("joints = []", "must be a list of different names"),
        ("joints = ['a', 'a', 'b', 'c', 'd', 'e']", "must be a list of different names"),
        ("joints = ['a', 'b']", "joints has 2 names, and observation.state has shape [6]"),
        (
            "rename_map = { 'observation.images.top' = 'observation.images.up' }",
            "the checkpoint's inputs are observation.",
        ),
        ("frames = 'uint16'", "frames = 'uint16' must be one of uint8, float32"),
        ("frame_sizes = { front = [96, 128] }", "this act policy does not resize frames"),
        ("checkpoint = '..'", "must be a directory of the package"),
        ("checkpoint = '/tmp'", "must be a directory of the package"),
        ("base = '.'", "base is for a PEFT adapter"),
        ("[model2]", "'model2' is not a table"),
    ],
)
def test_a_mistake_in_the_table_is_named_with_its_remedy(tmp_path: Path, lines: str, says: str) -> None:
    write_checkpoint(tmp_path, manifest=MANIFEST + lines)

    text = refusal(tmp_path)

    assert says in text and str(tmp_path / "model.toml") in text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("max_batch = 2", "max_batch = 2 is not for format 'lerobot'"),
        ("cuda_graph = true", "is not for format 'lerobot'|a recorded policy"),
        ("read_in_place = true", "read_in_place = True is not for format 'lerobot'"),
        ('entry = "policy:Policy"', "entry is for format python or installed; this is 'lerobot'"),
        ('outputs = ["actions"]', "outputs is for format torch-export or torchscript; this is 'lerobot'"),
    ],
)
def test_a_key_of_another_format_is_refused(tmp_path: Path, lines: str, says: str) -> None:
    write_checkpoint(tmp_path, manifest=f'[model]\nformat = "lerobot"\n{lines}')

    assert re.search(says, refusal(tmp_path))


def test_a_policy_with_a_queue_cannot_be_declared_stateless(tmp_path: Path) -> None:
    manifest = '[model]\nformat = "lerobot"\nstateful = false\n[lerobot]\nmode = "action"'
    write_checkpoint(tmp_path, manifest=manifest)

    assert "stateful = false, but in mode 'action' the policy keeps a queue for each client" in refusal(tmp_path)


def test_the_table_is_for_this_format_alone(tmp_path: Path) -> None:
    (tmp_path / "policy.py").touch()
    (tmp_path / "model.toml").write_text("[lerobot]\n")

    assert "[lerobot] is for format 'lerobot'; this is 'python'" in refusal(tmp_path)


def test_names_of_the_robot_are_those_before_the_checkpoint_renames_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, rename_map={"observation.images.top": FRONT})

    package = ModelPackage.read(tmp_path)
    assert package.lerobot is not None
    assert package.lerobot.robot_names == {STATE: STATE, FRONT: "observation.images.top"}

    (tmp_path / "model.toml").write_text(f'{MANIFEST}rename_map = {{ "observation.images.base" = "{FRONT}" }}')
    package = ModelPackage.read(tmp_path)
    assert package.lerobot is not None
    assert package.lerobot.robot_names == {STATE: STATE, FRONT: "observation.images.base"}


# Code


@pytest.mark.fault("T76")
@pytest.mark.parametrize("kind", ["act", "diffusion", "smolvla"])
def test_without_allow_code_a_checkpoint_of_json_and_tensors_is_read(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path, config_of(kind))

    assert ModelPackage.read(tmp_path, allow_code=False).format == "lerobot"


def _with_class(path: Path) -> None:
    step = {"class": "subprocess.Popen", "config": {"args": "true"}}
    edited(path / "policy_preprocessor.json", lambda content: content["steps"].append(step))


def _with_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}")
    save_file({"lora": np.zeros(1, np.float32)}, path / "adapter_model.safetensors")


def _with_plugins(path: Path) -> None:
    (path / "model.toml").write_text(MANIFEST + "plugins = true")


@pytest.mark.fault("T76")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_plugins, "plugins = true imports"),
        (_with_class, "the processors name the class 'subprocess.Popen'"),
        (_with_adapter, "PEFT loads the adapter"),
        (
            lambda path: edited(path / "config.json", lambda config: config.update(type="groot")),
            "only the policies act",
        ),
    ],
    ids=["plugins", "class", "adapter", "type"],
)
def test_without_allow_code_a_checkpoint_that_could_run_code_is_refused(
    tmp_path: Path, change: Any, reason: str
) -> None:
    change(write_checkpoint(tmp_path))

    assert ModelPackage.read(tmp_path).format == "lerobot"
    assert re.search(
        rf"format 'lerobot' can run code .* allow_code is false \({re.escape(reason)}",
        refusal(tmp_path, allow_code=False),
    )


def test_joints_are_named_in_the_order_of_the_training(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, manifest=f"{MANIFEST}joints = {JOINTS}")

    package = ModelPackage.read(tmp_path)

    assert package.lerobot is not None and list(package.lerobot.joints) == JOINTS
