"""What `deterministic = true` promises: the same observation, the same bits, whatever the other clients do."""

from __future__ import annotations

import importlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import ShmClient
from shmserve.daemon.engine.models.determinism import require_determinism
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import POLICIES, Daemon

pytestmark = pytest.mark.sealed_too

_ASKED = 40


def _drawing(folder: Path, *, deterministic: bool) -> Path:
    package = shutil.copytree(POLICIES / "drawing", folder / f"drawing-{deterministic}")
    with (package / "model.toml").open("a") as manifest:
        manifest.write(f"deterministic = {str(deterministic).lower()}\n")
    return package


def _crowd(client: ShmClient, stop: threading.Event) -> None:
    """Keeps requests of changing content in flight."""
    number = 0
    while not stop.is_set():
        pendings = [client.submit({"x": np.full(300, number + row, np.float32)}) for row in range(4)]
        for pending in pendings:
            pending.result()
        number += 1


def _answers(daemon: Daemon) -> tuple[set[bytes], set[int]]:
    """The different bits that one observation got while two others asked, and the sizes of the batches it was in."""
    stop = threading.Event()
    with daemon.client(slots=4) as one, daemon.client(slots=4) as other, daemon.client(slots=8) as asking:
        threads = [threading.Thread(target=_crowd, args=(client, stop)) for client in (one, other)]
        for thread in threads:
            thread.start()
        observation = {"x": np.linspace(0.1, 3.7, 300, dtype=np.float32)}
        found: list[dict[str, Any]] = []
        for _ in range(_ASKED // 8):
            pendings = [asking.submit(observation) for _ in range(8)]
            found += [pending.result() for pending in pendings]
        stop.set()
        for thread in threads:
            thread.join()
    return {action["y"].tobytes() + repr(action["drawn"]).encode() for action in found}, {a["batch"] for a in found}


@pytest.mark.long
def test_other_clients_change_no_bit_of_an_action(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    first = start_daemon(_drawing(tmp_path, deterministic=True), name="a")
    answers, batches = _answers(first)
    assert len(answers) == 1
    assert batches == {1}
    assert first.status()["model"]["max_batch"] == 1

    again, _ = _answers(start_daemon(first.package, name="b"))

    assert again == answers, "another engine gives other bits"


def test_without_it_they_do(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    answers, batches = _answers(start_daemon(_drawing(tmp_path, deterministic=False)))

    assert len(answers) > 1
    assert max(batches) > 1


@pytest.fixture
def torch_as_it_was() -> Any:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def test_a_workspace_that_does_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch, torch_as_it_was: None) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ModelPackageError, match=r"':0:0'.*unset it"):
        require_determinism()

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    require_determinism()

    assert torch.are_deterministic_algorithms_enabled()
    # torch does that with its algorithms: its compiler would choose kernels by their measured time.
    config = importlib.import_module("torch._inductor.config")
    assert config.deterministic
