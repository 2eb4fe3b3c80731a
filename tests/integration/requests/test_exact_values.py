"""What a robot sends to a real daemon comes back to the bit, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from shmserve.client import ShmClient
from tests.support.daemon_process import Daemon
from tests.support.same_trees import assert_same
from tests.support.trees import BFLOAT16, DTYPES, LAYOUTS, SHAPES, TORCH_DTYPES, filled, laid_out, tensor, trees

pytestmark = [pytest.mark.sealed_too, pytest.mark.pure_too]

#: One client and one daemon see all examples on purpose: what one leaves behind must not be seen in the next.
_SHARED = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


@pytest.fixture(scope="module")
def robot(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client


@pytest.fixture(scope="module")
def in_place_robot() -> Iterator[ShmClient]:
    daemon = Daemon("echo_in_place").start()
    try:
        with daemon.client() as client:
            yield client
    finally:
        daemon.dismiss()


@_SHARED
@given(tree=trees())
def test_any_observation_comes_back_to_the_bit(robot: ShmClient, tree: Any) -> None:
    assert_same(robot.infer(tree), tree)


@_SHARED
@given(tree=trees())
def test_a_policy_that_reads_the_slot_itself_sees_the_same_bits(in_place_robot: ShmClient, tree: Any) -> None:
    assert_same(in_place_robot.infer(tree), tree)


def test_reading_the_slot_itself_is_reported(echo: Daemon, in_place_robot: ShmClient, robot: ShmClient) -> None:
    in_place = in_place_robot.request({"x": np.zeros(3)})
    staged = robot.request({"x": np.zeros(3)})

    trusted = echo.status()["transport"] == "named"  # a client of the other could change the slot under the model
    assert in_place.in_place == trusted
    assert not staged.in_place


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_shape_and_layout_comes_back_to_the_bit(robot: ShmClient, dtype: np.dtype[Any]) -> None:
    for number, shape in enumerate(SHAPES):
        for layout in LAYOUTS:
            array = laid_out(filled(dtype, shape, number), layout)

            found = robot.infer({"a": array, "layout": layout})

            assert_same(found, {"a": array, "layout": layout})


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_a_tensor_of_every_dtype_comes_back_as_an_array_of_the_same_bits(robot: ShmClient, dtype: torch.dtype) -> None:
    for number, shape in enumerate(SHAPES):
        sent = {"t": tensor(dtype, shape, number)}

        assert_same(robot.infer(sent), sent)


def test_the_observation_of_a_vision_language_policy_comes_back_exactly(robot: ShmClient) -> None:
    random = np.random.default_rng(1)
    observation = {
        "instruction": "put the red cup on the shelf",
        "state": random.standard_normal(6).astype(np.float32),
        "image": random.integers(0, 256, (480, 640, 3), np.uint8),
    }

    found = robot.infer(observation)

    assert_same(found, observation)
    assert found["image"].dtype == np.uint8 and found["image"].shape == (480, 640, 3)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        (),
        {"a": {}, "b": [], "c": ()},
        None,
        True,
        0,
        -1.5,
        "bare text",
        b"bare bytes",
        "text " * 200,
        bytes(range(256)) * 10,
        1 << 62,
        1 << 64,
        -(1 << 100),
        1 << 2000,
        float("nan"),
        -0.0,
        np.float32(2.5),
        np.bool_(True),
        np.array(7),
        np.zeros((0, 3)),
        [1.0] * 8,
        [True] * 9,
        [1, 2.0] * 5,
        list(range(10_000)),
        [1 << 70] * 8,
        [[1.0, 2.0], [3.0, 4.0]] * 20,
        {"": 1, "a/b": {"c.d": 2}, "é": {"手": np.arange(3)}},
        {"a\x00b": "c\x00d"},
    ],
    ids=lambda tree: f"{type(tree).__name__} {str(tree)[:20]}",
)
def test_a_tree_at_the_edge_of_the_format_comes_back_exactly(robot: ShmClient, tree: Any) -> None:
    assert_same(robot.infer(tree), tree)
    assert_same(robot.infer({"nested": [tree]}), {"nested": [tree]})


def test_arrays_in_a_result_are_the_callers_own(robot: ShmClient) -> None:
    first = robot.infer({"x": np.arange(5)})["x"]
    first += 100

    second = robot.infer({"x": np.arange(5)})["x"]

    assert first.flags.owndata and first.base is None
    assert first.tolist() == [100, 101, 102, 103, 104]
    assert second.tolist() == [0, 1, 2, 3, 4]


def test_a_bfloat16_scalar_keeps_its_value(robot: ShmClient) -> None:
    found = robot.infer({"x": ml_dtypes.bfloat16(1.5), "a": np.array([1.5], BFLOAT16)})

    assert found["x"] == 1.5
    assert_same(found["a"], np.array([1.5], BFLOAT16))


def test_tensors_that_are_views_or_need_gradients_are_sent_with_their_visible_values(robot: ShmClient) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    sent = {
        "transposed": base.T,
        "strided": base[::2, ::3],
        "expanded": base[0].expand(3, 6),
        "gradient": base.clone().requires_grad_(),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }

    found = robot.infer(sent)

    for name, value in sent.items():
        assert found[name].tolist() == value.tolist()
        assert type(found[name]) is np.ndarray


@pytest.mark.fault("T18")
def test_changing_structures_do_not_see_each_other(robot: ShmClient) -> None:
    structures: list[Callable[[int], Any]] = [
        lambda n: {"x": np.full(n % 5, n), "n": n},
        lambda n: {"x": np.full(n % 5, n, np.float32), "n": n},
        lambda n: {"n": n, "x": [np.full((2, 2), n), str(n)]},
        lambda n: {"n": float(n), "x": str(n % 3)},
        lambda n: [n, str(n)] * (n % 4),
        lambda n: (n, {"deep": {"er": [n, bytes([n % 256]) * (n % 70)]}}),
        lambda n: np.full((n % 7, 3), n),
    ]
    for n in range(600):
        tree = structures[n * n % 11 % len(structures)](n)

        assert_same(robot.infer(tree), tree)
