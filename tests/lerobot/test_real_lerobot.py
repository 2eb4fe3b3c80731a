"""Checkpoints that LeRobot itself saved, behind a real daemon: the actions are those of LeRobot's own control loop.

`make test-lerobot` runs this in an environment with LeRobot; others skip it. Policies that sample get the same noise on both
sides: the package declares `deterministic = true`, and LeRobot's generators are set to the engine's seed before each request.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="LeRobot is not installed here: make test-lerobot")

import torch
from safetensors.torch import load_file, save_file

from shmserve.client import ContractMismatch
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import Daemon
from tests.support.lerobot_reference import FRONT, STATE, Lerobot, observations, save
from tests.support.packages.saving import loaded
from tests.support.tiny_vlm import save_tiny_vlm

# Other people's libraries warn about themselves.
pytestmark = pytest.mark.filterwarnings("default")

SAMPLED = '[model]\nformat = "lerobot"\ndeterministic = true\n'


@pytest.fixture(autouse=True, scope="module")
def surroundings() -> Iterator[None]:
    """No network, and as many threads as the engine has: another number rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["HF_HUB_OFFLINE"]


def assert_same(actions: Any, wanted: Any) -> None:
    np.testing.assert_allclose(actions, wanted, rtol=1e-5, atol=1e-5)


def same_noise() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def test_act_is_served_in_chunks_from_the_directory_as_it_was_saved(tmp_path: Path) -> None:
    path = save(tmp_path / "pretrained_model", "act")
    lerobot = Lerobot(path)
    with Daemon(path) as daemon, daemon.client() as client:
        for seen in observations("act", 5):
            assert_same(client.infer(seen)["actions"], lerobot.chunk(seen))
        model = client.describe()
        with pytest.raises(ContractMismatch, match=r"uint8\[48, 64, 3\] -> uint8\[24, 64, 3\]"):
            client.infer({**seen, FRONT: seen[FRONT][::2]})

    assert model["metadata"]["lerobot"]["n_action_steps"] == 4


@pytest.mark.parametrize("coefficient", [None, 0.01], ids=["queue", "ensembling"])
def test_act_is_served_by_action(tmp_path: Path, coefficient: float | None) -> None:
    steps = {} if coefficient is None else {"n_action_steps": 1}
    path = save(tmp_path / "act", "act", temporal_ensemble_coeff=coefficient, **steps)
    (path / "model.toml").write_text('[model]\nformat = "lerobot"\n[lerobot]\nmode = "action"\n')
    assert_actions_are_lerobots(path, "act")


@pytest.mark.parametrize("kind", ["diffusion", "vqbet", "tdmpc"])
def test_a_policy_with_queues_is_served_by_action(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / kind, kind)
    (path / "model.toml").write_text(SAMPLED)
    assert_actions_are_lerobots(path, kind)


def assert_actions_are_lerobots(path: Path, kind: str) -> None:
    """Let two robots ask in turn, each with episodes of its own, and compare with two policies of LeRobot's."""
    own = [Lerobot(path), Lerobot(path)]
    seen = [observations(kind, 9, seed) for seed in (1, 2)]
    with Daemon(path) as daemon, daemon.client() as one, daemon.client() as other:
        for step in range(9):
            for client, lerobot, each in zip((one, other), own, seen, strict=True):
                if step == 5 and client is other:
                    client.reset()
                    lerobot.reset()
                same_noise()
                wanted = lerobot.action(each[step])
                assert_same(client.infer(each[step])["action"], wanted)
        assert daemon.status()["model"]["contract"]["action"]["action"]["shape"] == [6]


@pytest.mark.parametrize("mode", ["chunk", "action"])
def test_smolvla_is_served_without_a_network(tmp_path: Path, mode: str) -> None:
    language = save_tiny_vlm(tmp_path / "vlm")
    path = smolvla(tmp_path / "smolvla", language)
    (path / "model.toml").write_text(f'{SAMPLED}[lerobot]\nmode = "{mode}"\n')
    lerobot = Lerobot(path)
    with Daemon(path) as daemon, daemon.client() as client:
        for seen, task in zip(observations("smolvla", 4), ("fold the towel", "stack", "", "fold"), strict=True):
            same_noise()
            wanted = lerobot.chunk(seen, task) if mode == "chunk" else lerobot.action(seen, task)
            (actions,) = client.infer({**seen, "task": task}).values()
            assert_same(actions, wanted)
        with pytest.raises(ContractMismatch, match="task: str -> absent"):
            client.infer(seen)


def smolvla(path: Path, language: Path) -> Path:
    sizes = {"num_vlm_layers": 2, "resize_imgs_with_padding": (32, 32), "chunk_size": 6, "n_action_steps": 3}
    return save(path, "smolvla", vlm_model_name=str(language), num_steps=2, **sizes)


