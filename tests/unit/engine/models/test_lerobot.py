"""The format lerobot with a stand-in for LeRobot, in this process; tests/lerobot/ compares it with the real one."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.errors import ContractMismatch, ModelPackageError
from tests.support.folders import SUPPORT
from tests.support.lerobot_checkpoint import FRONT, JOINTS, STATE, config_of, edited, statistics, write_checkpoint
from tests.support.packages.saving import loaded

MANIFEST = '[model]\nformat = "lerobot"\n[lerobot]\n'
FLAT = f"{MANIFEST}joints = {JOINTS}\n"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LeRobot in this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(SUPPORT / "stand_ins")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
        del sys.modules[name]


def frame(value: int = 51, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    return torch.full((*size, 3), value, dtype=torch.uint8)  # 51 is 0.2 of 255


def arrays(state: float = 0.0, picture: torch.Tensor | None = None, **others: Any) -> dict[str, Any]:
    return {STATE: torch.full((6,), state), FRONT: frame() if picture is None else picture, **others}


def flat(**joints: float) -> dict[str, Any]:
    return {**dict.fromkeys(JOINTS, 0.0), **joints, "front": frame()}


def rows(start: float, count: int = 5, step: float = 2.0) -> torch.Tensor:
    """The stand-in's chunk: a frame of 0.2, in units of 10."""
    return (start + step * torch.arange(1, count + 1))[:, None].expand(count, 6)


def test_a_chunk_goes_through_the_checkpoints_own_processors(tmp_path: Path) -> None:
    model, package = loaded(write_checkpoint(tmp_path))

    (action,) = model.infer([arrays(30.0)])

    assert action.keys() == {"actions"} and not package.stateful
    torch.testing.assert_close(action["actions"], rows(30.0))


def test_the_example_is_what_the_policy_was_trained_with(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path))

    example = model.example_observation()

    assert {name: (value.dtype, value.shape) for name, value in example.items()} == {
        STATE: (np.float32, (6,)),
        FRONT: (np.uint8, (48, 64, 3)),
    }
    assert model.metadata()["lerobot"] == {
        "type": "act",
        "mode": "chunk",
        "cameras": [FRONT],
        "task": False,
        "chunk_size": 5,
        "n_action_steps": 5,
    }


def test_with_joints_an_observation_is_what_lerobots_robots_give(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, manifest=FLAT))

    (action,) = model.infer([flat(**{"elbow_flex.pos": 30.0})])

    assert model.example_observation().keys() == {*JOINTS, "front"}
    assert (model.metadata()["lerobot"]["joints"], model.metadata()["lerobot"]["cameras"]) == (JOINTS, ["front"])
    torch.testing.assert_close(action["actions"], rows(0.0) + torch.tensor([0, 0, 30.0, 0, 0, 0]))


def test_joints_may_be_numbers_of_any_kind_and_arrays_are_taken_as_well(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, manifest=FLAT))
    kinds = {**flat(), JOINTS[0]: 3, JOINTS[1]: np.float64(3), JOINTS[2]: torch.tensor(3.0)}

    (of_kinds,), (of_arrays,) = model.infer([kinds]), model.infer([arrays(3.0)])

    torch.testing.assert_close(of_kinds["actions"][:, :3], rows(3.0)[:, :3])
    torch.testing.assert_close(of_arrays["actions"], rows(3.0))


def test_a_frame_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path))

    actions = [model.infer([arrays(picture=each)])[0]["actions"] for each in (frame(), frame() / 255)]

    torch.testing.assert_close(actions[0], actions[1])


def test_robots_that_send_floats_are_declared_so(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, manifest=MANIFEST + 'frames = "float32"'))

    assert model.example_observation()[FRONT].dtype == np.float32


def test_a_camera_of_another_name_is_renamed_for_the_policy(tmp_path: Path) -> None:
    renamed = f'{FLAT}rename_map = {{ "observation.images.top" = "{FRONT}" }}'
    model, _ = loaded(write_checkpoint(tmp_path, manifest=renamed))
    seen = flat()
    seen["top"] = seen.pop("front")

    (action,) = model.infer([seen])

    assert "top" in model.example_observation()
    torch.testing.assert_close(action["actions"], rows(0.0))


