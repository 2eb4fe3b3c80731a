"""Packages that must be refused before any engine starts, each with the words that name the fault and the remedy."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

POLICY = "class Policy:\n    pass\n"


@dataclass(frozen=True)
class Bad:
    """`build` fills the new directory that it is given; what it returns is what is sent."""

    name: str
    build: Callable[[Path], Path]
    reason: str

    def __str__(self) -> str:
        return self.name


def _files(files: Mapping[str, str | bytes]) -> Callable[[Path], Path]:
    def build(directory: Path) -> Path:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return directory

    return build


def _manifest(manifest: str | bytes) -> Callable[[Path], Path]:
    return _files({"model.toml": manifest, "policy.py": POLICY})


def _with(add: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A good package and something that does not belong into one."""

    def build(directory: Path) -> Path:
        _files({"policy.py": POLICY})(directory)
        add(directory)
        return directory

    return build


def _empty_directories(directory: Path) -> Path:
    (directory / "a" / "b").mkdir(parents=True)
    return directory


def _many(directory: Path) -> None:
    for number in range(1030):
        (directory / str(number)).touch()


def _deep(directory: Path) -> None:
    (directory / "/".join("d" * 17)).mkdir(parents=True)
    (directory / "/".join("d" * 17) / "weights").touch()


def _socket(directory: Path) -> None:
    # By a short name: the path of a socket has room for 107 bytes.
    here = os.open(directory, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{here}/s")
    os.close(here)


def _latin_1(directory: Path) -> None:
    os.close(os.open(os.fsencode(directory) + b"/caf\xe9", os.O_CREAT))


def _huge(directory: Path) -> None:
    with open(directory / "weights.bin", "wb") as file:
        file.truncate(17 << 30)  # without a byte on the disk


def _huge_archive(directory: Path) -> Path:
    with open(directory / "model.tar", "wb") as file:
        file.truncate(20 << 30)
    return directory / "model.tar"


def _one_file(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda directory: _files({name: content})(directory) / name


_CONTENT = [
    Bad("nothing", _files({}), "the package contains no files"),
    Bad("empty directories", _empty_directories, "the package contains no files"),
    Bad("only a cache", _files({"__pycache__/policy.cpython-311.pyc": b"\0"}), "the package contains no files"),
    Bad("only a text", _files({"README.md": "a model"}), "none of model.pt2, model.pt, policy.py"),
    Bad("the folder above", _files({"model/policy.py": POLICY}), "none of model.pt2, model.pt, policy.py"),
    Bad("two models", _files({"model.pt": b"", "policy.py": POLICY}), "remove the others, or write model.toml"),
    Bad("a link", _with(lambda d: (d / "weights").symlink_to("/etc/passwd")), "'cp -rL' copies what links point to"),
    Bad("a link to a directory", _with(lambda d: (d / "data").symlink_to("/etc")), "a symbolic link"),
    Bad("a dangling link", _with(lambda d: (d / "weights").symlink_to("gone")), "a symbolic link"),
    Bad("a FIFO", _with(lambda d: os.mkfifo(d / "weights")), "a FIFO; a package holds regular files"),
    Bad("a socket", _with(_socket), "a socket; a package holds regular files"),
    Bad("a name with a line break", _with(lambda d: (d / "a\nb").touch()), "control or invisible"),
    Bad("a name with an escape", _with(lambda d: (d / "a\x1b[2J").touch()), "control or invisible"),
    Bad("a name with a backslash", _with(lambda d: (d / "a\\b").touch()), "has a backslash"),
    Bad("a name in Latin-1", _with(_latin_1), "is not UTF-8"),
    Bad("a name that reads backwards", _with(lambda d: (d / "policy\u202eyp.exe").touch()), "control or invisible"),
    Bad("too many files", _with(_many), "more than 1024 files and directories"),
    Bad("too deep", _with(_deep), "levels deep, more than 16"),
    Bad("17 GiB", _with(_huge), "a package has at most 17179869184"),
    Bad("an archive of 20 GiB", _huge_archive, "the archive has 21474836480 bytes"),
    Bad("one file of Python", _one_file("policy.py", POLICY.encode() * 50), "send a directory, or a tar of one"),
    Bad("one torch file", _one_file("model.pt", b"PK\x03\x04" + bytes(600)), "those go into a directory"),
]

_MANIFESTS = [
    Bad("no TOML", _manifest("[model\n"), "model.toml is not TOML"),
    Bad("no text", _manifest(b"\xff\xfe\0"), "model.toml is not TOML"),
    Bad("a table that is none", _manifest("model = 3\n"), "must be a table"),
    Bad("an unknown table", _manifest("[modle]\n"), "did you mean 'model'?"),
    Bad("an unknown key", _manifest("[model]\nentyr = 'policy:Policy'\n"), "did you mean 'entry'?"),
    Bad("an unknown format", _manifest("[model]\nformat = 'onnx'\n"), "must be one of torch-export, aoti, torchscript"),
    Bad("no class", _manifest("[model]\nentry = 'policy'\n"), "must be module:class"),
    Bad("a path for a class", _manifest("[model]\nentry = '../x:Policy'\n"), "must be module:class"),
    Bad("a number in quotes", _manifest("[model]\nmax_batch = '4'\n"), "must be an integer"),
    Bad("a batch of nothing", _manifest("[model]\nmax_batch = 0\n"), "must be 1 or more"),
    Bad("weights elsewhere", _manifest("[model]\nweights = '/etc/passwd'\n"), "the name of a file in the package"),
    Bad("weights above", _manifest("[model]\nweights = '../w'\n"), "must be the name of a file in the package"),
    Bad("no weights", _manifest("[model]\nweights = 'w.safetensors'\n"), "the package holds no such file"),
    Bad("no example", _manifest("[warmup]\nexample = 'example.npz'\n"), "the package holds no such file"),
    Bad("a negative tolerance", _manifest("[warmup]\ntolerance = {atol = -1.0}\n"), "must be a number, 0 or more"),
    Bad("a tolerance that is none", _manifest("[warmup]\ntolerance = {rtol = nan}\n"), "must be a number, 0 or more"),
    Bad("no exported program", _manifest("[model]\nformat = 'torch-export'\n"), "holds no model.pt2, which format"),
    Bad(
        "a key of another format",
        _files({"model.toml": "[model]\nentry = 'policy:Policy'\nformat = 'torchscript'\n", "model.pt": b""}),
        "entry is for format python",
    ),
    Bad(
        "batches without a dimension",
        _files({"model.toml": "[model]\nmax_batch = 4\n", "model.pt2": b""}),
        "needs batch_dim = true",
    ),
]

BAD = [*_CONTENT, *_MANIFESTS]
