"""Camera frames in an observation: which of its arrays are pictures, and their pixels in one layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.contract import name_within

from .errors import RecordingError

Array = npt.NDArray[Any]

#: Encodings by the names that ROS and Foxglove use, each with its number of channels.
ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "16UC1": 1, "32FC1": 1}
#: For an array that looks like a picture and is none.
NOT_A_FRAME = "none"
_BY_CHANNELS = {1: "mono8", 3: "rgb8", 4: "rgba8"}
#: The shortest side of an array that is taken for a picture: with a colour dimension, and without one or of floats.
_SIDE, _PLAIN_SIDE = 8, 16
#: Pictures that one array may hold along its first dimension, as an observation with a history does.
_MOST_TOGETHER = 16


@dataclass(frozen=True)
class Frame:
    """One picture: [height, width] of uint8 (mono8), uint16 (16UC1) or float32 (32FC1), else uint8 [height, width, channels]."""

    name: str  # its entry of the observation, as a contract names it, without quotes
    encoding: str
    pixels: Array

    def as_rgb(self) -> Array:
        """Return uint8[height, width, 3], red first; raises RecordingError for a depth picture."""
        if self.encoding in ("16UC1", "32FC1"):
            raise RecordingError(
                f"{self.name} is a depth picture ({self.encoding}), which has no colours: --mcap keeps it as it is"
            )
        if self.encoding == "mono8":
            return np.repeat(self.pixels[..., None], 3, axis=-1)
        colours = self.pixels[..., 2::-1] if self.encoding.startswith("bgr") else self.pixels[..., :3]
        return np.ascontiguousarray(colours)


class FrameFinder:
    """Separates the frames of observations from their other values."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        """`chosen` gives the encoding of entries by name, or NOT_A_FRAME; the others are recognised by dtype and shape."""
        self._chosen = {_plain(name): encoding for name, encoding in chosen.items()}
        self._seen: dict[str, None] = {}
        self._known: dict[tuple[str, str, tuple[int, ...]], str | None] = {}

    def split(self, observation: Any) -> tuple[list[Frame], Any]:
        """Return the observation's frames, and the observation without them (in a list None is in their place).

        Raises RecordingError for an array that cannot have the chosen encoding.
        """
        frames: list[Frame] = []
        rest = self._without_frames(observation, "", frames)
        return frames, rest

    def check_all_seen(self) -> None:
        """Raise RecordingError if no array so far had a chosen name."""
        if unseen := [name for name in self._chosen if name not in self._seen]:
            raise RecordingError(
                f"--frame {unseen[0]}: no client's first observation has such an array; it has {', '.join(self._seen) or 'none'}"
            )

    def _without_frames(self, value: Any, name: str, frames: list[Frame]) -> Any:
        if isinstance(value, np.ndarray):
            found = list(self._frames(value, _plain(name)))
            frames += found
            return None if found else value
        if isinstance(value, dict):
            inner = {key: self._without_frames(item, name_within(name, key), frames) for key, item in value.items()}
            return {key: item for key, item in inner.items() if item is not None or value[key] is None}
        if isinstance(value, (list, tuple)):
            return [self._without_frames(item, name_within(name, index), frames) for index, item in enumerate(value)]
        return value

    def _frames(self, array: Array, name: str) -> Iterator[Frame]:
        array = _native(array)
        key = name, array.dtype.str, array.shape
        self._seen[name] = None
        if name in self._chosen:
            encoding: str | None = self._chosen[name]
        else:
            if key not in self._known:
                self._known[key] = guess(name, array)
            encoding = self._known[key]
        if encoding is None or encoding == NOT_A_FRAME:
            return
        if array.ndim == 4 and array.shape[0] != 1:
            for index, picture in enumerate(array):
                yield Frame(f"{name}[{index}]", encoding, pixels(name, picture, encoding))
        else:
            yield Frame(name or "observation", encoding, pixels(name, array, encoding))


def guess(name: str, array: Array) -> str | None:
    """Return the encoding of an array that is probably a picture, else None.

    >>> guess("front", np.zeros((480, 640, 3), np.uint8)), guess("front", np.zeros((3, 224, 224), np.float32))
    ('rgb8', 'rgb8')
    >>> guess("depth", np.zeros((480, 640), np.uint16)), guess("points", np.zeros((1000, 3), np.float32))
    ('16UC1', None)
    """
    if array.ndim == 4 and 1 < array.shape[0] <= _MOST_TOGETHER and array.dtype == np.uint8:
        return guess(name, array[0])
    array = _without_ones(array)
    places = [place for place in (-1, 0) if array.ndim == 3 and array.shape[place] in _BY_CHANNELS]
    kind = array.dtype.kind
    for place in places:
        channels, side = array.shape[place], min(np.delete(array.shape, place))
        if channels == 1 and (array.dtype == np.uint16 or (kind == "f" and "depth" in name.lower())):
            return _depth(array, int(side))
        if array.dtype == np.uint8 and side >= _SIDE:
            return _coloured(name, channels)
        if kind == "f" and side >= _PLAIN_SIDE and _within_one(array):
            return _coloured(name, channels)
    if array.ndim == 2:
        side = min(array.shape)
        if array.dtype == np.uint8:
            return "mono8" if side >= _PLAIN_SIDE else None
        if array.dtype == np.uint16 or (kind == "f" and "depth" in name.lower()):
            return _depth(array, int(side))
    return None


def pixels(name: str, array: Array, encoding: str) -> Array:
    """Return the picture as `Frame.pixels` has it; raises RecordingError for an array that is not one of this encoding."""
    channels = ENCODINGS[encoding]
    shaped = _without_ones(array)
    if channels == 1 and shaped.ndim == 3 and 1 in (shaped.shape[-1], shaped.shape[0]):
        shaped = shaped[..., 0] if shaped.shape[-1] == 1 else shaped[0]
    elif channels > 1 and shaped.ndim == 3 and shaped.shape[-1] != channels and shaped.shape[0] == channels:
        shaped = shaped.transpose(1, 2, 0)
    kind = shaped.dtype.kind
    if shaped.ndim != (2 if channels == 1 else 3) or (channels > 1 and shaped.shape[-1] != channels) or not shaped.size:
        wanted = "height x width" if channels == 1 else f"height x width x {channels} or {channels} x height x width"
        raise RecordingError(
            f"{name}: {encoding} needs {wanted}, the array is {list(array.shape)}: --frame '{name}=none'?"
        )
    if encoding == "16UC1" and shaped.dtype == np.uint16:
        return np.ascontiguousarray(shaped)
    if encoding == "32FC1" and kind == "f":
        return np.ascontiguousarray(shaped, np.float32)
    if encoding not in ("16UC1", "32FC1"):
        if shaped.dtype == np.uint8:
            return np.ascontiguousarray(shaped)
        if kind in "fb":  # 0 to 1
            level = np.nan_to_num(shaped.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
            return np.ascontiguousarray(np.rint(np.clip(level, 0.0, 1.0) * 255), np.uint8)
    raise RecordingError(f"{name}: {encoding} cannot be made of {shaped.dtype}: --frame '{name}=none'?")


def _plain(name: str) -> str:
    """The name without the quotes that a contract puts around a key with a dot."""
    return name.replace('"', "")


def _native(array: Array) -> Array:
    """The array in a dtype that numpy computes with."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _without_ones(array: Array) -> Array:
    while array.ndim > 2 and array.shape[0] == 1 and not (array.ndim == 3 and array.shape[-1] not in _BY_CHANNELS):
        array = array[0]
    return array


def _coloured(name: str, channels: int) -> str:
    encoding = _BY_CHANNELS[channels]
    return encoding.replace("rgb", "bgr") if "bgr" in name.lower() else encoding


def _depth(array: Array, side: int) -> str | None:
    if side < (_SIDE if array.dtype == np.uint16 else _PLAIN_SIDE):
        return None
    return "16UC1" if array.dtype == np.uint16 else "32FC1"


def _within_one(array: Array) -> bool:
    return bool(array.size) and bool((array >= 0).all() and (array <= 1).all())