def test_a_checkpoint_without_a_step_that_renames_is_served_under_other_names_too(tmp_path: Path) -> None:
    renamed = f'{MANIFEST}rename_map = {{ "observation.images.top" = "{FRONT}" }}'
    write_checkpoint(tmp_path, manifest=renamed)
    edited(tmp_path / "policy_preprocessor.json", lambda content: content["steps"].pop(0))
    model, _ = loaded(tmp_path)
    seen = arrays()
    seen["observation.images.top"] = seen.pop(FRONT)

    (action,) = model.infer([seen])

    torch.testing.assert_close(action["actions"], rows(0.0))


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            {FRONT: frame()},
            f"lacks {STATE} (it has {FRONT}); a robot that sends a number for each joint needs their names",
        ),
        ({STATE: torch.zeros(6)}, f"lacks {FRONT} (it has {STATE})"),
        (arrays(picture=frame(size=(24, 32))), f"{FRONT}: expected .* [48, 64, 3], got uint8[24, 32, 3]"),
        (arrays(picture=frame().to(torch.int32)), f"{FRONT}: expected .* uint8 or floats, .*, got int32[48, 64, 3]"),
        (arrays(picture=frame().permute(2, 0, 1)), f"{FRONT}: expected .* [48, 64, 3], got uint8[3, 48, 64]"),
        ({**arrays(), STATE: torch.zeros(7)}, f"{STATE}: expected float32[6], got shape [7]"),
        ([1.0], "an observation must be a dict of entries, not a list"),
    ],
    ids=["state", "frame", "size", "dtype", "planes", "length", "list"],
)
def test_an_observation_that_does_not_fit_is_refused_naming_the_entry(tmp_path: Path, seen: Any, says: str) -> None:
    model, _ = loaded(write_checkpoint(tmp_path))

    with pytest.raises(ContractMismatch) as caught:
        model.infer([seen])

    assert all(part in str(caught.value) for part in says.split(".*"))


def test_a_state_of_the_environment_is_an_array_under_its_own_name(tmp_path: Path) -> None:
    config = config_of()
    config["input_features"]["observation.environment_state"] = {"type": "ENV", "shape": [2]}
    model, _ = loaded(write_checkpoint(tmp_path, config, manifest=FLAT))
    example = model.example_observation()

    (action,) = model.infer([{**flat(), "observation.environment_state": torch.zeros(2)}])

    assert example["observation.environment_state"].shape == (2,) and "front" in example
    torch.testing.assert_close(action["actions"], rows(0.0))


def test_a_joint_that_the_robot_lacks_is_named(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, manifest=FLAT))
    seen = flat()
    del seen["gripper.pos"]

    with pytest.raises(ContractMismatch, match=r"the observation lacks gripper\.pos \(it has shoulder_pan\.pos"):
        model.infer([seen])


# The instruction


def test_a_policy_that_reads_an_instruction_demands_it(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, config_of("smolvla")))

    (action,) = model.infer([arrays(task="fold the towel")])
    with pytest.raises(ContractMismatch, match=r"the observation lacks task"):
        model.infer([arrays()])
    with pytest.raises(ContractMismatch, match=r"task: expected a text, got int"):
        model.infer([arrays(task=3)])

    assert model.example_observation()["task"] == ""
    torch.testing.assert_close(action["actions"], rows(30.0))  # three words


def test_an_instruction_of_the_package_is_that_of_robots_that_send_none(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, config_of("smolvla"), manifest=MANIFEST + 'task = "two words"'))

    actions = [model.infer([{**arrays(), **task}])[0]["actions"] for task in ({}, {"task": "one"})]

    assert "task" not in model.example_observation()
    torch.testing.assert_close(actions[0], rows(20.0))
    torch.testing.assert_close(actions[1], rows(10.0))


def test_a_policy_that_reads_no_instruction_takes_observations_with_and_without(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path))

    actions = [model.infer([{**arrays(), **task}])[0]["actions"] for task in ({}, {"task": "fold"})]

    torch.testing.assert_close(actions[0], actions[1])


# Frames of another size


def test_a_policy_that_resizes_frames_takes_any_size(tmp_path: Path) -> None:
    config = config_of("smolvla", resize_imgs_with_padding=[32, 32])
    model, _ = loaded(write_checkpoint(tmp_path, config, manifest=MANIFEST + "frame_sizes = { front = [96, 128] }"))

    (action,) = model.infer([arrays(picture=frame(size=(24, 32)), task="")])

    assert model.example_observation()[FRONT].shape == (96, 128, 3)
    torch.testing.assert_close(action["actions"], rows(0.0))


# Actions and their state


def test_each_client_has_a_queue_of_its_own(tmp_path: Path) -> None:
    model, package = loaded(write_checkpoint(tmp_path, manifest=MANIFEST + 'mode = "action"'))
    ask: Any = model

    def action(client_id: int, state: float) -> float:
        ((first, *_),) = (each["action"].tolist() for each in ask.infer_for([arrays(state)], [client_id]))
        return float(first)

    assert package.stateful
    assert [action(1, 0.0), action(1, 50.0), action(2, 30.0), action(1, 50.0)] == pytest.approx([2.0, 4.0, 32.0, 6.0])
    model.reset(1)
    assert [action(1, 10.0), action(2, 0.0)] == pytest.approx([12.0, 34.0])
    ask.client_left(2)
    assert action(2, 0.0) == pytest.approx(2.0)  # another client with the id of one that has left


