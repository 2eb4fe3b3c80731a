"""What a model must show before it serves: the recorded action, finite numbers, the same in a batch as alone."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models.example_files import read_recorded
from shmserve.daemon.engine.models.validation import deviations, not_finite
from shmserve.daemon.engine.warmup import warmup
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.errors import ModelPackageError, UnsupportedType
from tests.support.packages.saving import CPU, loaded, package

EXAMPLE = '[warmup]\nexample = "example.npz"\n'


def recorded(directory: Path, manifest: str, state: Any, **action: Any) -> Path:
    """A package that doubles `state`, with the action that it must give."""
    package(directory, "model.pt2", "doubled", EXAMPLE + 'expected = "expected.npz"\n' + manifest, state=state)
    np.savez(directory / "expected.npz", **action)
    return directory


def warmed(directory: Path) -> Any:
    model, found = loaded(directory)
    return warm_up(model, CPU, found)


def refusal(directory: Path) -> str:
    model, found = loaded(directory)
    with pytest.raises(ModelPackageError) as caught:
        warm_up(model, CPU, found)
    return str(caught.value)


STATE = np.array([1.0, 2.0], np.float32)


def test_the_recorded_action_lets_a_model_serve(tmp_path: Path) -> None:
    result = warmed(recorded(tmp_path, "", STATE, action=np.array([2.0, 4.0], np.float32)))

    assert result.action == {"action": {"dtype": "float32", "shape": [2]}}


def test_another_action_than_the_recorded_one_is_refused_with_the_largest_difference(tmp_path: Path) -> None:
    directory = recorded(tmp_path, "", STATE, action=np.array([2.0, 4.5], np.float32))

    assert refusal(directory) == (
        "the action for the example is not the one recorded in expected.npz: "
        "action: 1 of 2 values differ, by 0.5 at most (tolerance atol = 0.0001, rtol = 0.001)"
    )


@pytest.mark.parametrize("tolerance", ["{ atol = 0.6 }", "{ rtol = 0.2 }", "{ atol = 0.2, rtol = 0.1 }"])
def test_the_tolerance_is_the_packages(tmp_path: Path, tolerance: str) -> None:
    directory = recorded(tmp_path, f"tolerance = {tolerance}", STATE, action=np.array([2.0, 4.5], np.float32))

    assert warmed(directory).action is not None


def test_an_entry_that_the_action_lacks_is_named(tmp_path: Path) -> None:
    directory = recorded(tmp_path, "", STATE, actions=np.array([2.0, 4.0], np.float32))

    assert "actions: absent (the action has action)" in refusal(directory)


def test_an_expected_action_without_an_example_is_refused(tmp_path: Path) -> None:
    package(tmp_path, "model.pt2", "without_example", '[warmup]\nexpected = "expected.npz"')
    np.savez(tmp_path / "expected.npz", action=STATE)

    assert "the model has no example" in refusal(tmp_path)


@pytest.mark.fault("T43")
def test_nan_in_the_action_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    package(tmp_path / "refused", "model.pt2", "root")
    package(tmp_path / "meant", "model.pt2", "root", "[warmup]\nallow_nonfinite = true")

    assert "action: 1 of 2 values are NaN or infinite (if that is intended, set allow_nonfinite" in refusal(
        tmp_path / "refused"
    )
    assert warmed(tmp_path / "meant").action == {"action": {"dtype": "float32", "shape": [2]}}


def test_free_dimensions_and_the_meaning_become_a_part_of_the_contract(tmp_path: Path) -> None:
    stated = "[contract]\nrate_hz = 50\n[contract.observation]\nstate = [-1]\n"

    result = warmed(recorded(tmp_path, stated, STATE, action=np.array([2.0, 4.0], np.float32)))

    assert result.observation == {"state": {"dtype": "float32", "shape": [-1], "example_shape": [2]}}
    assert result.contract["meaning"] == {"rate_hz": 50, "observation": {"state": {"shape": [-1]}}}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("observation.states]\nunits = 'm'", "states observation.states, and the example's observation has state"),
        ("observation]\nstate = [-1, 2]", "states observation.state as [-1, 2], and the example's is float32[2]"),
        ("observation]\nstate = [3]", "states observation.state as [3], and the example's is float32[2]"),
        ("observation.state]\nnames = ['a']", "with 1 names, and the example's is float32[2]: one for each number"),
        (
            "action.action]\nunits = ['m', 'm', 'm']",
            "states action.action with 3 units, and the example's is float32[2]",
        ),
        ("observation.state]\nframe_size = [2, 2]", "states observation.state as a frame 2 x 2, and the example's is"),
        ("observation.state]\ncolour_order = 'rgb'", "as a frame rgb, and the example's is float32[2]"),
        (
            "]\naction_horizon = 16",
            "states action_horizon = 16, and no entry of the action has as many rows (action: float",
        ),
    ],
)
def test_a_statement_that_the_example_contradicts_is_refused(tmp_path: Path, stated: str, words: str) -> None:
    table = f"[contract.{stated}".replace("[contract.]", "[contract]")
    directory = recorded(tmp_path, table + "\n", STATE, action=np.array([2.0, 4.0], np.float32))

    assert words in refusal(directory)


def test_a_model_that_lets_batches_differ_from_single_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(
        "class Policy:\n"
        "    def __init__(self, path, device): ...\n"
        "    def infer(self, observation): return {'actions': observation['state']}\n"
        "    def infer_batch(self, observations): return [{'actions': o['state'][:1]} for o in observations]\n"
        "    def example_observation(self): return {'state': __import__('numpy').ones(2, 'f4')}\n"
    )
    (tmp_path / "differing.py").write_text((tmp_path / "policy.py").read_text())
    (tmp_path / "model.toml").write_text('[model]\nentry = "differing:Policy"\nmax_batch = 4')

    assert (
        refusal(tmp_path)
        == "the action's structure differs, alone -> in a batch of 4: action.actions: float32[2] -> float32[1]"
    )


@pytest.mark.parametrize(
    ("table", "slow", "runs"),
    [("", False, 3), ("", True, 2), ("rounds = 1\n", False, 1), ("rounds = 5\n", False, 5), ("rounds = 5\n", True, 5)],
    ids=["default", "slow", "one", "five", "five of a slow model"],
)
def test_the_warm_up_runs_as_often_as_the_package_asks_and_less_often_for_a_slow_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, slow: bool, runs: int
) -> None:
    model, found = loaded(package(tmp_path / "p", "model.pt2", "doubled", EXAMPLE + table, state=STATE))
    calls = []
    infer = model.infer

    def counted(observations: Any) -> Any:
        calls.append(observations)
        return infer(observations)

    monkeypatch.setattr(model, "infer", counted)
    monkeypatch.setattr(warmup, "_SLOW_NS", 0 if slow else 1 << 62)

    warm_up(model, CPU, found)

    assert len(calls) == runs


@pytest.mark.parametrize("file", ["example.npz", "expected.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"], ids=["empty", "cut", "text"])
def test_a_recording_that_cannot_be_read_is_refused_naming_it(tmp_path: Path, file: str, content: bytes) -> None:
    directory = recorded(tmp_path, "", STATE, action=2 * STATE)
    (directory / file).write_bytes(content)

    assert f"{file} cannot be read" in refusal(directory)


def test_a_recording_with_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "example.npz", allow_pickle=True, state=np.array([print], object))

    with pytest.raises(ModelPackageError, match=r"example\.npz cannot be read.*allow_pickle"):
        read_recorded(tmp_path / "example.npz")


def test_a_single_array_is_not_a_recording(tmp_path: Path) -> None:
    with open(tmp_path / "example.npz", "wb") as file:
        np.save(file, STATE)

    with pytest.raises(ModelPackageError, match=r"example\.npz cannot be read.*numpy\.savez"):
        read_recorded(tmp_path / "example.npz")


def test_recorded_text_is_text_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "example.npz", task="fold the towel", words=["a", "bc"], raw=b"bytes", number=np.float32(2))

    found = read_recorded(tmp_path / "example.npz")

    assert (found["task"], found["words"], found["raw"]) == ("fold the towel", ["a", "bc"], b"bytes")
    assert found["number"].shape == ()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.array([1.0, np.nan, np.inf]), ["a: 2 of 3 values are NaN or infinite"]),
        (torch.tensor([[1.0, -math.inf]]), ["a: 1 of 2 values are NaN or infinite"]),
        (torch.tensor([math.nan], dtype=torch.bfloat16), ["a: 1 of 1 values are NaN or infinite"]),
        (torch.tensor([complex(0, math.nan)]), ["a: 1 of 1 values are NaN or infinite"]),
        (np.float16("inf"), ["a: 1 of 1 values are NaN or infinite"]),
        (math.nan, ["a: 1 of 1 values are NaN or infinite"]),
        ([0.0, math.inf, 1.0], ["a: 1 of 3 values are NaN or infinite"]),
        ({"b": [np.array([np.nan])]}, ["a.b[0]: 1 of 1 values are NaN or infinite"]),
        (np.array([], np.float32), []),
        (np.array([1, 2]), []),
        (torch.tensor([True]), []),
        (np.array([3.4e38], np.float32), []),
        ("nan", []),
        (None, []),
    ],
)
def test_values_that_are_not_finite_are_counted_and_named(value: Any, found: list[str]) -> None:
    assert not_finite({"a": value}) == found


@pytest.mark.parametrize(
    ("given", "wanted", "says"),
    [
        (torch.tensor([1.0]), np.array([1.0], np.float32), None),
        (torch.tensor([1.00005]), np.array([1.0], np.float32), None),
        (torch.tensor([1.0]), np.array([1.0]), "float32[1] instead of float64[1]"),
        (torch.tensor([1.0]), np.array([[1.0]], np.float32), "float32[1] instead of float32[1, 1]"),
        (torch.tensor([math.nan, 1.0]), np.array([np.nan, 1.0], np.float32), None),
        (torch.tensor([math.nan, 1.0]), np.array([1.0, 1.0], np.float32), "1 of 2 values differ, by nan at most"),
        (torch.tensor([math.inf]), np.array([math.inf], np.float32), None),
        (torch.tensor([math.inf, 2.0]), np.array([0.0, 1.0], np.float32), "2 of 2 values differ, by inf at most"),
        (torch.tensor([1.0], dtype=torch.bfloat16), np.array([1.0], np.float32), None),
        (np.array([1.0], ml_dtypes.bfloat16), np.array([1.0], np.float32), None),
        (torch.tensor([100000]), np.array([100001]), "1 of 1 values differ"),
        (torch.tensor([True, False]), np.array([True, True]), "1 of 2 values differ"),
        (torch.tensor([1 + 1j]), np.array([1 + 2j], np.complex64), "1 of 1 values differ, by 1 at most"),
        (3, np.array(3), None),
        (3, np.array(4), "1 of 1 values differ"),
        (0.5, np.array(0.5), None),
        ([0.5, 1.0], np.array([0.5, 1.0]), None),
        ("left", "left", None),
        ("left", "right", "'left' instead of 'right'"),
        ("left", np.array(1), "'left' instead of array(1)"),
    ],
)
def test_an_action_is_compared_entry_by_entry(given: Any, wanted: Any, says: str | None) -> None:
    found = deviations({"a": given, "more": 1}, {"a": wanted}, atol=1e-4, rtol=1e-3)

    assert len(found) == (says is not None)
    assert says is None or found[0].startswith(f"a: {says}")


def test_nested_entries_are_compared_by_their_names_in_a_contract() -> None:
    action = {"arm": {"left": torch.ones(2)}, "poses": [torch.zeros(1), torch.ones(1)]}

    assert (
        deviations(action, {"arm.left": np.ones(2, np.float32), "poses[1]": np.ones(1, np.float32)}, atol=0, rtol=0)
        == []
    )
    (wrong,) = deviations(action, {"poses[0]": np.ones(1, np.float32)}, atol=0.5, rtol=0)
    assert wrong.startswith("poses[0]: 1 of 1 values differ, by 1 at most")


_UNLIKE = """
import itertools, random
import numpy as np
import torch
class Policy:
    def __init__(self, path, device):
        self.calls = itertools.count()
        self.dropout = torch.nn.Dropout()
        self.action = torch.zeros(4)
    def example_observation(self): return {"state": np.ones(64, np.float32)}
    def infer(self, o): return {"same": 1.0, "pose": %s}
    def reset(self, client_id): self.calls = itertools.count()
