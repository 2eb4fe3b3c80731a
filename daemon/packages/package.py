"""What a model package says of itself, read without torch and without running its code."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.package_advice import PACKAGE, advice_for_file, advice_for_url, is_url, looks_like_tar
from shmserve.package_files import content_version

from .formats import FORMATS
from .manifest import read_manifest
from .value_ranges import RangeCheck


def _no_directory(path: Path) -> str:
    """What is at this path instead, and what to do."""
    try:
        with open(path, "rb") as file:
            start = file.read(512) if path.is_file() else b"?"
    except OSError:  # not there, or nothing that can be read
        start = b"?"
    if not path.exists():
        return f"does not exist; {advice_for_url() if is_url(path) else f'it must be {PACKAGE}'}"
    if looks_like_tar(start):
        return "is a tar: unpack it (tar -xf), and give the directory; a running service takes it with update-model"
    kind = advice_for_file(path.name, start)
    return f"is not a directory: it is {kind}" if kind else f"is not a directory; it must be {PACKAGE}"


@dataclass(frozen=True)
class ModelPackage:
    """A directory with a model, and what its `model.toml` says of it."""

    path: Path
    name: str
    format: str
    release: int = 0  # grows with each release, so that nobody brings an old one back
    entry: str = ""  # python: module:class in the directory; installed: the name of an installed policy
    style: str = ""  # how the class is constructed and asked: shmserve, openpi, gr00t; empty: by its methods
    arrays: str = "torch"  # what observations hold: tensors, or with numpy (always so in the other styles) its arrays
    arguments: dict[str, Any] = field(default_factory=dict)  # of the class's constructor
    inputs: tuple[str, ...] | None = None  # saved modules: what of an observation is each argument
    outputs: tuple[str, ...] | None = None  # saved modules: the names of what it returns
    batch_dim: bool = False  # saved modules: a first dimension for the request, which observations lack
    max_batch: int = 1
    weights: str | None = None  # a safetensors file, checked before the class is made
    read_in_place: bool = False  # the policy never keeps nor changes an observation: on the CPU it may read the slot
    stateful: bool = False  # running a request twice is not the same as running it once
    deterministic: bool = False
    sampling: bool = False  # actions are drawn: the same observation gives another one each time
    grad: bool = True  # under torch.no_grad, where gradients can be asked for; else in inference mode
    cuda_graph: bool = False  # on CUDA: recorded once, launched as a whole
    device_bytes: int | None = None  # what it needs of the device at most; None: estimated
    example: str | None = None  # warm-up observation, a .npz in the directory
    expected: str | None = None  # the action that the example must give, a .npz in the directory
    atol: float = 1e-4
    rtol: float = 1e-3
    allow_nonfinite: bool = False  # NaN and infinity are values that this model gives on purpose
    #: What numbers it may get and give, by side (observation, action) and entry.
    checks: dict[str, dict[str, RangeCheck]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)  # for the model's clients

    @cached_property
    def version(self) -> str:
        """Its content address (shmserve.package_files): its files are read for it."""
        return content_version(self.path, exact=True)

    @classmethod
    def read(cls, path: Path, *, allow_code: bool = True) -> ModelPackage:
        """Read and check the package at `path`; raises ModelPackageError naming file, key and remedy.

        Without `allow_code` a format that can run code from the package is refused.
        """
        if not path.is_dir():
            raise ModelPackageError(f"model path {path} {_no_directory(path)}")
        settings = read_manifest(path)
        if FORMATS[settings["format"]].runs_code and not allow_code:
            safe = ", ".join(name for name, form in FORMATS.items() if not form.runs_code)
            raise ModelPackageError(
                f"{path}: format {settings['format']!r} can run code from the package, and this daemon's allow_code is "
                f"false; it serves packages of format {safe} (docs/model-packages.md, Packages that bring no code)"
            )
        return cls(path=path, **settings)
