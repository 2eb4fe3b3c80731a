"""ros/shmserve_ros: messages to observations and actions to messages, with stand-in message classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest

from tests.support.folders import REPOSITORY

#: Values of a test's own type would do, too: the conversion asks for fields alone.


@dataclass
class Image:
    height: int
    width: int
    encoding: str
    step: int
    data: bytes


@dataclass
class JointState:
    name: list[str]
    position: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def conversion() -> Iterator[ModuleType]:
    folder = str(REPOSITORY / "ros/shmserve_ros")
    sys.path.insert(0, folder)
    try:
        import shmserve_ros.conversion

        yield shmserve_ros.conversion
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [("rgb8", [[[1, 2, 3], [4, 5, 6]]]), ("bgr8", [[[3, 2, 1], [6, 5, 4]]]), ("mono8", [[[1], [2]]])],
)
def test_an_image_arrives_red_first_without_the_padding_of_its_rows(
    conversion: ModuleType, encoding: str, pixels: list[object]
) -> None:
    found = conversion.image(Image(1, 2, encoding, 8, bytes([1, 2, 3, 4, 5, 6, 0, 0])))

    assert found.tolist() == pixels and found.dtype == np.uint8


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image(1, 2, "16UC1", 4, bytes(4)), "encoding '16UC1'; expected rgb8, bgr8, mono8"),
        (Image(2, 2, "rgb8", 6, bytes(11)), "has 11 bytes in rows of 6"),
        (Image(2, 2, "rgb8", 5, bytes(12)), "has 12 bytes in rows of 5"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused(conversion: ModuleType, image: Image, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conversion.image(image)


def test_joints_arrive_in_the_order_that_was_asked_for(conversion: ModuleType) -> None:
    read = conversion.reader("joint_state", ["pan", "tilt"])

    assert read(JointState(["tilt", "elbow", "pan"], [0.5, 9.0, 0.25])).tolist() == [0.25, 0.5]
    assert read(JointState(["elbow", "pan"], [9.0, 0.25])) is None  # another publisher of the same topic


def test_an_action_is_rows_of_one_number_for_each_joint(conversion: ModuleType) -> None:
    assert conversion.action_rows(np.array([1, 2], np.float32), ["pan", "tilt"]).tolist() == [[1.0, 2.0]]
    assert conversion.action_rows([[1, 2], [3, 4]], ["pan", "tilt"]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("action", [[1.0], [1.0, 2.0, 3.0], [[[1.0, 2.0]]], 1.0, [np.nan, 0.0], [np.inf, 0.0]])
def test_an_action_of_another_shape_or_without_finite_numbers_is_refused(
    conversion: ModuleType, action: object
) -> None:
    with pytest.raises(ValueError, match="the policy's action has"):
        conversion.action_rows(action, ["pan", "tilt"])


def test_an_input_of_an_unknown_type_is_refused(conversion: ModuleType) -> None:
    with pytest.raises(ValueError, match="type of an input is 'imu'; expected image, joint_state, float64_multi_array"):
        conversion.reader("imu", [])
