"""Packages of torch.export: how an observation becomes arguments, what is refused, rows of a batch, state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.contract import describe_tree
from shmserve.daemon.engine.models import load_model
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ContractMismatch, ModelPackageError
from tests.support.packages import networks
from tests.support.packages.networks import IMAGE_SHAPE, seeded
from tests.support.packages.saving import CPU, loaded, package

IN_ROWS = "[model]\nbatch_dim = true\nmax_batch = 8\n"


def observation(seed: int = 0) -> dict[str, Any]:
    """What one robot sees, as the engine gives it to a model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, IMAGE_SHAPE, generator=generator, dtype=torch.uint8),
        "state": torch.rand(2, generator=generator),
    }


def reach(*observations: dict[str, Any]) -> torch.Tensor:
    """What the network itself gives for these, a row for each."""
    with torch.inference_mode():
        rows = [torch.stack([seen[name] for seen in observations]) for name in ("image", "state")]
        actions: torch.Tensor = seeded(networks.Reach)(*rows)
    return actions


def mismatch(model: Any, seen: Any) -> str:
    with pytest.raises(ContractMismatch) as caught:
        model.infer([seen])
    return str(caught.value)


# How an observation becomes arguments


def test_arguments_are_found_by_their_own_names(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "doubled"))

    (action,) = model.infer([{"state": torch.tensor([1.0, 2.0]), "stamp": 3}])

    assert list(action) == ["action"]
    assert action["action"].tolist() == [2.0, 4.0]


def test_inputs_and_outputs_name_what_the_program_does_not(tmp_path: Path) -> None:
    manifest = '[model]\nbatch_dim = true\ninputs = ["camera", "robot.joints"]\noutputs = ["actions"]'
    model, _ = loaded(package(tmp_path, "model.pt2", "reach", manifest))
    seen = observation()

    (action,) = model.infer([{"camera": seen["image"], "robot": {"joints": seen["state"]}}])

    torch.testing.assert_close(action["actions"], reach(seen)[0])


def test_a_name_with_a_dot_is_first_of_all_one_name(tmp_path: Path) -> None:
    manifest = '[model]\ninputs = ["observation.state"]'
    model, _ = loaded(package(tmp_path, "model.pt2", "doubled", manifest))
    inner, outer = torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0])

    for seen in (
        {"observation.state": outer},
        {"observation.state": outer, "observation": {"state": inner}},
        {"observation": {"state": outer}},
    ):
        assert model.infer([seen])[0]["action"].tolist() == [10.0, 10.0]


def test_a_program_of_one_dict_takes_the_observation_itself(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "reach_named", IN_ROWS))
    seen = observation()

    (action,) = model.infer([{"task": "lift", "state": seen["state"], "image": seen["image"]}])

    assert list(action) == ["actions", "effort"]
    torch.testing.assert_close(action["actions"], reach(seen)[0])
    assert action["effort"].shape == ()


def test_arguments_may_be_dicts_and_lists(tmp_path: Path) -> None:
    manifest = '[model]\ninputs = ["cameras", "arms"]'
    model, found = loaded(package(tmp_path, "model.pt2", "nested", manifest))
    cameras = {"top": torch.full((4, 4), 2, dtype=torch.uint8), "wrist": torch.full((2, 2), 3, dtype=torch.uint8)}

    (action,) = model.infer([{"cameras": cameras, "arms": [torch.ones(3), torch.zeros(3)]}])

    assert action["action"].tolist() == [6.0, 6.0, 6.0]
    assert describe_tree(model.example_observation()) == {
        "cameras.top": {"dtype": "uint8", "shape": [4, 4]},
        "cameras.wrist": {"dtype": "uint8", "shape": [2, 2]},
        "arms[0]": {"dtype": "float32", "shape": [3]},
        "arms[1]": {"dtype": "float32", "shape": [3]},
    }
    assert "arms[1]: expected float32[3], got missing" in mismatch(model, {"cameras": cameras, "arms": [torch.ones(3)]})
    assert warm_up(model, CPU, found).action == {"action": {"dtype": "float32", "shape": [3]}}


