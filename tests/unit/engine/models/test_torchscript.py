"""Packages of TorchScript: arguments by the schema, dtypes by the example, rows of a batch, reset."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.error_text import client_message, log_message
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.errors import ContractMismatch, ModelPackageError
from tests.support.packages import networks
from tests.support.packages.networks import IMAGE_SHAPE, seeded
from tests.support.packages.saving import CPU, loaded, package

IN_ROWS = "[model]\nbatch_dim = true\nmax_batch = 8\n"
STATEFUL = "[model]\nstateful = true\n"
EXAMPLE = '[warmup]\nexample = "example.npz"\n'
IMAGE, STATE = np.full(IMAGE_SHAPE, 200, np.uint8), np.array([0.25, 0.5], np.float32)


def observation(state: float = 0.5) -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(IMAGE.copy()), "state": torch.tensor([0.25, state])}


def reach(*observations: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        rows = [torch.stack([seen[name] for seen in observations]) for name in ("image", "state")]
        actions: torch.Tensor = seeded(networks.Reach)(*rows)
    return actions


def mismatch(model: Any, seen: Any) -> str:
    with pytest.raises(ContractMismatch) as caught:
        model.infer([seen])
    return str(caught.value)


def test_a_traced_module_takes_its_arguments_by_name_in_rows(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "reach", IN_ROWS))
    several = [observation(number / 8) for number in range(8)]

    actions = model.infer(several)

    torch.testing.assert_close(torch.stack([action["action"] for action in actions]), reach(*several))


@pytest.mark.parametrize("name", ["reach_named", "reach_scripted"])
def test_a_module_of_one_dict_takes_what_the_example_has_of_an_observation(tmp_path: Path, name: str) -> None:
    model, found = loaded(package(tmp_path, "model.pt", name, IN_ROWS + EXAMPLE, image=IMAGE, state=STATE))
    seen = observation()

    result = warm_up(model, CPU, found)
    (action, other) = model.infer([{"task": "lift", **seen}, {"state": seen["state"] * 0, "image": seen["image"]}])

    assert result.action == {"actions": {"dtype": "float32", "shape": [4]}, "effort": {"dtype": "float32", "shape": []}}
    torch.testing.assert_close(action["actions"], reach(seen)[0])
    assert not torch.equal(other["actions"], action["actions"])


def test_a_module_of_one_dict_without_an_example_takes_the_observation_as_it_is(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "reach_scripted", IN_ROWS))
    seen = observation()

    (action, _) = model.infer([seen, observation(0.75)])

    torch.testing.assert_close(action["actions"], reach(seen)[0])
    with pytest.raises(RuntimeError, match="Dict"):
        model.infer([{**seen, "task": "lift"}])


def test_inputs_and_outputs_name_what_the_module_does_not(tmp_path: Path) -> None:
    manifest = '[model]\ninputs = ["robot.joints"]\noutputs = ["pose", "sum"]'
    model, _ = loaded(package(tmp_path, "model.pt", "triple", manifest))

    (action,) = model.infer([{"robot": {"joints": torch.tensor([1.0, 2.0])}}])

    assert (action["pose"].tolist(), action["sum"].item()) == ([3.0, 6.0], 3.0)


def test_a_named_tuple_names_its_results(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "named_tupled"))

    (action,) = model.infer([{"state": torch.tensor([1.0, 2.0])}])

    assert (action["action"].tolist(), action["value"].item()) == ([2.0, 3.0], 3.0)


def test_results_without_names_are_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=r'returns 2 values without names.*outputs = \["name1", "name2"\]'):
        loaded(package(tmp_path, "model.pt", "triple"))


def test_another_number_of_outputs_than_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=r"outputs = .* but the module returns 1 value"):
        loaded(package(tmp_path, "model.pt", "doubled", '[model]\noutputs = ["a", "b"]'))


def test_the_wrong_number_of_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="names 3 arguments, the module takes state: Tensor, gain: float"):
        loaded(package(tmp_path, "model.pt", "resettable", '[model]\ninputs = ["a", "b", "c"]'))


def test_an_argument_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "resettable", STATEFUL))
    state = torch.tensor([1.0, 2.0])

    assert model.infer([{"state": state}])[0]["action"].tolist() == [3.0, 5.0]  # gain 2, first call
    assert model.infer([{"state": state, "gain": 10.0}])[0]["action"].tolist() == [12.0, 22.0]
    assert mismatch(model, {"gain": 1.0}) == "state: expected any tensor, got missing (the observation has gain)"
    assert mismatch(model, {"state": 1.0}) == "state: expected any tensor, got the float 1.0"


def test_the_example_says_which_dtypes_and_dimensions_are_meant(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "doubled", EXAMPLE, state=STATE))

    assert model.infer([{"state": torch.ones(5)}])[0]["action"].tolist() == [2.0] * 5  # lengths may vary
    assert mismatch(model, {"state": torch.ones(2, dtype=torch.float64)}) == (
        "state: expected float32 of 1 dimensions, got float64[2]"
    )
    assert mismatch(model, {"state": torch.ones(1, 2)}) == (
        "state: expected float32 of 1 dimensions, got float32[1, 2]"
    )


def test_an_exported_reset_is_called(tmp_path: Path) -> None:
    model, found = loaded(
        package(tmp_path, "model.pt", "resettable", "[model]\nstateful = true\n" + EXAMPLE, state=STATE)
    )
    state = torch.tensor([0.0, 0.0])

    warm_up(model, CPU, found)
    calls = [model.infer([{"state": state}])[0]["action"][0].item() for _ in range(2)]
    model.reset(3)

    assert calls == [1.0, 2.0]
    assert model.infer([{"state": state}])[0]["action"][0].item() == 1.0


@pytest.mark.parametrize(
    ("name", "kept"),
    [("resettable", "calls"), ("accumulating", "total"), ("listing", r"inner\.seen"), ("counted", "mean, var")],
)
def test_a_module_that_keeps_something_and_does_not_say_so_is_refused(tmp_path: Path, name: str, kept: str) -> None:
    directory = package(tmp_path, "model.pt", name, EXAMPLE, state=STATE)

    with pytest.raises(ModelPackageError, match=rf"keeps state .*\({kept}\).*stateful = true"):
        loaded(directory)


@pytest.mark.parametrize("name", ["drawn", "normalised", "doubled"])
def test_a_module_that_keeps_nothing_is_served(tmp_path: Path, name: str) -> None:
    model, found = loaded(package(tmp_path, "model.pt", name, EXAMPLE, state=STATE))

    assert warm_up(model, CPU, found).infer_ms is not None
    assert not model.resets


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["accumulating", "listing", "counted", "resettable"])
def test_state_that_is_declared_is_as_in_the_file_after_the_warm_up_and_after_a_reset(
    tmp_path: Path, name: str
) -> None:
    directory = package(tmp_path, "model.pt", name, STATEFUL + EXAMPLE, state=STATE)
    model, found = loaded(directory)
    fresh = torch.jit.load(directory / "model.pt").eval()
    wanted = [fresh(torch.from_numpy(STATE)).tolist() for _ in range(3)]

    warm_up(model, CPU, found)
    rounds = []
    for _ in range(2):
        rounds.append([model.infer([{"state": torch.from_numpy(STATE)}])[0]["action"].tolist() for _ in range(3)])
        model.reset(3)

    assert rounds == [wanted, wanted] and model.resets
    assert name == "counted" or wanted[0] != wanted[1]


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ([1.0], "builtins.ValueError: Input audio chunk is too short"),
        ([1.0, 2.0], "RuntimeError: inconsistent tensor size"),
    ],
)
def test_an_exception_of_a_module_is_reported_by_its_cause(tmp_path: Path, state: list[float], cause: str) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "failing"))

    with pytest.raises(Exception, match="TorchScript interpreter") as raised:
        model.infer([{"state": torch.tensor(state)}])

    assert client_message(raised.value)[1].startswith(cause), client_message(raised.value)
    assert f"\n    | {cause}" in log_message(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive at all"])
def test_a_file_that_is_not_a_module_is_refused_naming_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)

    with pytest.raises(ModelPackageError, match=r"model\.pt cannot be loaded by torch"):
        loaded(tmp_path)


def test_saved_weights_are_no_module(tmp_path: Path) -> None:
    torch.save(networks.Reach().state_dict(), tmp_path / "model.pt")

    with pytest.raises(ModelPackageError, match=r"a plain torch\.save of weights is not a model"):
        loaded(tmp_path)


def test_an_exported_program_is_not_torchscript(tmp_path: Path) -> None:
    shutil.move(package(tmp_path, "model.pt2", "doubled") / "model.pt2", tmp_path / "model.pt")

    with pytest.raises(ModelPackageError, match=r"model\.pt cannot be loaded by torch"):
        loaded(tmp_path)


def test_rows_of_different_shapes_are_not_stacked_with_one_another(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt", "doubled", IN_ROWS))
    lengths = [2, 3, 2, 1, 3]

    actions = model.infer([{"state": torch.full((length,), float(place))} for place, length in enumerate(lengths)])

    assert [action["action"].tolist() for action in actions] == [
        [2.0 * place] * length for place, length in enumerate(lengths)
    ]
