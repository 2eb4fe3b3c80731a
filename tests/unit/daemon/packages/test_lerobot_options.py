"""Options of LeRobot packages: modes, `[lerobot]` in model.toml, and whether the package can run code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.lerobot_checkpoint import FRONT, JOINTS, STATE, config_of, edited, write_checkpoint

MANIFEST = '[model]\nformat = "lerobot"\n[lerobot]\n'


def refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(ModelPackageError) as caught:
        ModelPackage.read(directory, **settings)
    return str(caught.value)


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
        ("rename_map = { 'observation.images.top' = ['observation.images.front'] }", "the checkpoint's inputs are"),
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
        ('outputs = ["actions"]', "outputs is for format torch-export or aoti or torchscript; this is 'lerobot'"),
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
