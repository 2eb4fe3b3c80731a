"""Model packages behind a real daemon: what a robot gets, and what an operator reads when one cannot serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.errors import ShmServeError
from tests.support.daemon_process import Daemon
from tests.support.packages import networks
from tests.support.packages.networks import IMAGE_SHAPE, seeded
from tests.support.packages.saving import package
from tests.unit.engine.models.test_python_class import bring_weights, install_scale, python_package

Start = Callable[..., Daemon]

IN_ROWS = '[model]\nname = "reach"\nbatch_dim = true\nmax_batch = 8\noutputs = ["actions"]\n'


def observation(seed: int) -> dict[str, Any]:
    numbers = np.random.default_rng(seed)
    return {
        "image": numbers.integers(0, 256, IMAGE_SHAPE, np.uint8),
        "state": numbers.random(2, np.float32),
        "task": "reach the cup",
    }


def reach(seen: dict[str, Any]) -> Any:
    with torch.inference_mode():
        rows = [torch.from_numpy(seen[name])[None] for name in ("image", "state")]
        return seeded(networks.Reach)(*rows)[0].numpy()


@pytest.fixture(scope="module")
def reaching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon of the exported network."""
    manifest = IN_ROWS + "read_in_place = true\n[metadata]\ncontrol_rate_hz = 50"
    with Daemon(package(tmp_path_factory.mktemp("reach") / "reach", "model.pt2", "reach", manifest)) as daemon:
        yield daemon


def test_an_exported_program_answers_robots_one_by_one_and_in_batches(reaching: Daemon) -> None:
    several = [observation(seed) for seed in range(24)]

    with reaching.client() as client:
        alone = client.infer(several[0])
        pending = [client.submit(seen) for seen in several[:8]]
        together = [one.result(30) for one in pending]
        metadata = client.describe()

    np.testing.assert_allclose(alone["actions"], reach(several[0]), rtol=1e-4, atol=1e-5)
    for seen, action in zip(several, together, strict=False):
        np.testing.assert_allclose(action["actions"], reach(seen), rtol=1e-4, atol=1e-5)
    assert "50" in str(metadata)
    model = reaching.status()["model"]
    assert (model["name"], model["max_batch"]) == ("reach", 8)
    assert model["contract"] == {
        "observation": {
            "image": {"dtype": "uint8", "shape": list(IMAGE_SHAPE)},
            "state": {"dtype": "float32", "shape": [2]},
        },
        "action": {"actions": {"dtype": "float32", "shape": [4]}},
    }


def test_a_client_with_another_camera_gets_the_differences_and_other_clients_continue(reaching: Daemon) -> None:
    seen = observation(1)

    with reaching.client(check_contract=False) as wrong, reaching.client() as right:
        for _ in range(3):
            with pytest.raises(ShmServeError) as caught:
                wrong.infer({**seen, "image": seen["image"].astype(np.float32)})
            np.testing.assert_allclose(right.infer(seen)["actions"], reach(seen), rtol=1e-4, atol=1e-5)

    assert "image: expected uint8[12, 16, 3], got float32[12, 16, 3]" in str(caught.value)


def test_a_torchscript_file_alone_is_a_package(start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(package(tmp_path / "doubler", "model.pt", "doubled"))

    with daemon.client() as client:
        action = client.infer({"state": np.array([1.0, 2.5], np.float32)})

    assert action["action"].tolist() == [2.0, 5.0]
    assert daemon.status()["model"]["name"] == "doubler"


def test_without_allow_code_an_installed_policy_serves(
    start_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_scale(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    directory = bring_weights(tmp_path / "p", 5.0)
    (directory / "model.toml").write_text(
        '[model]\nformat = "installed"\nentry = "scale"\nweights = "weights.safetensors"'
    )
    daemon = start_daemon(directory, config="allow_code = false")

    with daemon.client() as client:
        assert client.infer({"state": np.ones(2, np.float32)})["actions"].tolist() == [5.0, 5.0]


def test_without_allow_code_a_package_with_code_does_not_start(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    directory = python_package(tmp_path / "p")
    (directory / "policy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    daemon = make_daemon(directory, config="allow_code = false")

    assert daemon.run_to_end() != 0
    assert "format 'python' can run code from the package, and this daemon's allow_code is false" in daemon.log
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_a_model_that_gives_nan_for_its_example_never_serves(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(package(tmp_path / "root", "model.pt2", "root"))

    assert daemon.run_to_end() != 0
    assert "action: 1 of 2 values are NaN or infinite" in daemon.log
