"""Export of a recording as a LeRobotDataset, by the lerobot library that is installed beside shmserve.

One frame of the dataset for each answered request; an episode ends at a reset, and where a client has left.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.contract import flatten_with_path

from .errors import RecordingError
from .export_source import ExportSource, SplitRequest

#: Names of the text that says what the robot is to do.
_TASKS = ("task", "prompt", "instruction", "language_instruction")
_STATE, _ACTION = "observation.state", "action"
#: A file of each dataset, by which one is recognised.
INFO = "meta/info.json"


@dataclass
class _Row:
    """What one request gives to the dataset."""

    number: int
    task: str | None
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    names: dict[str, list[str] | None] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)

    def features(self) -> dict[str, dict[str, Any]]:
        """The features as LeRobotDataset.create takes them."""
        sides = ["height", "width", "channels"]
        return {
            name: {
                "dtype": "image" if name in self.images else value.dtype.name,
                "shape": value.shape,
                "names": sides if name in self.images else self.names.get(name),
            }
            for name, value in self.values.items()
        }


def export_lerobot(source: ExportSource, out: Path, fps: float | None, task: str | None) -> dict[str, Any]:
    """Write the recording to the new directory `out`; return counts. Raises RecordingError or OSError."""
    create = _dataset_class().create
    counts: dict[str, Any] = {"episodes": 0, "frames": 0, "skipped": 0, "fps": _rate(source, fps)}
    with contextlib.closing(_Writer(create, out, counts["fps"])) as writer:
        for episode in _episodes(source, counts):
            rows = (_row(request, task) for request in episode)
            beginning = list(islice(rows, 2))
            if len(beginning) < 2:
                # LeRobot cannot put the statistics of an episode of one frame beside those of others.
                counts["skipped"] += len(beginning)
                continue
            for row in chain(beginning, rows):
                writer.add(row)
                counts["frames"] += 1
            writer.dataset.save_episode()
            counts["episodes"] += 1
        if writer.dataset is None:
            raise RecordingError("no episode of the recording has two answered requests: nothing to export")
        writer.dataset.finalize()
    return counts


class _Writer:
    """A dataset that is being written; its first frame makes it."""

    def __init__(self, create: Callable[..., Any], out: Path, fps: int) -> None:
        self.dataset: Any = None
        self._create = create
        self._out = out
        self._fps = fps
        self._features: dict[str, dict[str, Any]] = {}
        self._first = 0

    def add(self, row: _Row) -> None:
        """Add one frame; raises RecordingError for one with other features than the first."""
        given = row.features()
        if self.dataset is None:
            self._features, self._first = given, row.number
            repo_id = f"shmserve/{re.sub(r'[^A-Za-z0-9._-]', '-', self._out.name)}"
            self.dataset = self._create(
                repo_id=repo_id, fps=self._fps, features=given, root=self._out, use_videos=False
            )
        elif given != self._features:
            raise RecordingError(f"request {row.number}: {_difference(self._features, given)} in request {self._first}")
        self.dataset.add_frame({**row.values, "task": row.task})

    def close(self) -> None:
        """Close the files of a dataset that failed while pyarrow still can: at Python's end it aborts the process."""
        with contextlib.suppress(Exception):
            if self.dataset is not None:
                self.dataset.finalize()


def _dataset_class() -> Any:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:  # of lerobot, or of what it needs for datasets
        raise RecordingError(
            f"--lerobot needs lerobot in this environment: pip install 'lerobot[dataset]' ({type(error).__name__}: {error})"
        ) from error
    return LeRobotDataset


def _rate(source: ExportSource, fps: float | None) -> int:
    measured = fps if fps is not None else source.rate_hz()
    rate = round(measured) if measured is not None else 0
    if rate < 1 or (fps is not None and rate != fps):
        what = f"--fps {fps:g}" if fps is not None else f"the requests' rate of {measured or 0:.2f} Hz"
        raise RecordingError(
            f"a LeRobotDataset has a whole number of frames per second, 1 or more, not {what}: give --fps"
        )
    return rate


def _episodes(source: ExportSource, counts: dict[str, Any]) -> Iterator[Iterator[SplitRequest]]:
    """Yield the answered requests of each episode that has any."""
    for requests in source.by_client():
        ahead = _Episodes(requests, counts)
        while ahead.more():
            yield ahead.next_episode()


