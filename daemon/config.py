"""What the operator chose, checked once at the start."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shmserve.spin import SpinSetting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIB = 1 << 20


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Config:
    """Everything a daemon is told."""

    runtime_dir: Path
    state_dir: Path
    #: The package to begin with; None: the version that was served last.
    model_path: Path | None = None
    name: str = "default"
    device: str = "cpu"
    transport: str = "named"
    #: Clients of these users may send any Python object (full pickle). None: the daemon's own user alone.
    trusted_uids: tuple[int, ...] | None = None
    #: Members of the daemon's group may be clients (socket 0660); without, only its own user (0600).
    group_clients: bool = False
    max_clients: int = 64
    max_slots: int = 16
    #: Shared memory of one channel, both directions and all slots.
    max_channel_bytes: int = 1024 * MIB
    spin_us: SpinSetting = "adaptive"
    #: Threads of one torch operation on the CPU. None: half of the processors, the robot has the others.
    threads: int | None = None
    #: How long a stopping daemon works on what clients have already sent.
    drain_s: float = 5.0
    #: How long an engine may take to load and warm up.
    load_s: float = 600.0
    #: How long the engine before an update is kept warm, for an instant rollback.
    standby_s: float = 300.0
    #: A new model is on probation for its first requests: if its engine dies, or more than this share of
    #: them fails, the daemon goes back to the model before.
    probation_requests: int = 100
    probation_failures: float = 0.5
    #: How many model versions are kept.
    keep_versions: int = 8
    #: False refuses packages whose format can run code from the package.
    allow_code: bool = True
    #: Only packages signed by one of `signature_keys` (public keys, or files that hold one) are taken.
    require_signature: bool = False
    signature_keys: tuple[str, ...] = ()
    max_package_bytes: int = 16 * 1024 * MIB

    def __post_init__(self) -> None:
        if self.transport != "named":
            raise ConfigError(f"transport = {self.transport!r}: this version has 'named'")
        if not 1 <= self.max_clients <= 256:
            raise ConfigError(f"max_clients = {self.max_clients}: 1 to 256")
        if not 1 <= self.max_slots <= 64:
            raise ConfigError(f"max_slots = {self.max_slots}: 1 to 64")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"threads = {self.threads}: 1 to 1024")
        if self.keep_versions < 3:
            raise ConfigError(f"keep_versions = {self.keep_versions}: 3 or more (served, the one before, one on trial)")
        if self.require_signature and not self.signature_keys:
            raise ConfigError("require_signature = true needs signature_keys = [...]: no package could be accepted")
        if self.spin_us != "adaptive" and not (type(self.spin_us) is int and 0 <= self.spin_us <= 1_000_000):
            raise ConfigError(f"spin_us = {self.spin_us!r}: 0 to 1000000 microseconds, or 'adaptive'")


_TYPES: dict[str, tuple[type, ...]] = {
    "model_path": (str,),
    "device": (str,),
    "transport": (str,),
    "trusted_uids": (list,),
    "group_clients": (bool,),
    "max_clients": (int,),
    "max_slots": (int,),
    "max_channel_bytes": (int,),
    "spin_us": (int, str),
    "threads": (int,),
    "drain_s": (int, float),
    "load_s": (int, float),
    "standby_s": (int, float),
    "probation_requests": (int,),
    "probation_failures": (int, float),
    "keep_versions": (int,),
    "allow_code": (bool,),
    "require_signature": (bool,),
    "signature_keys": (list,),
    "max_package_bytes": (int,),
}


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file; raises ConfigError for an unknown key or a wrong type."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error
    for key, value in document.items():
        if key not in _TYPES:
            near = difflib.get_close_matches(key, _TYPES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(_TYPES))}"
            raise ConfigError(f"configuration {path}: unknown key {key!r}; {hint}")
        if type(value) not in _TYPES[key]:
            names = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise ConfigError(f"configuration {path}: {key} = {value!r} must be {names}")
    return document


def make_config(directories: Mapping[str, Path], file: Mapping[str, Any], flags: Mapping[str, Any]) -> Config:
    """Flags over the file over the defaults; raises ConfigError."""
    settings: dict[str, Any] = {**file, **{key: value for key, value in flags.items() if value is not None}}
    if settings.get("model_path"):
        settings["model_path"] = Path(settings["model_path"])
    for key, kind in (("trusted_uids", int), ("signature_keys", str)):
        if key in settings:
            if not all(type(item) is kind for item in settings[key]):
                raise ConfigError(f"{key} = {settings[key]!r} must be a list of {kind.__name__}")
            settings[key] = tuple(settings[key])
    known = {field.name for field in fields(Config)}
    return Config(**{**directories, **{key: value for key, value in settings.items() if key in known}})
