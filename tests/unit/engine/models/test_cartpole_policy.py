"""The demo's policy: what is committed balances the pole, and asks for what it says it asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.folders import REPOSITORY

CARTPOLE = REPOSITORY / "examples" / "cartpole"
MODEL = CARTPOLE / "model"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    # Two threads of so small a network wait for each other on a busy machine: 30 times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def policy() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # As the engine imports it: the package leads sys.path, and stays free of bytecode.
        patch.syspath_prepend(MODEL)
        patch.setattr(sys, "dont_write_bytecode", True)
        import policy

        yield policy.Policy(MODEL, torch.device("cpu"))
        del sys.modules["policy"]


@pytest.fixture
def camera(policy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(CARTPOLE)
    from camera import CameraCartPole

    history = policy.metadata()["observation"]["frames"]["shape"][0]
    camera = CameraCartPole(history)
    yield camera
    camera.close()


def as_the_engine_gives_it(observation: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in observation.items()}


def test_the_committed_policy_balances_an_episode_from_frames_alone(policy: Any, camera: Any) -> None:
    camera.reset(seed=0)
    total, over = 0.0, False

    while not over:
        answer = policy.infer(as_the_engine_gives_it({"frames": camera.look()}))
        reward, over = camera.push(answer["action"])
        total += reward

    assert total >= 400


def test_the_policy_answers_its_own_example(policy: Any, camera: Any) -> None:
    camera.reset(seed=0)
    seen = {"frames": camera.look()}

    example = policy.example_observation()
    answer = policy.infer(as_the_engine_gives_it(example))

    assert {name: (array.dtype, array.shape) for name, array in example.items()} == {
        name: (array.dtype, array.shape) for name, array in seen.items()
    }
    assert answer.keys() == {"action", "logits"}
    assert answer["action"] in (0, 1)
    assert (answer["logits"].dtype, answer["logits"].shape) == (torch.float32, (2,))
    assert answer["action"] == int(answer["logits"].argmax())


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((3, 200, 300, 3), np.uint8), id="another size"),
        pytest.param(np.zeros((1, 400, 600, 3), np.uint8), id="another history"),
        pytest.param(np.zeros((3, 400, 600, 3), np.float32), id="another dtype"),
    ],
)
def test_frames_of_another_camera_are_refused_by_shape_and_dtype(policy: Any, frames: Any) -> None:
    with pytest.raises(ValueError, match=r"trained on uint8\[3, 400, 600, 3\]"):
        policy.infer(as_the_engine_gives_it({"frames": frames}))


def test_the_committed_weights_are_less_than_two_megabytes() -> None:
    assert 0 < (MODEL / "weights.safetensors").stat().st_size < 2_000_000