def test_numbers_and_constants_are_arguments_too(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "steps"))
    state = torch.tensor([1.0, 2.0])

    assert model.infer([{"state": state, "steps": 4}])[0]["action"].tolist() == [2.0, 4.0]
    assert model.infer([{"state": state, "steps": 6, "gain": 0.5}])[0]["action"].tolist() == [3.0, 6.0]
    assert "gain: expected 0.5, the value that the module was saved with, got the float 0.75" in mismatch(
        model, {"state": state, "steps": 4, "gain": 0.75}
    )
    assert "steps: expected int, got the float 4.0" in mismatch(model, {"state": state, "steps": 4.0})
    assert "steps: expected int, got the bool True" in mismatch(model, {"state": state, "steps": True})


def test_the_wrong_number_of_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="inputs names 1 arguments, the program takes 2: image, state"):
        loaded(package(tmp_path, "model.pt2", "reach", '[model]\ninputs = ["image"]'))


def test_a_constant_is_no_input_that_needs_a_name(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "steps", '[model]\ninputs = ["q", "n"]'))

    assert model.infer([{"q": torch.ones(2), "n": 2}])[0]["action"].tolist() == [1.0, 1.0]


# What is refused


def test_every_entry_that_does_not_fit_is_listed_with_what_it_should_be(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "reach", IN_ROWS))
    seen = observation()

    assert mismatch(model, {"image": seen["image"].float(), "state": torch.ones(3)}) == (
        "image: expected uint8[12, 16, 3], got float32[12, 16, 3]; state: expected float32[2], got float32[3]"
    )
    assert mismatch(model, {"image": seen["image"], "stat": seen["state"]}) == (
        "state: expected float32[2], got missing (the observation has image, stat)"
    )
    assert mismatch(model, {**seen, "state": "two"}) == "state: expected float32[2], got the str 'two'"
    assert mismatch(model, {**seen, "state": seen["state"][None]}) == ("state: expected float32[2], got float32[1, 2]")
    assert "state: expected float32[2], got missing (the observation has no named entries" in mismatch(
        model, seen["state"]
    )


def test_a_wrong_dtype_is_refused_even_where_torch_would_convert(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "doubled"))

    assert mismatch(model, {"state": torch.ones(2, dtype=torch.float64)}) == (
        "state: expected float32[2], got float64[2]"
    )


def test_lengths_that_depend_on_each_other_are_checked(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "concatenated"))

    assert model.infer([{"left": torch.ones(3), "right": torch.ones(6)}])[0]["action"].tolist() == [3.0] * 3
    assert "Guard failed" in mismatch(model, {"left": torch.ones(3), "right": torch.ones(8)})
    assert "left: expected float32[0-64]" in mismatch(model, {"left": torch.ones(65), "right": torch.ones(130)})
    # What the guards let through once is not a reason to let the next one through.
    assert model.infer([{"left": torch.ones(4), "right": torch.ones(8)}])[0]["action"].tolist() == [3.0] * 4
    assert "Guard failed" in mismatch(model, {"left": torch.ones(3), "right": torch.ones(8)})


def test_a_refused_request_leaves_the_next_one_alone(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "doubled"))

    for _ in range(3):
        mismatch(model, {"state": torch.ones(3)})
        assert model.infer([{"state": torch.ones(2)}])[0]["action"].tolist() == [2.0, 2.0]


def test_results_without_names_are_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=r'returns 2 values without names.*outputs = \["name1", "name2"\]'):
        loaded(package(tmp_path, "model.pt2", "triple"))


def test_outputs_name_the_results_in_their_order(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "triple", '[model]\noutputs = ["pose", "sum"]'))

    (action,) = model.infer([{"state": torch.tensor([1.0, 2.0])}])

    assert (action["pose"].tolist(), action["sum"].item()) == ([3.0, 6.0], 3.0)


