"""What is said of a model that is not a package: what it is, and what to do with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shmserve.client.cli.update import open_package
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError

_FILES = {
    "note.txt": (b"hello\n", "neither a directory nor a tar file$", "it must be a directory with policy.py"),
    "policy.py": (b"class Policy: ...\n", "the code of a policy", "give the directory that it is in"),
    "model.toml": (b"[model]\n", "a file of a package", "give the directory"),
    "model.pt": (
        b"PK\x03\x04",
        "put a module into a directory as model.pt",
        "put a module into a directory as model.pt",
    ),
    "arm.pt2": (b"PK\x03\x04", "put it into a directory, as model.pt2", "put it into a directory, as model.pt2"),
    "empty": (b"", "an empty file", "an empty file"),
    "arm.onnx": (b"\x08\x07", "an ONNX model.*torch.export", "an ONNX model.*torch.export"),
    "model.safetensors": (b"\x10", "weights without the code", 'weights = "NAME" in model.toml'),
    "last.ckpt": (b"PK\x03\x04", "weights without the code", "weights without the code"),
    "arm.pth": (b"\x80\x02", "weights without the code", "weights without the code"),
    "renamed": (b"GGUF\x03", "a GGUF file", "a GGUF file"),
    "arm.engine": (b"ftrt", "a TensorRT engine", "a TensorRT engine"),
    "arm.plan": (b"ftrt", "a TensorRT engine", "a TensorRT engine"),
}


@pytest.mark.parametrize("name", _FILES)
def test_a_file_that_is_not_a_package_is_named(name: str, tmp_path: Path) -> None:
    content, sent, given = _FILES[name]
    file = tmp_path / name
    file.write_bytes(content)

    with pytest.raises(
        ValueError, match=f"model package .*{name} is neither a directory nor a tar file.*{sent}|{sent}"
    ):
        open_package(file)
    with pytest.raises(ModelPackageError, match=f"model path .*{name} is not a directory.*{given}"):
        ModelPackage.read(file)


@pytest.mark.parametrize("url", ["hf://lerobot/act_aloha", "https://huggingface.co/lerobot/act_aloha"])
def test_a_url_is_called_one(url: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: it is a URL: download"):
        open_package(Path(url))
    with pytest.raises(ModelPackageError, match="does not exist; it is a URL: download"):
        ModelPackage.read(Path(url))


_DIRECTORIES: dict[str, dict[str, bytes | dict[str, object]]] = {
    "it may be a LeRobot checkpoint, but its config.json": {"config.json": {"type": "act"}, "model.safetensors": b""},
    "the package is in its directory 'pretrained_model'": {"pretrained_model/policy_preprocessor.json": b""},
    "it is a model for transformers.*from_pretrained": {
        "config.json": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "model-00001-of-00002.safetensors": b"",
    },
    "'arm.onnx' is an ONNX model": {"arm.onnx": b"", "README.md": b""},
    "'arm.safetensors' is weights without the code": {"arm.safetensors": b"", "config.json": {"hidden": 3}},
    "'arm.pt2' is a program saved by torch.export.*as model.pt2": {"arm.pt2": b""},
    "the package is in its directory 'arm'": {"arm/policy.py": b"", "README.md": b""},
    "a package is a directory with policy.py.*page model-packages": {"README.md": b"", "config.json": b"[" * 9999},
}


@pytest.mark.parametrize("said", _DIRECTORIES)
def test_a_directory_that_is_not_a_package_is_named(said: str, tmp_path: Path) -> None:
    for name, content in _DIRECTORIES[said].items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    with pytest.raises(ModelPackageError, match=f"holds no model.toml and none of model.pt2, .*{said}"):
        ModelPackage.read(tmp_path)
