"""Advice for a model that is not a package: by its name, its first bytes, and the files beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

#: Definition of a package, for errors.
PACKAGE = "a directory with policy.py, model.pt2 or model.pt, or a LeRobot checkpoint, and where something is to be set a model.toml"
_PAGE = "page model-packages of the documentation"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^/]")  # pathlib makes one slash of two
_WEIGHTS = (
    "weights without the code that they belong to: put them beside a policy.py that makes the module and loads them"
)
_ENGINE = "a TensorRT engine: load it with the tensorrt package in a policy.py beside it"
_KINDS = {
    ".onnx": "an ONNX model, and PyTorch is what is served: save the module that it was made of with torch.export as "
    "model.pt2, or run it with onnxruntime in a policy.py beside it",
    ".safetensors": _WEIGHTS + ' (weights = "NAME" in model.toml)',
    ".ckpt": _WEIGHTS,
    ".pth": _WEIGHTS,
    ".bin": _WEIGHTS,
    ".gguf": "a GGUF file of another runtime: call that runtime in a policy.py beside it",
    ".engine": _ENGINE,
    ".plan": _ENGINE,
    ".trt": _ENGINE,
    ".pt2": "a program saved by torch.export: put it into a directory, as model.pt2",
    ".pt": "a TorchScript module, or weights: put a module into a directory as model.pt, weights beside a policy.py",
    ".py": "the code of a policy: give the directory that it is in; its file is called policy.py, or model.toml names it",
    ".toml": "a file of a package: give the directory that it is in",
    ".zip": "a zip file: unpack it, and give the directory",
}
_MAGIC = {b"GGUF": ".gguf", b"ftrt": ".engine", b"ptrt": ".engine"}
_TAR_MAGIC = slice(257, 262)


def is_url(path: str | os.PathLike[str]) -> bool:
    """
    >>> is_url("hf://lerobot/act"), is_url("https:/huggingface.co/x"), is_url("models/arm"), is_url("/srv/a:b")
    (True, True, False, False)
    """
    return _URL.match(os.fspath(path)) is not None


def advice_for_url() -> str:
    return "it is a URL: download what is there, and give the directory"


def looks_like_tar(start: bytes) -> bool:
    """Whether a file that begins with these 512 bytes may be a tar, plain or gzip."""
    return start.startswith(b"\x1f\x8b") or start[_TAR_MAGIC] == b"ustar"


def advice_for_file(name: str, start: bytes) -> str | None:
    """Identify a file that is neither a directory nor a tar, and say what to do; None: unknown.

    >>> advice_for_file("arm.onnx", b"\\x08\\x07")[:13], advice_for_file("note.txt", b"hello"), advice_for_file("x", b"")
    ('an ONNX model', None, 'an empty file')
    """
    if not start:
        return "an empty file"
    return _KINDS.get(_MAGIC.get(start[:4], PurePath(name).suffix.lower()))


def advice_for_directory(directory: Path) -> str:
    """Say what a directory that is not a package holds, and what to do."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        names = []
    return f"{_kind_of(directory, names)} ({_PAGE})"


def _kind_of(directory: Path, names: Iterable[str]) -> str:
    config = _json(directory / "config.json")
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".safetensors.index.json"))]
    if "type" in config and weights:
        return (
            "it may be a LeRobot checkpoint, but its config.json lists no input_features: save it with "
            "policy.save_pretrained, and the processors beside it"
        )
    if ("architectures" in config or "model_type" in config) and weights:
        return "it is a model for transformers: write a policy.py beside it that calls from_pretrained(path)"
    for name in names:
        if (directory / name).is_dir() and any((directory / name / file).is_file() for file in _OWN):
            return f"the package is in its directory {name!r}: give that"
    for suffix, kind in _KINDS.items():
        for name in names:
            if PurePath(name).suffix.lower() == suffix and name not in _OWN:
                return f"{name!r} is {kind}"
    return f"a package is {PACKAGE}"


_OWN = ("model.toml", "policy.py", "model.pt2", "model.pt", "policy_preprocessor.json")


def _json(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_bytes()[: 1 << 20])
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
