"""Contracts: what they say of a tree, and what counts as a difference."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from shmserve.contract import contract_differences, contract_of, describe_tree, flatten_with_path


def action(**entries: Any) -> dict[str, Any]:
    return {"action": describe_tree(entries)}


def test_arrays_tensors_and_numpy_scalars_are_described_by_dtype_and_shape() -> None:
    tree = {
        "array": np.zeros((2, 3), np.float16),
        "swapped": np.zeros(4, ">f4"),
        "tensor": torch.zeros(1, 5, dtype=torch.bfloat16),
        "truth": torch.zeros((), dtype=torch.bool),
        "scalar": np.float32(1),
        "half": np.zeros(2, ml_dtypes.bfloat16),
    }

    assert describe_tree(tree) == {
        "array": {"dtype": "float16", "shape": [2, 3]},
        "swapped": {"dtype": "float32", "shape": [4]},
        "tensor": {"dtype": "bfloat16", "shape": [1, 5]},
        "truth": {"dtype": "bool", "shape": []},
        "scalar": {"dtype": "float32", "shape": []},
        "half": {"dtype": "bfloat16", "shape": [2]},
    }


def test_a_tensor_and_the_array_that_a_client_gets_of_it_have_one_description() -> None:
    for name in ("float32", "float64", "float16", "int64", "uint8", "bool", "complex64"):
        tensor = torch.zeros(2, 3, dtype=getattr(torch, name))

        assert describe_tree({"x": tensor}) == describe_tree({"x": tensor.numpy()})


def test_other_values_are_described_by_their_type() -> None:
    tree = {"task": "fold", "raw": b"1", "step": 1, "done": False, "gap": None, "gain": 0.5, "none": {}, "empty": []}

    assert {name: entry["type"] for name, entry in describe_tree(tree).items()} == {
        "task": "str",
        "raw": "bytes",
        "step": "int",
        "done": "bool",
        "gap": "None",
        "gain": "float",
        "none": "dict",
        "empty": "list",
    }


def test_a_list_of_numbers_is_one_entry_and_a_list_of_arrays_one_for_each() -> None:
    tree = {"joints": [0.0, 0.1, 0.2], "poses": [np.zeros(3), np.zeros(4)], "pair": (1, 2.0)}

    assert describe_tree(tree) == {
        "joints": {"type": "list[float]", "length": 3},
        "poses[0]": {"dtype": "float64", "shape": [3]},
        "poses[1]": {"dtype": "float64", "shape": [4]},
        "pair[0]": {"type": "int"},
        "pair[1]": {"type": "float"},
    }


def test_a_nested_entry_and_a_key_with_a_dot_have_different_names() -> None:
    nested = describe_tree({"observation": {"state": 1}})
    flat = describe_tree({"observation.state": 1})

    assert (list(nested), list(flat)) == (["observation.state"], ['"observation.state"'])


@pytest.mark.parametrize("key", ["", "a b", 'quo"te', "a[0]", "a.b", "手", "x/y"])
def test_every_key_gives_a_name_that_no_other_key_gives(key: str) -> None:
    others = {"a": {"b": 1, "": 2}, "a b c": 3, "quo": 4, '"a.b"': 5, "list": [{}, {}], "": {"": 6}}
    names = [name for name, _ in flatten_with_path({**others, "own": {key: 0}})]

    assert len(names) == len(set(names))
    assert sum(name.startswith("own") for name in names) == 1


def test_a_bare_array_is_a_contract_too() -> None:
    contract = contract_of(np.zeros(3, np.float32), np.zeros(2, np.float32))

    assert contract == {
        "observation": {"": {"dtype": "float32", "shape": [3]}},
        "action": {"": {"dtype": "float32", "shape": [2]}},
    }
    changed = contract_of(np.zeros(3, np.float32), np.zeros(4, np.float32))
    assert contract_differences(contract, changed) == ["action: float32[2] -> float32[4]"]


def test_a_contract_goes_through_json_unchanged() -> None:
    contract = contract_of({"image": torch.zeros(2, 3), "task": "x", "poses": [{"p": [1, 2]}]}, {"a": np.int8(1)})

    assert json.loads(json.dumps(contract)) == contract


def test_the_same_contract_has_no_differences() -> None:
    contract = contract_of({"image": np.zeros((4, 4, 3), np.uint8)}, {"actions": np.zeros((16, 7), np.float32)})

    assert contract_differences(contract, json.loads(json.dumps(contract))) == []


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        (np.zeros(7, np.float32), np.zeros(7), "action.a: float32[7] -> float64[7]"),
        (np.zeros((16, 7)), np.zeros((8, 7)), "action.a: float64[16, 7] -> float64[8, 7]"),
        (np.zeros(7), np.zeros((1, 7)), "action.a: float64[7] -> float64[1, 7]"),
        (np.zeros(()), 0.0, "action.a: float64[] -> float"),
        (1, True, "action.a: int -> bool"),
        ([1.0, 2.0], [1.0], "action.a: list[float] of 2 -> list[float] of 1"),
        ([1.0], [1], "action.a: list[float] of 1 -> list[int] of 1"),
        ("go", None, "action.a: str -> None"),
    ],
)
def test_a_difference_names_the_old_and_the_new_value(old: Any, new: Any, difference: str) -> None:
    assert contract_differences(action(a=old), action(a=new)) == [difference]


def test_a_renamed_entry_is_one_that_goes_and_one_that_comes() -> None:
    assert contract_differences(action(actions=1.0), action(action=1.0)) == [
        "action.actions: float -> absent",
        "action.action: absent -> float",
    ]


def test_the_order_of_entries_does_not_matter() -> None:
    assert contract_differences(action(a=1, b=2.0), action(b=2.0, a=1)) == []


def test_both_sides_are_compared() -> None:
    old = contract_of({"image": np.zeros(3, np.uint8)}, {"a": 1})
    new = contract_of({"image": np.zeros(3, np.float32)}, {"a": 1.0})

    assert contract_differences(old, new) == [
        "observation.image: uint8[3] -> float32[3]",
        "action.a: int -> float",
    ]


def test_a_model_that_promised_nothing_may_be_followed_by_any() -> None:
    known = contract_of({"x": 1}, {"y": 2})

    for unknown in (None, {}, {"observation": None, "action": None}):
        assert contract_differences(unknown, known) == []
        assert contract_differences(unknown, unknown) == []


def test_a_promise_that_is_not_known_to_hold_any_more_is_a_difference() -> None:
    known = contract_of({"x": 1}, {"y": 2})

    (observation, given) = contract_differences(known, {"observation": None, "action": None})

    assert observation.startswith("observation: x -> not known")
    assert given.startswith("action: y -> not known")
