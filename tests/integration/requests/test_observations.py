"""Observations as robot programs have them, to the policy and back, exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from shmserve.client import ShmClient, UnsupportedType
from tests.support.daemon_process import Daemon
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def robot(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client


def libero(random: np.random.Generator) -> dict[str, Any]:
    """As openpi's examples send it: flat keys with slashes."""
    return {
        "observation/image": random.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/wrist_image": random.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/state": random.standard_normal(8),
        "prompt": "put the white mug on the left plate",
    }


def gr00t(random: np.random.Generator) -> dict[str, Any]:
    """As GR00T's clients send it: keys with dots, a batch dimension, texts in a list."""
    return {
        "video.ego_view": random.integers(0, 256, (1, 256, 256, 3), np.uint8),
        "state.left_arm": random.random((1, 7)),
        "state.right_hand": random.random((1, 6)),
        "annotation.human.action.task_description": ["do your thing!"],
    }


def lerobot(random: np.random.Generator) -> dict[str, Any]:
    """As LeRobot's robots give it: a float for each motor, beside the cameras' frames."""
    motors = {f"{motor}.pos": float(random.standard_normal()) for motor in range(30)}
    return {
        **motors,
        "observation.images.top": torch.from_numpy(random.random((3, 96, 96), np.float32)),
        "task": "grasp",
        "robot_type": "so101",
    }


def depth_camera(random: np.random.Generator) -> dict[str, Any]:
    """Frames as drivers hand them out: nested, transposed, flipped, read-only, cropped, in 16 bits."""
    colour = random.integers(0, 256, (120, 160, 3), np.uint8)
    depth = random.integers(0, 65536, (120, 160), np.uint16)
    locked = colour.copy()
    locked.flags.writeable = False
    return {
        "cameras": {
            "front/left": {"rgb": colour.transpose(2, 0, 1), "bgr": colour[..., ::-1], "depth": depth},
            "rear.right": {"upside down": depth[::-1], "mirrored": colour[:, ::-1], "crop": colour[10:50, 20:60]},
            "locked": locked,
        },
        "every other row": depth[::2, ::3],
        "stacked": [colour, {"again": (depth, depth.T)}],
    }


def odds_and_ends(random: np.random.Generator) -> dict[str, Any]:
    """Small values of every kind."""
    return {
        "0-d": np.array(3.5),
        "scalar": np.float32(random.random()),
        "integer": np.int64(-5),
        "truth": np.bool_(True),
        "half": random.random(5).astype(np.float16),
        "brain": random.random(5).astype(ml_dtypes.bfloat16),
        "brain tensor": torch.rand(4, dtype=torch.bfloat16),
        "mask": random.random(9) > 0.5,
        "none": None,
        "flag": False,
        "empty": np.zeros((0, 7), np.float32),
        "texts": ["pick up the cup", "", "置く", "x" * 300],
        "raw": bytes(range(256)),
        "nothing": {"at": {"all": {}}},
        "pose": (0.1, 0.2, [0.3, 0.4]),
        "joints": [0.5] * 12,
        "ids": list(range(30)),
        "stamp": 1_700_000_000_123_456_789,
        "": "a key without a name",
    }


_KINDS = [libero, gr00t, lerobot, depth_camera, odds_and_ends]


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__)
def test_an_observation_comes_back_exactly_every_time(
    robot: ShmClient, kind: Callable[[np.random.Generator], dict[str, Any]]
) -> None:
    random = np.random.default_rng(3)
    for _ in range(10):
        observation = kind(random)

        assert_same(robot.infer(observation), observation)


def test_observations_of_different_robots_through_one_client_do_not_meet(robot: ShmClient) -> None:
    random = np.random.default_rng(4)
    for kind in itertools.islice(itertools.cycle(_KINDS), 40):
        observation = kind(random)
        pendings = [robot.submit(observation) for _ in range(3)]

        for pending in pendings:
            assert_same(pending.result(), observation)


def test_an_observation_may_change_while_the_next_one_is_out(robot: ShmClient) -> None:
    frame = np.zeros((480, 640, 3), np.uint8)
    pendings = []
    for number in range(4):
        frame[:] = number
        pendings.append(robot.submit({"frame": frame, "number": number}))
    frame[:] = 99

    for number, pending in enumerate(pendings):
        found = pending.result()
        assert (found["frame"] == number).all() and found["number"] == number


def test_a_policy_gets_tensors_that_it_owns(start_daemon: Callable[..., Daemon]) -> None:
    with start_daemon("mutating").client() as client:
        x = np.arange(5, dtype=np.float32)
        for _ in range(3):
            found = client.infer({"x": x})

            assert x.tolist() == [0, 1, 2, 3, 4]
            assert found["x"].tolist() == [1, 3, 5, 7, 9]
            assert found["more"] == 25


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.array(["a", "b"], object), "dtype object"),
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), r"dtype \[\('a', '<i4'\), \('b', '<f8'\)\]"),
        (np.array(["2026-11-22"], "M8[D]"), r"dtype datetime64\[D\]"),
        (object(), "type builtins.object"),
        (torch.zeros(3, 3).to_sparse(), "layout torch.sparse_coo"),
        ({1.5: "x"}, r"key 1\.5 is builtins.float"),
    ],
    ids=["objects", "structured", "dates", "object", "sparse", "keys"],
)
def test_an_unsupported_value_is_refused_by_place_and_type_and_the_next_request_works(
    distrustful: Daemon, value: Any, what: str
) -> None:
    with distrustful.client() as client:
        with pytest.raises(UnsupportedType, match=rf"observation\['a'\]\[1\]: .*{what}"):
            client.infer({"a": [0, value]})

        assert client.infer({"x": 1}) == {"x": 1}


@pytest.fixture(scope="module")
def distrustful() -> Iterator[Daemon]:
    """Takes no pickled objects."""
    daemon = Daemon("echo", config="trusted_uids = []\n")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()