@pytest.mark.parametrize("name", ["triple", "doubled", "reach_named"])
def test_another_number_of_outputs_than_results_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelPackageError, match="outputs = "):
        loaded(package(tmp_path, "model.pt2", name, '[model]\noutputs = ["a", "b", "c"]'))


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive at all"])
def test_a_file_that_is_not_a_program_is_refused_naming_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(content)

    with pytest.raises(ModelPackageError, match=r"model\.pt2 cannot be loaded by torch"):
        loaded(tmp_path)


def test_a_program_cut_short_is_refused(tmp_path: Path) -> None:
    file = package(tmp_path, "model.pt2", "doubled") / "model.pt2"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(ModelPackageError, match=r"model\.pt2 cannot be loaded by torch"):
        loaded(tmp_path)


def test_a_torchscript_file_is_not_an_exported_program(tmp_path: Path) -> None:
    shutil.move(package(tmp_path, "model.pt", "doubled") / "model.pt", tmp_path / "model.pt2")

    with pytest.raises(ModelPackageError, match=r"model\.pt2 cannot be loaded by torch"):
        loaded(tmp_path)


# Rows


def test_an_observation_lacks_the_dimension_that_the_program_has_for_it(tmp_path: Path) -> None:
    model, found = loaded(package(tmp_path, "model.pt2", "reach", "[model]\nbatch_dim = true"))
    seen = observation()

    (action,) = model.infer([seen])

    assert not model.batches
    torch.testing.assert_close(action["action"], reach(seen)[0])
    assert warm_up(model, CPU, found).contract == {
        "observation": {
            "image": {"dtype": "uint8", "shape": list(IMAGE_SHAPE)},
            "state": {"dtype": "float32", "shape": [2]},
        },
        "action": {"action": {"dtype": "float32", "shape": [4]}},
    }


@pytest.mark.parametrize("name", ["reach", "reach_automatic", "reach_named"])
def test_rows_are_stacked_into_one_call_and_taken_apart_again(tmp_path: Path, name: str) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", name, IN_ROWS))
    several = [observation(seed) for seed in range(8)]

    assert model.batches
    for count in (1, 2, 3, 8, 3, 1):
        actions = model.infer(several[:count])
        given = [next(iter(action.values())) for action in actions]
        torch.testing.assert_close(torch.stack(given), reach(*several[:count]))


def test_without_batch_dim_the_first_dimension_is_the_robots(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "reach"))
    one, two = observation(1), observation(2)
    both = {name: torch.stack([one[name], two[name]]) for name in one}

    (action,) = model.infer([both])

    assert action["action"].shape == (2, 4)
    assert (
        "state: expected float32[0-8, 2], got float32[1, 2] (length 1 must equal 2, as in an earlier argument)"
        in mismatch(model, {**both, "state": both["state"][:1]})
    )


def test_a_program_for_fewer_rows_than_max_batch_is_refused(tmp_path: Path) -> None:
    manifest = "[model]\nbatch_dim = true\nmax_batch = 9"

    with pytest.raises(ModelPackageError, match=r"max_batch = 9.*image = uint8\[0-8, 12, 16, 3\].*from 1 to 9"):
        loaded(package(tmp_path, "model.pt2", "reach", manifest))


@pytest.mark.parametrize("manifest", ["[model]\nbatch_dim = true", IN_ROWS])
def test_a_program_for_another_fixed_number_of_rows_is_refused(tmp_path: Path, manifest: str) -> None:
    with pytest.raises(ModelPackageError, match=r"image = uint8\[2, 12, 16, 3\]: its first dimension must be dynamic"):
        loaded(package(tmp_path, "model.pt2", "reach_two", manifest))


def test_a_scalar_result_cannot_be_taken_apart(tmp_path: Path) -> None:
    manifest = '[model]\nbatch_dim = true\noutputs = ["a", "b"]'

    with pytest.raises(ModelPackageError, match="result 1 of the program is a scalar"):
        loaded(package(tmp_path, "model.pt2", "triple", manifest))