def test_a_language_model_that_is_not_in_the_cache_is_named_with_its_remedy(tmp_path: Path) -> None:
    language = save_tiny_vlm(tmp_path / "vlm")
    path = smolvla(tmp_path / "smolvla", language)
    shutil.rmtree(language)
    for file in ("config.json", "policy_preprocessor.json"):
        text = (path / file).read_text().replace(str(language), "HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
        (path / file).write_text(text)
    daemon = Daemon(path)
    daemon.environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    daemon.expected_in_log = {""}
    daemon.run_to_end()
    log = daemon.log

    assert f"HF_HOME is {tmp_path / 'hub'}" in log
    assert "hf download HuggingFaceTB/SmolVLM2-500M-Video-Instruct" in log


def test_a_checkpoint_of_a_newer_lerobot_is_refused_naming_its_setting(tmp_path: Path) -> None:
    path = save(tmp_path / "act", "act")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "brand_new": 3}))

    with pytest.raises(ModelPackageError, match=r"config\.json does not fit LeRobot 0\.\d+\.\d+: .*brand_new"):
        loaded(path)


def test_weights_that_lerobot_would_replace_by_random_numbers_are_missed(tmp_path: Path) -> None:
    path = save(tmp_path / "act", "act")
    weights = load_file(path / "model.safetensors")
    del weights["model.action_head.weight"]
    save_file(weights, path / "model.safetensors")

    with pytest.raises(ModelPackageError, match=r"model\.safetensors lacks weights .*\(model\.action_head\.weight\)"):
        loaded(path)


def test_no_weights_of_a_backbone_are_downloaded(tmp_path: Path) -> None:
    path = save(tmp_path / "act", "act")
    config = json.loads((path / "config.json").read_text())
    config["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"
    (path / "config.json").write_text(json.dumps(config))
    with Daemon(path) as daemon, daemon.client() as client:
        (seen,) = observations("act", 1)
        assert client.infer(seen)["actions"].shape == (10, 6)


def test_joints_by_name_and_frames_of_floats_give_the_same_actions(tmp_path: Path) -> None:
    names = [f"joint_{number}.pos" for number in range(6)]
    path = save(tmp_path / "act", "act")
    (path / "model.toml").write_text(f'[model]\nformat = "lerobot"\n[lerobot]\njoints = {names}\n')
    lerobot = Lerobot(path)
    with Daemon(path) as daemon, daemon.client() as client, daemon.client(check_contract=False) as unchecked:
        for seen in observations("act", 2):
            flat: dict[str, Any] = dict(zip(names, map(float, seen[STATE]), strict=True))
            wanted = lerobot.chunk(seen)
            assert_same(client.infer({**flat, "front": seen[FRONT]})["actions"], wanted)
            floats = seen[FRONT].astype(np.float32) / 255
            assert_same(unchecked.infer({**flat, "front": floats})["actions"], wanted)


def test_a_checkpoint_trained_with_other_names_of_cameras_takes_the_robots(tmp_path: Path) -> None:
    path = save(tmp_path / "act", "act")
    (path / "model.toml").write_text(
        f'[model]\nformat = "lerobot"\n[lerobot]\nrename_map = {{ "observation.images.top" = "{FRONT}" }}\n'
    )
    lerobot = Lerobot(path)
    with Daemon(path) as daemon, daemon.client() as client:
        (seen,) = observations("act", 1)
        actions = client.infer({STATE: seen[STATE], "observation.images.top": seen[FRONT]})["actions"]

    assert_same(actions, lerobot.chunk(seen))


def test_an_adapter_of_peft_is_served_over_its_base(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save(tmp_path / "package" / "base", "act")
    own = Lerobot(base)
    settings = peft.LoraConfig(r=2, target_modules=["linear1", "linear2"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(own.policy, settings)
    adapter = tmp_path / "package" / "adapter"
    adapted.save_pretrained(str(adapter))
    for file in base.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, adapter)
    (tmp_path / "package" / "model.toml").write_text(
        '[model]\nformat = "lerobot"\n[lerobot]\ncheckpoint = "adapter"\nbase = "base"\n'
    )
    plain = Lerobot(base)
    own.policy = adapted.eval()
    with Daemon(tmp_path / "package") as daemon, daemon.client() as client:
        (seen,) = observations("act", 1)
        actions = client.infer(seen)["actions"]

    assert_same(actions, own.chunk(seen))
    assert np.abs(actions - plain.chunk(seen)).max() > 1e-3  # the adapter does something

    manifest = tmp_path / "package" / "model.toml"
    manifest.write_text(manifest.read_text() + 'mode = "action"\n')
    model: Any = loaded(tmp_path / "package")[0]
    tensors = {name: torch.from_numpy(value) for name, value in seen.items()}
    by_client = [model.infer_for([tensors], [client])[0]["action"] for client in (1, 2)]
    for action in by_client:
        assert_same(action, own.action(seen))
        own.reset()
