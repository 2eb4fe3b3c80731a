"""What a model package says of itself, read without torch and without running its code."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shmserve.errors import ModelPackageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "model.toml"
#: What a directory without a manifest is taken for, by the file it holds.
RECOGNISED = {"policy.py": "python"}
FORMATS = ("python",)


@dataclass(frozen=True)
class ModelPackage:
    """A directory with a model, and what its `model.toml` says of it."""

    path: Path
    version: str  # the first 16 hex digits of the sha256 over the package's files
    name: str
    format: str
    entry: str  # format "python": module:class in the directory
    max_batch: int = 1
    read_in_place: bool = False  # the policy never keeps nor changes an observation: on the CPU it may read the slot
    stateful: bool = False  # running a request twice is not the same as running it once
    deterministic: bool = False
    example: str | None = None  # warm-up observation, a .npz in the directory

    @classmethod
    def read(cls, path: Path) -> ModelPackage:
        """Read and check the package at `path`; raises ModelPackageError naming file, key and remedy."""
        if not path.is_dir():
            state = "is not a directory" if path.exists() else "does not exist"
            raise ModelPackageError(f"model path {path} {state}; it must be a directory with a {MANIFEST}")
        manifest = path / MANIFEST
        if manifest.is_file():
            settings = _settings(manifest)
        else:
            found = next((name for name in RECOGNISED if (path / name).is_file()), None)
            if found is None:
                raise ModelPackageError(
                    f"{path} holds no {MANIFEST} and none of {', '.join(RECOGNISED)}; see docs/model-packages.md"
                )
            settings = {"name": path.resolve().name, "format": RECOGNISED[found], "entry": "policy:Policy"}
        return cls(path=path, version=content_version(path), **settings)


def _settings(manifest: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(manifest.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelPackageError(f"{manifest} is not TOML: {error}") from error
    known = {field.name: field.type for field in fields(ModelPackage)} | {}
    for own in ("path", "version", "example"):
        known.pop(own)
    _refuse_unknown(manifest, document, ("model", "warmup"), "table")
    model = document.get("model", {})
    warmup = document.get("warmup", {})
    for table, content in (("model", model), ("warmup", warmup)):
        if not isinstance(content, dict):
            raise ModelPackageError(f"{manifest}: {table} must be a table ([{table}])")
    _refuse_unknown(manifest, model, tuple(known), "key of [model]")
    _refuse_unknown(manifest, warmup, ("example",), "key of [warmup]")
    settings: dict[str, Any] = {"name": manifest.resolve().parent.name, "format": "python", "entry": "policy:Policy"}
    settings |= model
    settings |= warmup
    expected: dict[str, type] = {"str": str, "int": int, "bool": bool, "str | None": str}
    for key, value in settings.items():
        kind = expected[str(known.get(key, "str"))]
        if type(value) is not kind:
            raise ModelPackageError(f"{manifest}: {key} = {value!r} must be {kind.__name__}")
    if settings["format"] not in FORMATS:
        raise ModelPackageError(f"{manifest}: format = {settings['format']!r} is none of {', '.join(FORMATS)}")
    if settings.get("max_batch", 1) < 1:
        raise ModelPackageError(f"{manifest}: max_batch = {settings['max_batch']} must be 1 or more")
    if settings["format"] == "python" and not _is_entry(settings["entry"]):
        raise ModelPackageError(f"{manifest}: entry = {settings['entry']!r} must be module:class, as in policy:Policy")
    return settings


def _is_entry(entry: str) -> bool:
    module, _, name = entry.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _refuse_unknown(manifest: Path, table: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ModelPackageError(f"{manifest}: {key!r} is no {what}{hint}")


def content_version(path: Path) -> str:
    """The content address of a package: sha256 over the names and bytes of its files, 16 hex digits of it.

    Caches that running the package may leave behind (__pycache__) do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(_files(path)):
        content = hashlib.sha256((path / name).read_bytes()).digest()
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[str]:
    found = []
    for directory, names, files in os.walk(path):
        names[:] = [name for name in names if name != "__pycache__"]
        for name in files:
            file = Path(directory) / name
            if stat.S_ISREG(file.stat().st_mode):
                found.append(str(file.relative_to(path)))
    return found
