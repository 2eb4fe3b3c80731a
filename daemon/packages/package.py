"""Model package: a directory and its description, read without torch and without running its code."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shmserve.contract_meaning import Meaning
from shmserve.errors import ModelPackageError
from shmserve.package_advice import PACKAGE, advice_for_file, advice_for_url, is_url, looks_like_tar
from shmserve.package_files import content_version

from .formats import FORMATS
from .lerobot_options import LerobotOptions
from .manifest import read_manifest
from .range_checks import RangeCheck
from .remote_link import RemoteLink


def _no_directory(path: Path) -> str:
    """Return the problem with a path that is not a package directory, and its remedy."""
    try:
        with open(path, "rb") as file:
            start = file.read(512) if path.is_file() else b"?"
    except OSError:  # absent or unreadable
        start = b"?"
    if not path.exists():
        return f"does not exist; {advice_for_url() if is_url(path) else f'it must be {PACKAGE}'}"
    if looks_like_tar(start):
        return "is a tar: unpack it (tar -xf) and pass the directory, or send the tar to a running service with update-model"
    kind = advice_for_file(path.name, start)
    return f"is not a directory: it is {kind}" if kind else f"is not a directory; it must be {PACKAGE}"


@dataclass(frozen=True)
class ModelPackage:
    """A directory with a model, and the contents of its `model.toml`."""

    path: Path
    name: str
    format: str
    release: int = 0  # increases with each release, so that an older one is not accepted
    entry: str = ""  # python: module:class in the directory; installed: the name of an installed policy
    style: str = ""  # construction and calls: shmserve, openpi, gr00t; empty: recognised by the class's methods
    arrays: str = "torch"  # arrays of observations: tensors, or with numpy (always so in the other styles) numpy arrays
    arguments: dict[str, Any] = field(default_factory=dict)  # for the class's constructor
    inputs: tuple[str, ...] | None = None  # saved modules: the observation's entry for each argument
    outputs: tuple[str, ...] | None = None  # saved modules: the names of the results
    batch_dim: bool = False  # saved modules: a first dimension for the request, which observations lack
    max_batch: int = 1
    weights: str | None = None  # a safetensors file, checked before the class is made
    read_in_place: bool = False  # the policy neither keeps nor changes observations: on the CPU it may read the slot
    real_time_chunking: bool = False  # takes the entries of shmserve.real_time_chunking
    stateful: bool = False  # running a request twice differs from running it once
    deterministic: bool = False
    sampling: bool = False  # actions are random samples: the same observation gives another action each time
    grad: bool = True  # run under torch.no_grad, where the policy can enable gradients; else in inference mode
    cuda_graph: bool = False  # on CUDA: recorded once, launched as a whole
    device_bytes: int | None = None  # upper limit of its device memory; None: estimated
    example: str | None = None  # warm-up observation, a .npz in the directory
    expected: str | None = None  # the action that the example must give, a .npz in the directory
    atol: float = 1e-4
    rtol: float = 1e-3
    rounds: int | None = None  # inferences of the warm-up; None: three, and of a slow model two
    allow_nonfinite: bool = False  # the model returns NaN and infinity on purpose
    #: Range checks by side (observation, action) and entry.
    checks: dict[str, dict[str, RangeCheck]] = field(default_factory=dict)
    #: Meaning of the numbers, for the clients to compare: units, names, frames, rate (shmserve.contract_meaning).
    contract: Meaning = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)  # for the model's clients
    lerobot: LerobotOptions | None = None  # of format lerobot alone
    link: RemoteLink | None = None  # format remote: where the model is

    @cached_property
    def version(self) -> str:
        """Content address of the package (shmserve.package_files); computing it reads all files."""
        return content_version(self.path, exact=True)

    @classmethod
    def read(cls, path: Path, *, allow_code: bool = True) -> ModelPackage:
        """Read and check the package at `path`; raises ModelPackageError naming file, key and remedy.

        Without `allow_code` it rejects a format that can run code from the package.
        """
        if not path.is_dir():
            raise ModelPackageError(f"model path {path} {_no_directory(path)}")
        settings = read_manifest(path)
        if not allow_code:
            _refuse_code(path, settings)
        package = cls(path=path, **settings)
        package.read_fallback(allow_code=allow_code)
        return package

    def read_fallback(self, *, allow_code: bool = True) -> ModelPackage | None:
        """Return the package inside this one that answers when the remote model does not; None without one."""
        if self.link is None or self.link.fallback is None:
            return None
        fallback = ModelPackage.read(self.path / self.link.fallback, allow_code=allow_code)
        if fallback.link is not None:
            raise ModelPackageError(f"{fallback.path}: a fallback runs on this machine, so it cannot be a link itself")
        if fallback.stateful:
            raise ModelPackageError(
                f"{fallback.path}: a fallback cannot be stateful: it sees only the requests that the remote did not answer"
            )
        return fallback


def _refuse_code(path: Path, settings: dict[str, Any]) -> None:
    """Raise ModelPackageError for a package that can run code."""
    lerobot: LerobotOptions | None = settings.get("lerobot")
    reason = lerobot.runs_code if lerobot is not None else None
    if reason is None and not FORMATS[settings["format"]].runs_code:
        return
    safe = ", ".join(name for name, form in FORMATS.items() if not form.runs_code)
    raise ModelPackageError(
        f"{path}: format {settings['format']!r} can run code from the package, and this daemon's allow_code is false"
        f"{f' ({reason})' if reason else ''}; it serves packages of format {safe} (docs/how-to/model-packages.md, Packages without "
        "code)"
    )
