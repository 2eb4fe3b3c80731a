"""Gradients in a policy, and observations that any of its threads may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.daemon_process import Daemon
from tests.support.packages.saving import loaded, package

pytestmark = pytest.mark.sealed_too

_ASKS = """
import torch
class Policy:
    def __init__(self, path, device): pass
    def infer(self, o): return [torch.is_inference_mode_enabled(), torch.is_grad_enabled()]
    def infer_batch(self, many, client_ids=()): return [self.infer(o) for o in many]
class PerClient(Policy):
    def infer(self, o, client_id=0): return super().infer(o)
    def reset(self, client_id): pass
"""


@pytest.mark.long
def test_a_policy_steers_by_a_gradient_and_its_threads_change_the_observation(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("gradients")
    x = np.array([1, 2, 3], np.float32)
    with daemon.client() as client:
        answers = [client.infer({"x": x}) for _ in range(3)]

    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3)
    given = torch.from_numpy(x).requires_grad_(True)
    value = (network(given) ** 2).sum()
    gradient, weight = torch.autograd.grad(value, [given, network.weight])
    for answer in answers:
        np.testing.assert_allclose(answer["gradient"], gradient, rtol=1e-6)
        np.testing.assert_allclose(answer["weight"], weight, rtol=1e-6)
        np.testing.assert_allclose(answer["wanted"], value.detach(), rtol=1e-6)
        assert answer["needs"] is False and answer["x"].tolist() == [14, 6, 8]


@pytest.mark.parametrize(("grad", "mode"), [("", False), ("grad = true", False), ("grad = false", True)])
@pytest.mark.parametrize("entry", ["Policy", "PerClient"])
def test_grad_says_whether_a_class_runs_in_inference_mode(tmp_path: Path, grad: str, mode: bool, entry: str) -> None:
    (tmp_path / "asks.py").write_text(_ASKS)
    (tmp_path / "model.toml").write_text(f'[model]\nentry = "asks:{entry}"\nmax_batch = 2\n{grad}\n')
    model, _ = loaded(tmp_path)

    with torch.no_grad():  # as the engine's loop
        assert [*model.infer([{}]), *model.infer([{}, {}])] == [[mode, False]] * 3


@pytest.mark.parametrize(("grad", "mode"), [("", True), ("grad = false", True), ("grad = true", False)])
@pytest.mark.parametrize("file", ["model.pt", "model.pt2"])
def test_grad_says_whether_a_saved_module_does(tmp_path: Path, file: str, grad: str, mode: bool) -> None:
    model, _ = loaded(package(tmp_path, file, "doubled", f"[model]\n{grad}\n"))

    with torch.no_grad():
        action: Any = model.infer([{"state": torch.ones(2)}])[0]["action"]

    assert (torch.is_inference(action), action.requires_grad) == (mode, False)