def test_a_program_that_gives_more_rows_than_it_takes_is_refused_when_warmed_up(tmp_path: Path) -> None:
    model, found = loaded(package(tmp_path, "model.pt2", "twice", IN_ROWS))

    with pytest.raises(ValueError, match=r"action of shape \[2, 2\] for 1 row: .* its first dimension must be 1"):
        warm_up(model, CPU, found)


# State


@pytest.mark.parametrize("name", ["remembering", "remembering_decomposed"])
def test_a_program_that_keeps_state_without_saying_so_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelPackageError, match=r"changes its buffers seen when it runs.*stateful = true"):
        loaded(package(tmp_path, "model.pt2", name))


@pytest.mark.parametrize("name", ["remembering", "remembering_decomposed"])
def test_a_reset_brings_back_the_state_that_a_program_was_saved_with(tmp_path: Path, name: str) -> None:
    model, found = loaded(package(tmp_path, "model.pt2", name, "[model]\nstateful = true"))
    seen = {"state": torch.tensor([1.0, 2.0])}

    warm_up(model, CPU, found)
    first, second = (model.infer([seen])[0]["action"].tolist() for _ in range(2))
    model.reset(0)
    again = model.infer([seen])[0]["action"].tolist()

    assert (first, second, again) == ([11.0, 12.0], [12.0, 14.0], [11.0, 12.0])


def test_a_program_that_writes_to_its_argument_may_not_read_in_place(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="read_in_place = true, but the program writes to its argument state"):
        loaded(package(tmp_path, "model.pt2", "overwriting", "[model]\nread_in_place = true"))

    model, _ = loaded(package(tmp_path, "model.pt2", "overwriting", "[model]\nread_in_place = false"))
    assert model.infer([{"state": torch.ones(2)}])[0]["action"].tolist() == [3.0, 3.0]


# Examples


def test_the_example_that_a_program_was_exported_with_warms_it_up(tmp_path: Path) -> None:
    model, found = loaded(package(tmp_path, "model.pt2", "reach", IN_ROWS))

    result = warm_up(model, CPU, found)

    assert model.example_observation()["state"].tolist() == [0.25, 0.5]  # the first row of the exported ones
    assert result.infer_ms is not None
    assert result.reply_bytes == 80  # the size of the action, and from the next line on its bytes


def test_an_example_in_the_package_is_preferred(tmp_path: Path) -> None:
    manifest = '[warmup]\nexample = "example.npz"'
    state = np.array([3.0, 4.0], np.float32)
    model, found = loaded(package(tmp_path, "model.pt2", "doubled", manifest, state=state, stamp=np.int64(7)))

    result = warm_up(model, CPU, found)

    assert result.observation is not None
    assert list(result.observation) == ["state", "stamp"]


def test_a_program_saved_without_its_example_has_none(tmp_path: Path) -> None:
    model, found = loaded(package(tmp_path, "model.pt2", "without_example"))

    result = warm_up(model, CPU, found)

    assert model.example_observation() is None
    assert result.contract == {"observation": None, "action": None}


def test_metadata_of_the_manifest_reaches_the_clients(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path, "model.pt2", "doubled", "[metadata]\nrate_hz = 50\nunits = ['rad']"))

    assert model.metadata() == {"rate_hz": 50, "units": ["rad"]}


def test_a_program_is_moved_to_the_device_that_it_serves_on(tmp_path: Path) -> None:
    # The meta device stands for a GPU: it computes shapes and refuses to meet a tensor on another device.
    directory = package(tmp_path, "model.pt2", "reach")
    model = load_model(ModelPackage.read(directory), torch.device("meta"))
    both = {"image": torch.zeros(2, *IMAGE_SHAPE, dtype=torch.uint8), "state": torch.zeros(2, 2)}

    (action,) = model.infer([{name: tensor.to("meta") for name, tensor in both.items()}])

    assert (action["action"].device.type, tuple(action["action"].shape)) == ("meta", (2, 4))
    assert {tensor.device.type for tensor in model.example_observation().values()} == {"cpu"}
