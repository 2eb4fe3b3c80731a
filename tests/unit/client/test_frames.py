"""Frames of an observation: what is taken for a picture, and its pixels in one layout."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shmserve.client.recordings import RecordingError
from shmserve.client.recordings.frames import Frame, FrameFinder, guess

U8, U16, F32, F64 = np.uint8, np.uint16, np.float32, np.float64


def zeros(dtype: Any, *shape: int) -> Any:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("name", "array", "encoding"),
    [
        ("front", zeros(U8, 480, 640, 3), "rgb8"),
        ("front", zeros(U8, 3, 480, 640), "rgb8"),
        ("front", zeros(U8, 3, 64, 3), None),
        ("front", zeros(U8, 1, 48, 64, 3), "rgb8"),
        ("front", zeros(U8, 2, 48, 64, 3), "rgb8"),
        ("camera_bgr", zeros(U8, 48, 64, 3), "bgr8"),
        ("front", zeros(U8, 48, 64, 4), "rgba8"),
        ("front", zeros(U8, 48, 64, 1), "mono8"),
        ("front", zeros(U8, 48, 64), "mono8"),
        ("front", zeros(F32, 3, 224, 224), "rgb8"),
        ("front", zeros(F64, 224, 224, 3), "rgb8"),
        ("front", zeros(F32, 3, 224, 224) + 2, None),
        ("front", zeros(F32, 3, 224, 224) * np.nan, None),
        ("depth", zeros(U16, 48, 64), "16UC1"),
        ("depth", zeros(U16, 48, 64, 1), "16UC1"),
        ("wrist_depth", zeros(F32, 48, 64), "32FC1"),
        ("wrist_depth", zeros(F32, 1, 48, 64), "32FC1"),
        ("map", zeros(F32, 48, 64), None),
        ("points", zeros(F32, 1000, 3), None),
        ("chunk", zeros(F32, 3, 50, 7), None),
        ("tokens", zeros(U8, 7, 9, 3), None),
        ("touch", zeros(U8, 8, 8), None),
        ("codes", zeros(U16, 4, 12), None),
        ("history", zeros(F32, 20, 48, 64, 3), None),
        ("state", zeros(F32, 14), None),
        ("mask", zeros(np.bool_, 48, 64), None),
        ("counts", zeros(np.int64, 48, 64, 3), None),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else str(value),
)
def test_an_array_is_taken_for_a_picture_by_dtype_shape_and_name(name: str, array: Any, encoding: str | None) -> None:
    assert guess(name, array) == encoding


def test_frames_are_separated_from_the_rest() -> None:
    front, wrist = np.full((48, 64, 3), 7, U8), np.full((3, 16, 20), 0.5, F32)
    observation = {"observation.images.front": front, "robot": {"wrist": wrist, "joints": [1.0]}, "none": None}

    frames, rest = FrameFinder({}).split(observation)

    assert [(frame.name, frame.encoding) for frame in frames] == [
        ("observation.images.front", "rgb8"),
        ("robot.wrist", "rgb8"),
    ]
    np.testing.assert_array_equal(frames[0].pixels, front)
    np.testing.assert_array_equal(frames[1].pixels, np.full((16, 20, 3), 128, U8))
    assert rest == {"robot": {"joints": [1.0]}, "none": None}


def test_an_array_of_several_pictures_is_that_many_frames() -> None:
    history = np.arange(2 * 9 * 8 * 3).reshape(2, 9, 8, 3).astype(U8)

    frames, rest = FrameFinder({}).split({"history": history})

    assert ([frame.name for frame in frames], rest) == (["history[0]", "history[1]"], {})
    np.testing.assert_array_equal(frames[1].pixels, history[1])


def test_the_operator_says_what_an_array_is() -> None:
    chosen = {'"images.front"': "bgr8", "mask": "mono8", "near": "32FC1", "tactile": "none"}
    observation = {
        "images.front": np.full((8, 8, 3), (1, 2, 3), U8),
        "mask": np.eye(3, dtype=np.bool_),
        "near": np.full((4, 4), 0.25, ml_dtypes.bfloat16),
        "tactile": zeros(U8, 48, 64, 3),
    }

    frames, rest = FrameFinder(chosen).split(observation)

    assert [(frame.name, frame.encoding) for frame in frames] == [
        ("images.front", "bgr8"),
        ("mask", "mono8"),
        ("near", "32FC1"),
    ]
    assert frames[0].as_rgb()[0, 0].tolist() == [3, 2, 1]
    assert frames[1].pixels[0].tolist() == [255, 0, 0]
    assert (frames[2].pixels.dtype.name, frames[2].pixels[0, 0]) == ("float32", 0.25)
    assert list(rest) == ["tactile"]


@pytest.mark.parametrize(
    ("array", "encoding", "said"),
    [
        (zeros(U8, 8, 9, 3), "mono8", r"front: mono8 needs height x width, the array is \[8, 9, 3\]"),
        (zeros(U8, 8, 9), "rgb8", r"rgb8 needs height x width x 3 or 3 x height x width, the array is \[8, 9\]"),
        (zeros(U8, 0, 9, 3), "rgb8", "rgb8 needs height x width"),
        (zeros(np.int32, 8, 9), "16UC1", "16UC1 cannot be made of int32: --frame 'front=none'"),
        (zeros(np.int64, 8, 9, 3), "rgb8", "rgb8 cannot be made of int64"),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else None,
)
def test_an_array_that_cannot_be_the_chosen_picture_is_refused(array: Any, encoding: str, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        FrameFinder({"front": encoding}).split({"front": array})


def test_a_chosen_name_that_no_observation_has_is_refused_with_the_names_there_are() -> None:
    finder = FrameFinder({"frnt": "bgr8"})
    finder.split({"front": zeros(U8, 8, 8, 3), "state": zeros(F32, 2)})

    with pytest.raises(
        RecordingError, match=r"--frame frnt: no client's first observation has .*; it has front, state"
    ):
        finder.check_all_seen()


@pytest.mark.parametrize(
    ("encoding", "pixel", "rgb"),
    [("rgb8", (1, 2, 3), [1, 2, 3]), ("bgra8", (1, 2, 3, 9), [3, 2, 1]), ("rgba8", (1, 2, 3, 9), [1, 2, 3])],
)
def test_colours_come_out_red_first(encoding: str, pixel: tuple[int, ...], rgb: list[int]) -> None:
    picture = Frame("front", encoding, np.full((2, 2, len(pixel)), pixel, U8))

    assert picture.as_rgb()[1, 1].tolist() == rgb


def test_a_float_outside_0_to_1_is_limited() -> None:
    level = np.array([[-1.0, 0.5, 2.0, np.nan, np.inf]], F32)

    ((picture,), _) = FrameFinder({"a": "mono8"}).split({"a": level})

    assert picture.pixels.tolist() == [[0, 128, 255, 0, 255]]
