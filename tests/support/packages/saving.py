"""Makes model packages of the networks: saves a network once in a run of the tests, copies it where it is needed."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from shmserve.daemon.engine.models import load_model
from shmserve.daemon.engine.models.model import Model
from shmserve.daemon.packages.package import ModelPackage

from . import networks
from .networks import IMAGE_SHAPE, seeded

CPU = torch.device("cpu")
ROWS = 8  # the most requests that the networks with a first dimension are exported for

_IMAGES = torch.zeros(2, *IMAGE_SHAPE, dtype=torch.uint8)
_STATES = torch.tensor([[0.25, 0.5], [1.0, 2.0]])


def _export(
    network: Any, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None, shapes: Any = None
) -> Any:
    return torch.export.export(network, arguments, keywords, dynamic_shapes=shapes)


def _reach() -> Any:
    rows = {0: Dim("rows", min=1, max=ROWS)}
    return _export(seeded(networks.Reach), (_IMAGES, _STATES), shapes={"image": rows, "state": rows})


def _reach_automatic() -> Any:
    rows = {0: Dim.DYNAMIC}
    return _export(seeded(networks.Reach), (_IMAGES, _STATES), shapes={"image": rows, "state": rows})


def _reach_two() -> Any:
    return _export(seeded(networks.Reach), (_IMAGES, _STATES))


def _reach_named() -> Any:
    rows = {0: Dim("rows", min=1, max=ROWS)}
    network = networks.ReachNamed(seeded(networks.Reach)).eval()
    shapes = {"observation": {"image": rows, "state": rows}}
    return _export(network, ({"image": _IMAGES, "state": _STATES},), shapes=shapes)


def _without_example() -> Any:
    program = _export(networks.Doubled(), (torch.zeros(2),))
    program.example_inputs = None
    return program


def _nested() -> Any:
    cameras = {"top": torch.zeros(4, 4, dtype=torch.uint8), "wrist": torch.ones(2, 2, dtype=torch.uint8)}
    return _export(networks.Nested(), (cameras, [torch.ones(3), torch.zeros(3)]))


def _steps() -> Any:
    shapes = {"state": None, "steps": Dim.DYNAMIC, "gain": None}
    return _export(networks.Steps(), (torch.ones(2), 3), {"gain": 0.5}, shapes)


def _concatenated() -> Any:
    length = Dim("length", min=1, max=64)
    shapes = {"left": {0: length}, "right": {0: 2 * length}}
    return _export(networks.Concatenated(), (torch.ones(4), torch.ones(8)), shapes=shapes)


_PROGRAMS: dict[str, Callable[[], Any]] = {
    "reach": _reach,
    "reach_automatic": _reach_automatic,
    "reach_two": _reach_two,
    "reach_named": _reach_named,
    "without_example": _without_example,
    "nested": _nested,
    "steps": _steps,
    "concatenated": _concatenated,
    "doubled": lambda: _export(networks.Doubled(), (torch.ones(2),)),
    "triple": lambda: _export(networks.Triple(), (torch.ones(2),)),
    "remembering": lambda: _export(seeded(networks.Remembering), (torch.ones(2),)),
    "remembering_decomposed": lambda: _export(seeded(networks.Remembering), (torch.ones(2),)).run_decompositions(),
    "overwriting": lambda: _export(networks.Overwriting(), (torch.ones(2),)),
    "root": lambda: _export(networks.Root(), (torch.tensor([4.0, -1.0]),)),
    "twice": lambda: _export(networks.Twice(), (torch.ones(4, 2),), shapes={"state": {0: Dim("rows", min=1, max=8)}}),
}

_SCRIPTS: dict[str, Callable[[], Any]] = {
    "reach": lambda: torch.jit.trace(seeded(networks.Reach), (_IMAGES, _STATES)),
    "reach_named": lambda: torch.jit.trace(
        networks.ReachNamed(seeded(networks.Reach)).eval(), ({"image": _IMAGES, "state": _STATES},), strict=False
    ),
    "reach_scripted": lambda: torch.jit.script(networks.ReachNamed(seeded(networks.Reach)).eval()),
    "doubled": lambda: torch.jit.script(networks.Doubled()),
    "triple": lambda: torch.jit.script(networks.Triple()),
    "named_tupled": lambda: torch.jit.script(networks.NamedTupled()),
    "resettable": lambda: torch.jit.script(networks.Resettable()),
    "root": lambda: torch.jit.script(networks.Root()),
    "accumulating": lambda: torch.jit.script(networks.Accumulating()),
    "listing": lambda: torch.jit.script(networks.Listing()),
    "counted": lambda: torch.jit.script(networks.Counted()),
    "drawn": lambda: torch.jit.script(networks.Drawn()),
    "normalised": lambda: torch.jit.script(seeded(networks.Normalised).train()),
    "failing": lambda: torch.jit.script(networks.Failing()),
}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
        prefix="shmserve-networks-"
    )  # removed by conftest.py: workers exit without atexit


def remove_saved() -> None:
    """Remove what was saved, at the end of the tests."""
    if _folder.cache_info().currsize:
        _folder().cleanup()


@cache
def saved(file: str, name: str) -> Path:
    """The network saved as `file` (model.pt2 or model.pt)."""
    path = Path(_folder().name, name)
    path.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself; the tests are of what is done with the file
        if file == "model.pt2":
            torch.export.save(_PROGRAMS[name](), path / file)
        else:
            torch.jit.save(_SCRIPTS[name](), path / file)
    return path / file


def package(directory: Path, file: str, name: str, manifest: str = "", **arrays: Any) -> Path:
    """A model package of the network, with example.npz if arrays are given."""
    directory.mkdir(exist_ok=True)
    shutil.copyfile(saved(file, name), directory / file)
    if manifest:
        (directory / "model.toml").write_text(manifest)
    if arrays:
        np.savez(directory / "example.npz", **arrays)
    return directory


def loaded(directory: Path) -> tuple[Model, ModelPackage]:
    """The package's model in this process."""
    found = ModelPackage.read(directory)
    return load_model(found, CPU), found
