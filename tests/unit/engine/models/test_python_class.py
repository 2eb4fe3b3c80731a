"""Packages whose model is a class: in the package or installed, with weights as safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.packages.saving import CPU, loaded

POLICY = '''
"""Scales by a weight that the package brings."""

import json

from safetensors.torch import load_file


class Scale:
    def __init__(self, path, device):
        print("constructed")
        self.gain = load_file(path / "weights.safetensors", device=str(device))["gain"]
        self.resets = []

    def infer(self, observation):
        return {"actions": observation["state"] * self.gain}

    def reset(self, client_id):
        self.resets.append(client_id)

    def metadata(self):
        return {"gain": self.gain.item(), "units": "mm"}
'''


def bring_weights(directory: Path, gain: float = 3.0) -> Path:
    directory.mkdir(exist_ok=True)
    save_file({"gain": torch.tensor(gain)}, directory / "weights.safetensors")
    return directory


def python_package(directory: Path, manifest: str = "") -> Path:
    bring_weights(directory)
    (directory / "policy.py").write_text(POLICY)
    (directory / "model.toml").write_text(
        f'[model]\nentry = "policy:Scale"\nweights = "weights.safetensors"\n{manifest}'
    )
    return directory


def install_scale(site: Path) -> None:
    """As pip leaves a distribution behind that registers a policy."""
    site.mkdir()
    (site / "scale_policies.py").write_text(POLICY)
    info = site / "scale_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scale-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shmserve.policies]\nscale = scale_policies:Scale\n")


def test_a_class_is_made_with_its_weights(tmp_path: Path) -> None:
    model, _ = loaded(python_package(tmp_path / "p"))

    assert model.infer([{"state": torch.tensor([1.0, 2.0])}])[0]["actions"].tolist() == [3.0, 6.0]


def test_attributes_of_the_class_win_over_the_manifest(tmp_path: Path) -> None:
    model, _ = loaded(python_package(tmp_path / "p", "[metadata]\nunits = 'm'\nrate_hz = 20"))

    assert model.metadata() == {"units": "mm", "rate_hz": 20, "gain": 3.0}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:8],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b"F32", b"F64"),
        lambda data: data.replace(b"F32", b"F3X"),
        lambda data: data.replace(b"[0,4]", b"[0,8]"),
        lambda data: b"\x02" + b"\0" * 7 + b"{}",
    ],
    ids=["short", "long", "headless", "empty", "huge header", "other size", "no dtype", "overlong", "no tensors"],
)
def test_unsound_weights_are_refused_before_any_code_of_the_package_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object
) -> None:
    file = python_package(tmp_path / "p") / "weights.safetensors"
    assert callable(spoil)
    file.write_bytes(spoil(file.read_bytes()))

    with pytest.raises(ModelPackageError, match=r"weights\.safetensors (is not a complete|holds no tensors)"):
        loaded(tmp_path / "p")

    assert "policy" not in sys.modules
    assert capsys.readouterr().out == ""


def test_an_installed_policy_serves_weights_that_bring_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_scale(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    directory = bring_weights(tmp_path / "p", 5.0)
    (directory / "model.toml").write_text(
        '[model]\nformat = "installed"\nentry = "scale"\nweights = "weights.safetensors"'
    )
    (directory / "scale_policies.py").write_text("raise SystemExit('the code of the package ran')")

    assert ModelPackage.read(directory, allow_code=False).format == "installed"
    model, _ = loaded(directory)

    assert model.infer([{"state": torch.tensor([1.0])}])[0]["actions"].tolist() == [5.0]


def test_a_policy_that_is_not_installed_is_missed_naming_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_scale(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    directory = bring_weights(tmp_path / "p")
    (directory / "model.toml").write_text('[model]\nformat = "installed"\nentry = "scales"')

    with pytest.raises(ModelPackageError, match=r"no installed policy is named 'scales' .*: scale"):
        loaded(directory)


@pytest.mark.parametrize("entry", ["os:system", "scale_policies:Scale", "builtins:exec"])
def test_an_installed_entry_names_what_is_registered_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    install_scale(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    directory = bring_weights(tmp_path / "p")
    (directory / "model.toml").write_text(f'[model]\nformat = "installed"\nentry = "{entry}"')

    with pytest.raises(ModelPackageError, match="no installed policy is named"):
        loaded(directory)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("", "module policy has no Policy|policy has no Policy"),
        ("class Policy:\n    def __init__(self, path, device): ...", r"has no method infer\(observation\)"),
    ],
)
def test_a_class_that_is_none_is_refused(tmp_path: Path, policy: str, says: str) -> None:
    (tmp_path / "policy.py").write_text(policy)

    with pytest.raises(ModelPackageError, match=says):
        loaded(tmp_path)


def test_a_stateful_policy_is_told_to_forget_the_warm_up(tmp_path: Path) -> None:
    import numpy as np

    directory = python_package(tmp_path / "p", 'stateful = true\n[warmup]\nexample = "example.npz"')
    np.savez(directory / "example.npz", state=np.ones(2, np.float32))
    model, found = loaded(directory)

    warm_up(model, CPU, found)

    resets = model._policy.resets  # type: ignore[attr-defined]
    assert len(resets) == 4  # before each of three rounds, and after them