"""


@pytest.mark.parametrize(
    ("pose", "says"),
    [
        ("next(self.calls)", "keeps state from one request to the next"),
        ("self.action.add_(1)", "keeps state"),  # the same memory each time
        ("str(next(self.calls))", "keeps state"),
        ("self.dropout(o['state'])", "draws random numbers. If that is intended (sampled noise), set sampling = true"),
        ("torch.randn(4)", "draws random numbers"),
        ("np.random.rand(4)", "draws random numbers"),
        ("random.random()", "draws random numbers"),
    ],
)
def test_a_class_whose_actions_for_one_example_differ_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pose: str, says: str
) -> None:
    (tmp_path / "policy.py").write_text(_UNLIKE % pose)
    before = torch.random.get_rng_state()

    warmed(tmp_path)

    (record,) = caplog.records
    assert "gives different actions for the same example (pose: " in record.getMessage() and says in record.getMessage()
    assert "drop" in pose or "torch" in pose or torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("pose", "declared"),
    [
        ("next(self.calls)", "stateful = true"),
        ("torch.randn(4)", "sampling = true"),
        ("float('nan')", "[warmup]\nallow_nonfinite = true"),
        ("object", ""),
        ("o['state'] * 2", ""),
    ],
)
def test_of_a_class_that_says_so_or_answers_alike_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pose: str, declared: str
) -> None:
    (tmp_path / "policy.py").write_text(_UNLIKE % pose)
    (tmp_path / "model.toml").write_text(f"[model]\n{declared}\n")

    with contextlib.suppress(UnsupportedType):  # only now: an action that cannot be carried
        warmed(tmp_path)

    assert not caplog.records
