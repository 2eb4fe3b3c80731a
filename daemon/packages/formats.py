"""Model formats by name: the files that identify each, and whether its files can run code.

A new format needs one line here and one module in `engine/models/`.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shmserve.errors import ModelPackageError

from .lerobot_checkpoint import FILES, is_checkpoint


@dataclass(frozen=True)
class Format:
    """Properties of a format that need no torch."""

    module: str  # in engine/models/, imported only when a package of this format is loaded
    file: str | None  # identifies the format if the manifest does not name it
    #: Whether loading or running a package can do more than arithmetic, so that allow_code = false rejects it. Of a
    #: LeRobot checkpoint this depends on its content (LerobotOptions.runs_code).
    runs_code: bool
    #: Whether it is a saved module: torch knows its arguments, and the manifest may name them (inputs, outputs, batch_dim).
    saved_module: bool = False
    #: Whether the file, a zip, holds code that AOTInductor compiled: what tells it from a program in a file of the same name.
    compiled: bool = False
    #: Whether it is a policy class, which the manifest may choose and construct (entry, weights, style, arguments, arrays).
    policy_class: bool = False


#: In the order in which a directory without a manifest is searched.
FORMATS = {
    # torch.export.load evaluates the archive's shape expressions (sympy's sympify is an eval), unpickles without limit
    # all data marked as pickled and any example input that weights_only refuses, and opens the archive's shared libraries.
    "torch-export": Format("torch_export", "model.pt2", runs_code=True, saved_module=True),
    # A shared library, which the engine loads and calls.
    "aoti": Format("aoti", "model.pt2", runs_code=True, saved_module=True, compiled=True),
    # A program for torch's interpreter, whose operators read and write files; torch's own advice is to treat it as
    # "locally executable code from an unknown source" (SECURITY.md).
    "torchscript": Format("torchscript", "model.pt", runs_code=True, saved_module=True),
    "python": Format("python_class", "policy.py", runs_code=True, policy_class=True),
    # The operator has installed the code in the daemon's environment; the package has weights and settings.
    "installed": Format("installed_class", None, runs_code=False, policy_class=True),
    "lerobot": Format("lerobot", None, runs_code=False),
    # Another machine runs the model; a fallback is a package of its own format, read by the same rules.
    "remote": Format("remote", None, runs_code=False),
}
#: Files by which a directory without a manifest is recognised, as an error names them.
IDENTIFYING = f"{', '.join(dict.fromkeys(form.file for form in FORMATS.values() if form.file))}, or {FILES}"


#: The last record of a zip without a comment, and the longest list of members that is read to recognise one.
_END_OF_ZIP = struct.Struct("<4s4H2LH")
_LIST_BYTES = 4 << 20


def recognised(directory: Path) -> str | None:
    """Return the format that a directory's files identify, None if none does; raises ModelPackageError for several formats."""
    found = {
        form.file: name
        for name, form in FORMATS.items()
        if form.file and (directory / form.file).is_file() and (not form.compiled or is_compiled(directory / form.file))
    }
    if is_checkpoint(directory):
        found["a LeRobot checkpoint"] = "lerobot"
    if len(found) > 1:
        raise ModelPackageError(
            f"{directory} holds {' and '.join(found)}, which are models of different formats: "
            f"remove the others, or write model.toml with format = one of {', '.join(found.values())}"
        )
    return next(iter(found.values()), None)


def is_compiled(file: Path) -> bool:
    """Return whether this .pt2 archive holds code that AOTInductor compiled, and no program that torch.export can load."""
    try:
        with file.open("rb") as stream:
            stream.seek(-_END_OF_ZIP.size, 2)
            list_bytes = _END_OF_ZIP.unpack(stream.read())[5]
            if list_bytes > _LIST_BYTES:  # not of a model: it would only take memory
                return False
            with zipfile.ZipFile(stream) as archive:
                # Every name begins with the name of the archive.
                folders = {tuple(name.split("/")[1:3]) for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile):
        return False
    return ("data", "aotinductor") in folders and not any(folder[:1] == ("models",) for folder in folders)