def test_clients_share_the_weights(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, config_of("diffusion")))
    policy: Any = vars(model)["_policy"]
    for client_id in (1, 2):
        vars(model)["_infer"](arrays(), client_id=client_id)

    policies = [pipeline.policy for pipeline in policy._of_clients.values()]
    assert policies[0] is not policies[1]
    assert policies[0].gain is policies[1].gain
    assert policies[0]._queues is not policies[1]._queues


def test_a_policy_of_an_unknown_type_shares_its_parameters_alone(tmp_path: Path) -> None:
    manifest = MANIFEST + 'mode = "action"\nplugins = true'
    model, _ = loaded(write_checkpoint(tmp_path, config_of("swing"), manifest=manifest))
    ask: Any = model

    first = [ask.infer_for([arrays(state)], [client_id])[0]["action"] for client_id, state in ((1, 0.0), (2, 50.0))]

    assert [each[0].item() for each in first] == pytest.approx([2.0, 52.0])
    policies = [pipeline.policy for pipeline in vars(model)["_policy"]._of_clients.values()]
    assert policies[0].gain is policies[1].gain and policies[0]._queue is not policies[1]._queue


def test_a_policy_that_cannot_be_copied_is_not_served_by_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, manifest=MANIFEST + 'mode = "action"')
    modeling = importlib.import_module("lerobot.policies.modeling")
    reset = modeling.ACTPolicy.reset

    def with_lock(policy: Any) -> None:
        reset(policy)
        policy.lock = threading.Lock()

    monkeypatch.setattr(modeling.ACTPolicy, "reset", with_lock)

    with pytest.raises(ModelPackageError, match=r"the act policy cannot be copied .*lock.* try mode = 'chunk'"):
        loaded(tmp_path)


def test_latest_observations_are_collected_for_each_client(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, config_of("diffusion", chunk_size=1)))
    ask: Any = model

    actions = [
        ask.infer_for([arrays(state)], [client_id])[0]["action"][0].item()
        for client_id, state in ((1, 10.0), (2, 90.0), (1, 30.0))
    ]

    assert actions == pytest.approx([12.0, 92.0, 22.0])  # the mean of the client's latest two states, and a step


def test_temporal_ensembling_is_kept(tmp_path: Path) -> None:
    model, _ = loaded(write_checkpoint(tmp_path, config_of(temporal_ensemble_coeff=0.01)))
    ask: Any = model

    actions = [ask.infer_for([arrays(state)], [1])[0]["action"][0].item() for state in (0.0, 10.0)]

    assert actions == pytest.approx([2.0, (4.0 + 12.0) / 2])


# Loading


def test_weights_that_the_file_lacks_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, weights={"other": np.zeros(1, np.float32)})

    with pytest.raises(ModelPackageError, match=r"model\.safetensors lacks weights of the policy .*\(gain\)"):
        loaded(tmp_path)


def test_a_cut_file_of_weights_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])

    with pytest.raises(ModelPackageError, match=r"model\.safetensors is not a complete safetensors file"):
        loaded(tmp_path)


def test_a_plugins_type_is_known_once_plugins_are_imported(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config_of("swing"))
    with pytest.raises(ModelPackageError, match=r"knows no policy 'swing': .* set plugins = true under \[lerobot\]"):
        loaded(tmp_path)

    (tmp_path / "model.toml").write_text(MANIFEST + "plugins = true")
    model, _ = loaded(tmp_path)

    torch.testing.assert_close(model.infer([arrays()])[0]["actions"], rows(0.0))


def test_a_file_of_the_hub_that_is_missing_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, config_of("smolvla", vlm_model_name="owner/absent"))
    monkeypatch.setenv("HF_HOME", "/srv/hub")

    with pytest.raises(ModelPackageError) as caught:
        loaded(tmp_path)

    text = str(caught.value)
    assert "needs files of the hub beside its own weights (owner/absent)" in text
    assert "HF_HOME is /srv/hub" in text and "hf download owner/absent" in text and "HF_HUB_OFFLINE=1" in text


def test_a_daemon_without_lerobot_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "lerobot.configs.policies", None)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not each.endswith("stand_ins")])

    with pytest.raises(ModelPackageError, match=r"needs LeRobot .*pip install 'shmserve\[lerobot\]'"):
        loaded(tmp_path)


def test_the_rate_of_the_training_environment_is_passed_on(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "train_config.json").write_text('{"env": {"type": "pusht", "fps": 10}}')

    assert loaded(tmp_path)[0].metadata()["control_rate_hz"] == 10.0


def test_statistics_with_an_offset_are_applied_both_ways(tmp_path: Path) -> None:
    scale = {"mean": np.full(6, 5.0), "std": np.full(6, 2.0)}
    model, _ = loaded(write_checkpoint(tmp_path, known=statistics(**{STATE: scale, "action": scale})))

    torch.testing.assert_close(model.infer([arrays(7.0)])[0]["actions"], 7.0 + (rows(0.0) / 5))
