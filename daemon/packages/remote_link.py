"""The [remote] table of model.toml: a package that is a link to a model on another machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shmserve.errors import ModelPackageError

#: The format of a link, and the name of its table.
REMOTE = "remote"
_KEYS: dict[str, type] = {
    "target": str,
    "application": str,
    "version": str,
    "budget_s": float,
    "fallback": str,
    "probe_s": float,
    "open_after": int,
    "recover_after": int,
}
_REQUIRED = ("target", "application", "version")
#: Keys of [model] that a link can have; the others describe a model that this machine runs.
_OF_THE_MODEL = ("name", "release", "format", "max_batch", "read_in_place")
_LONGEST_S = 10.0
_MOST_IN_A_ROW = 100
_VERSION = re.compile(r"[0-9a-f]{16}")
_PAGE = "docs/how-to/remote.md, The proxy on the robot"
#: Requests of different robots that are on their way at once, each in a separate call.
_MAX_BATCH = 16


@dataclass(frozen=True)
class RemoteLink:
    """Where the model is, which version must answer, and what happens when it does not."""

    target: str  # of gRPC: unix:///path of the proxy on this machine
    application: str  # of Ray Serve
    version: str  # content address, 16 hex digits
    budget_s: float = 0.1  # from the client's call until the remote's answer; then the fallback answers
    fallback: str | None = None  # directory in the package: the model that answers when the remote does not
    probe_s: float = 0.5  # between two probes while the link is open
    open_after: int = 3  # late or busy answers in a row that open the link
    recover_after: int = 3  # good probes in a row that close it


def read_link(manifest: Path, table: dict[str, Any] | None, settings: dict[str, Any]) -> RemoteLink | None:
    """Return the link of a package, None for another format; raises ModelPackageError naming file, key and remedy."""
    if settings["format"] != REMOTE:
        if table is not None:
            raise ModelPackageError(f"{manifest}: [remote] is for format 'remote'; this is {settings['format']!r}")
        return None
    if table is None:
        raise ModelPackageError(f"{manifest}: format 'remote' needs [remote] with {', '.join(_REQUIRED)}")
    _check_model(manifest, settings)
    for key, value in table.items():
        if key not in _KEYS:
            raise ModelPackageError(f"{manifest}: {key!r:.80} is not a key of [remote]; known are {_known(key)}")
        if type(value) is not _KEYS[key] and not (_KEYS[key] is float and type(value) is int):
            raise ModelPackageError(f"{manifest}: [remote] {key} = {value!r:.80} must be {_SHOWN[_KEYS[key]]}")
    for key in _REQUIRED:
        if not table.get(key):
            raise ModelPackageError(f"{manifest}: [remote] needs {key}")
    values: dict[str, Any] = {key: float(value) if _KEYS[key] is float else value for key, value in table.items()}
    link = RemoteLink(**values)
    _check(manifest, link)
    settings.setdefault("max_batch", _MAX_BATCH)
    return link


_SHOWN = {str: "a string", float: "a number of seconds", int: "an integer"}


def _known(key: str) -> str:
    if key in ("ca", "certificate", "key"):
        return (
            f"{', '.join(sorted(_KEYS))}: certificates belong to the proxy on this machine, not to a package ({_PAGE})"
        )
    return ", ".join(sorted(_KEYS))


def _check_model(manifest: Path, settings: dict[str, Any]) -> None:
    if settings.get("stateful", False):
        raise ModelPackageError(
            f"{manifest}: a link cannot be stateful: a replica on another machine would have to keep each robot's state. "
            "Serve a stateful policy on the robot's own machine"
        )
    given = [key for key in settings if key not in (*_OF_THE_MODEL, "metadata", "grad")]
    if given:
        raise ModelPackageError(
            f"{manifest}: {', '.join(given)}: not for a link; write it in the package that the cluster runs, or in the fallback's"
        )


def _check(manifest: Path, link: RemoteLink) -> None:
    scheme, _, path = link.target.partition(":")
    if scheme != "unix" or not path.startswith("/"):
        raise ModelPackageError(
            f"{manifest}: target = {link.target!r:.80} must be unix:///path/of/a/socket: an engine has no network, so a "
            f"proxy on this machine holds the certificates and connects to the cluster ({_PAGE})"
        )
    if not _VERSION.fullmatch(link.version):
        raise ModelPackageError(
            f"{manifest}: version = {link.version!r:.80} must be the 16 hex digits of the remote package's version, as "
            "shmserve-admin remote deploy prints it"
        )
    for key in ("budget_s", "probe_s"):
        value = getattr(link, key)
        if not (math.isfinite(value) and 0.001 <= value <= _LONGEST_S):
            raise ModelPackageError(f"{manifest}: {key} = {value} must be 0.001 to {_LONGEST_S:g}")
    for key in ("open_after", "recover_after"):
        value = getattr(link, key)
        if not 1 <= value <= _MOST_IN_A_ROW:
            raise ModelPackageError(f"{manifest}: {key} = {value} must be 1 to {_MOST_IN_A_ROW}")
    if link.fallback is not None:
        inside = PurePosixPath(link.fallback)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts:
            raise ModelPackageError(f"{manifest}: fallback = {link.fallback!r:.80} must be a directory in the package")
        if not (manifest.parent / inside).is_dir():
            raise ModelPackageError(
                f"{manifest}: fallback = {link.fallback!r:.80}: the package holds no such directory"
            )