class _Episodes:
    """One client's requests with resets as the ends of episodes; one request is read ahead."""

    def __init__(self, requests: Iterator[SplitRequest], counts: dict[str, Any]) -> None:
        self._requests = requests
        self._counts = counts
        self._ahead: SplitRequest | None = None
        self._reset = False

    def more(self) -> bool:
        """Whether another episode follows."""
        self._reset = False
        self._fill()
        return self._ahead is not None

    def next_episode(self) -> Iterator[SplitRequest]:
        while self._ahead is not None and not self._reset:
            request, self._ahead = self._ahead, None
            yield request
            self._fill()

    def _fill(self) -> None:
        """Read the next answered request, unless there is one; note the resets before it."""
        while self._ahead is None:
            request = next(self._requests, None)
            if request is None:
                return
            if request.facts.kind == "reset":
                self._reset = True
            elif request.facts.status == "ok":
                self._ahead = request
            else:
                self._counts["skipped"] += 1


def _row(request: SplitRequest, task: str | None) -> _Row:
    """Return a request's frame of the dataset; `task` takes the place of the observation's own."""
    row = _Row(request.facts.number, task)
    for frame in request.frames:
        name = "observation.images." + _without_signs(frame.name.removeprefix("observation.").removeprefix("images."))
        if frame.encoding in ("16UC1", "32FC1"):
            row.values[_feature("observation.", frame.name)] = frame.pixels
        else:
            row.values[name] = frame.as_rgb()
            row.images.add(name)
    single: dict[str, float] = {}
    for path, value in flatten_with_path(request.observation):
        name = path.replace('"', "")
        if isinstance(value, str):
            if row.task is None and name.rpartition(".")[2] in _TASKS:
                row.task = value
        elif _is_number(value):
            single[name] = float(value)
        elif (array := _numbers(value)) is not None:
            row.values[_feature("observation.", name)] = array
    _gather(row, _STATE, "observation.", single)
    if row.task is None:
        raise RecordingError(
            f"request {row.number}: its observation has no text {', '.join(_TASKS)}, and a dataset needs one: "
            "give it with --task"
        )
    _add_action(row, request.action)
    return row


def _add_action(row: _Row, action: Any) -> None:
    single: dict[str, float] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for path, value in flatten_with_path(action):
        name = path.replace('"', "")
        if _is_number(value):
            single[name] = float(value)
        elif (array := _numbers(value)) is not None:
            arrays[name] = _first_row(array)
    mains = [name for name in ("action", "actions", "") if name in arrays]
    main = mains[0] if mains else next(iter(arrays)) if len(arrays) == 1 else None
    for name, array in arrays.items():
        row.values[_ACTION if name == main else _feature("action.", name)] = array
    _gather(row, _ACTION, "action.", single)


def _gather(row: _Row, name: str, prefix: str, single: dict[str, float]) -> None:
    """Single numbers, as LeRobot's robots give joints, become one vector, unless there is one already."""
    if single and name not in row.values:
        row.values[name] = np.array(list(single.values()), np.float32)
        row.names[name] = list(single)
    elif single:
        row.values |= {_feature(prefix, key): np.array([value], np.float32) for key, value in single.items()}


def _first_row(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first row of a chunk: the action for the time of its observation."""
    while array.ndim > 1 and array.shape[0]:
        array = array[0]
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.generic)) and np.asarray(value).dtype.kind in "biuf"


def _numbers(value: Any) -> npt.NDArray[Any] | None:
    """An array of numbers in a dtype that a dataset has; None for anything else."""
    if not isinstance(value, np.ndarray) and not (
        isinstance(value, (list, tuple)) and value and all(map(_is_number, value))
    ):
        return None
    array = np.asarray(value)
    if array.dtype.name in ("bfloat16", "float16") or not isinstance(value, np.ndarray):
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf" or not array.size:
        return None
    return array.reshape(1) if array.ndim == 0 else array


def _feature(prefix: str, name: str) -> str:
    """The name of a feature that is not a picture: LeRobot takes every one with "image" in its name for a picture.

    >>> _feature("observation.", "images.depth"), _feature("observation.", "observation.image_tokens")
    ('observation.depth', 'observation.img_tokens')
    """
    return prefix + _without_signs(name.removeprefix("observation.").removeprefix("images.").replace("image", "img"))


def _without_signs(name: str) -> str:
    """LeRobot makes folders of names, and allows no slash.

    >>> _without_signs("history[2]")
    'history_2'
    """
    return re.sub(r"[\[/]", "_", name).replace("]", "")


def _difference(wanted: dict[str, dict[str, Any]], given: dict[str, dict[str, Any]]) -> str:
    for name in [*wanted, *given]:
        have, want = given.get(name), wanted.get(name)
        if have != want:
            return f"{name} is {_shown(have)}, and {_shown(want)}"
    return "its features are in another order than"


def _shown(feature: dict[str, Any] | None) -> str:
    return "absent" if feature is None else f"{feature['dtype']}{list(feature['shape'])}"
