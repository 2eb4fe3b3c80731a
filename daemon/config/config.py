"""The operator's settings: each with its type, limits and purpose, validated when they are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shmserve.spin import SpinSetting
from shmserve.toml_value import toml_value

MIB = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")


_DEVICE = re.compile(r"cpu(:0)?|cuda(:\d{1,3})?", re.ASCII)


class ConfigError(ValueError):
    """An invalid setting; the message names the key, its value and the allowed values."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Kind:
    """A setting's type: in words, in TOML, and the parser of its environment variable."""

    words: str
    toml: tuple[type, ...]
    parse: Callable[[str], Any]


def _switch(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _spin(text: str) -> SpinSetting:
    return "adaptive" if text == "adaptive" else int(text)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


INTEGER = Kind("integer", (int,), int)
NUMBER = Kind("number", (int, float), float)
TEXT = Kind("text", (str,), str)
LEVEL = Kind("text", (str,), str.lower)
PATH = Kind("path", (str,), str)
SWITCH = Kind("true or false", (bool,), _switch)
SPIN = Kind("integer or 'adaptive'", (int, str), _spin)
UIDS = Kind("list of integers", (list,), lambda text: [int(item) for item in _items(text)])
TEXTS = Kind("list of texts", (list,), _items)
_ITEMS: dict[Kind, type] = {UIDS: int, TEXTS: str}


@dataclass(frozen=True)
class Setting:
    """Description of one key."""

    kind: Kind
    least: float | None = None
    most: float | None = None
    #: Whether `shmserve-admin reload` applies it; the others need a restart.
    reloadable: bool = False


def _of(
    kind: Kind, least: float | None = None, most: float | None = None, *, reloadable: bool = False
) -> dict[str, Setting]:
    return {"setting": Setting(kind, least, most, reloadable)}


@dataclass(frozen=True)
class Config:
    """All settings of a daemon, described in docs/reference/configuration.md. Only `change_live` modifies an instance."""

    runtime_dir: Path
    state_dir: Path
    name: str = "default"
    #: The package to serve first; None: the version that was served last.
    model_path: Path | None = field(default=None, metadata=_of(PATH))
    device: str = field(default="cpu", metadata=_of(TEXT))
    transport: str = field(default="named", metadata=_of(TEXT))
    #: Clients of these users may send any Python object (full pickle). None: the daemon's own user alone.
    trusted_uids: tuple[int, ...] | None = field(default=None, metadata=_of(UIDS, reloadable=True))
    #: Members of the daemon's group may be clients (socket 0660); without, only its own user (0600).
    #: None: by the mode of the client socket that systemd created; without such a socket, False.
    group_clients: bool | None = field(default=None, metadata=_of(SWITCH))
    #: Users and groups whose processes may be clients; None for both: every user who may open the socket.
    allow_uids: tuple[int, ...] | None = field(default=None, metadata=_of(UIDS, reloadable=True))
    allow_gids: tuple[int, ...] | None = field(default=None, metadata=_of(UIDS, reloadable=True))
    #: Users who may operate the service, beside root and its own; members of the group may look.
    admin_uids: tuple[int, ...] | None = field(default=None, metadata=_of(UIDS, reloadable=True))
    max_clients: int = field(default=64, metadata=_of(INTEGER, 1, 256))
    max_slots: int = field(default=16, metadata=_of(INTEGER, 1, 64, reloadable=True))
    #: Shared memory of one channel, both directions and all slots.
    max_channel_bytes: int = field(default=1024 * MIB, metadata=_of(INTEGER, MIB, 1 << 40, reloadable=True))
    #: Ban duration for a client that corrupted its channel, or crashed the engine three times within ten minutes.
    ban_s: float = field(default=60.0, metadata=_of(NUMBER, 0, 86_400, reloadable=True))
    #: Shared memory of all channels together. None: half of the machine's memory.
    max_shared_bytes: int | None = field(default=None, metadata=_of(INTEGER, MIB, 1 << 50, reloadable=True))
    #: Limits for all processes of one user together: channels, bytes of shared memory, requests a second.
    max_clients_per_user: int | None = field(default=None, metadata=_of(INTEGER, 1, 256, reloadable=True))
    max_bytes_per_user: int | None = field(default=None, metadata=_of(INTEGER, MIB, 1 << 50, reloadable=True))
    max_rate_per_user: float | None = field(default=None, metadata=_of(NUMBER, 0.001, 1e9, reloadable=True))
    #: Attachments and channel growths per second for all processes of one user, after a burst of four for each channel
    #: they may hold. Root and the daemon's own user are exempt: they could do worse than attach.
    max_attach_rate_per_user: float = field(default=4.0, metadata=_of(NUMBER, 0.001, 1e9, reloadable=True))
    spin_us: SpinSetting = field(default="adaptive", metadata=_of(SPIN, 0, 1_000_000))
    #: Whether an idle engine wakes up shortly before a request that it expects: "auto" or "off".
    wake_ahead: str = field(default="auto", metadata=_of(LEVEL))
    #: Threads of one torch operation on the CPU. None: half of the processors, which leaves the others to the robot.
    threads: int | None = field(default=None, metadata=_of(INTEGER, 1, 1024))
    #: Lock the engine's memory once its model is warm, so that the kernel swaps no page of it out.
    lock_memory: bool = field(default=False, metadata=_of(SWITCH))
    #: Real-time priority (SCHED_FIFO) of an engine that serves; 0: normal scheduling.
    engine_priority: int = field(default=0, metadata=_of(INTEGER, 0, 99))
    #: Limit (bytes) of an engine's private memory on the CPU, including a few hundred MiB of torch's own; None: no limit.
    #: Program code and the channels do not count. Engines on other devices are not limited.
    engine_memory_bytes: int | None = field(default=None, metadata=_of(INTEGER, 256 * MIB, 1 << 50))
    #: On a GPU: observations from this size on (bytes) are copied to it from the client's own shared memory, which is
    #: registered with CUDA when the client attaches. None: measured when an engine starts; 0: never.
    register_bytes: int | None = field(default=None, metadata=_of(INTEGER, 0, 1 << 50))
    #: On a GPU, experimental: clients may give arrays that lie in its memory, through memory that the engine shares with them.
    device_leaves: bool = field(default=False, metadata=_of(SWITCH))
    #: That memory: of one client, all its slots, and of all clients together.
    max_device_bytes_per_client: int = field(default=256 * MIB, metadata=_of(INTEGER, MIB, 1 << 50, reloadable=True))
    max_device_bytes: int = field(default=1024 * MIB, metadata=_of(INTEGER, MIB, 1 << 50, reloadable=True))
    #: How long a stopping daemon continues to serve requests that clients have already sent.
    drain_s: float = field(default=5.0, metadata=_of(NUMBER, 0, 3600, reloadable=True))
    #: How long an engine may take to load and warm up.
    load_s: float = field(default=600.0, metadata=_of(NUMBER, 1, 86_400, reloadable=True))
    #: A serving engine whose heartbeat stops for this long is replaced; 0: no limit.
    heartbeat_timeout_s: float = field(default=30.0, metadata=_of(NUMBER, 0, 86_400, reloadable=True))
    #: How long the previous engine is kept as a warm standby after an update, for an instant rollback.
    standby_s: float = field(default=300.0, metadata=_of(NUMBER, 0, 31_536_000, reloadable=True))
    #: "previous": an engine is kept warm only after an update. "loaded": a second engine of the served version is, too, which
    #: takes over at once if the serving one dies; it takes the memory of a second model.
    standby: str = field(default="previous", metadata=_of(LEVEL, reloadable=True))
    #: Whether to keep a spare engine: a process that has imported torch and waits for a model, so that a crash or an update
    #: needs to load the model only. It takes about 150 MiB.
    spare_engine: bool = field(default=True, metadata=_of(SWITCH, reloadable=True))
    #: Modules that a spare engine imports beside torch, such as "torchvision".
    preload: tuple[str, ...] = field(default=(), metadata=_of(TEXTS))
    #: A new model is a canary for its first requests: if its engine dies, or more than this share of
    #: them fails, the daemon rolls back to the previous model.
    probation_requests: int = field(default=100, metadata=_of(INTEGER, 0, 1_000_000_000, reloadable=True))
    probation_failures: float = field(default=0.5, metadata=_of(NUMBER, 0, 1, reloadable=True))
    #: Number of model versions to keep: at least the current one, the previous one and one canary.
    keep_versions: int = field(default=8, metadata=_of(INTEGER, 3, 10_000))
    #: False rejects packages whose format can run code from the package.
    allow_code: bool = field(default=True, metadata=_of(SWITCH))
    #: Accept only packages signed by one of `signature_keys` (public keys, or files that hold one).
    require_signature: bool = field(default=False, metadata=_of(SWITCH))
    signature_keys: tuple[str, ...] = field(default=(), metadata=_of(TEXTS))
    max_package_bytes: int = field(default=16 * 1024 * MIB, metadata=_of(INTEGER, 1, 1 << 50))
    log_level: str = field(default="info", metadata=_of(LEVEL, reloadable=True))

    def __post_init__(self) -> None:
        for key, setting in SETTINGS.items():
            value = getattr(self, key)
            if type(value) not in (int, float) or setting.least is None or setting.most is None:
                continue
            if not setting.least <= value <= setting.most:  # a comparison with NaN is false
                raise ConfigError(f"{key} = {toml_value(value)} must be {setting.least:g} to {setting.most:g}", key)
        if self.transport not in ("named", "sealed"):
            raise ConfigError(f'transport = {toml_value(self.transport)} must be "named" or "sealed"', "transport")
        check_device(self.device)
        if isinstance(self.spin_us, str) and self.spin_us != "adaptive":
            raise ConfigError(
                f'spin_us = {toml_value(self.spin_us)} must be 0 to 1000000 microseconds, or "adaptive"', "spin_us"
            )
        if self.wake_ahead not in ("auto", "off"):
            raise ConfigError(f'wake_ahead = {toml_value(self.wake_ahead)} must be "auto" or "off"', "wake_ahead")
        if self.standby not in ("previous", "loaded"):
            raise ConfigError(f'standby = {toml_value(self.standby)} must be "previous" or "loaded"', "standby")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log_level = {toml_value(self.log_level)} must be one of {', '.join(map(toml_value, LOG_LEVELS))}",
                "log_level",
            )
        for module in self.preload:
            check_module(module)
        if self.require_signature and not self.signature_keys:
            raise ConfigError(
                "require_signature = true needs signature_keys = [...]: no package could be accepted",
                "require_signature",
            )

    def change_live(self, settings: Mapping[str, Any]) -> None:
        """Change reloadable settings in place; every part of the daemon holds this object and reads it when needed."""
        for key, value in settings.items():
            assert SETTINGS[key].reloadable, key
            object.__setattr__(self, key, value)

    @property
    def serves_group(self) -> bool:
        """Whether members of the daemon's group may be clients."""
        return bool(self.group_clients)


#: Every key that a file, the environment or a flag may set.
SETTINGS: dict[str, Setting] = {
    found.name: found.metadata["setting"] for found in fields(Config) if "setting" in found.metadata
}


def check_module(module: str) -> None:
    """Raise ConfigError unless the name is that of an installed module; the module is not imported."""
    text = f"preload = [{toml_value(module)}]"
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{text}: this is not the name of a Python module, such as torchvision", "preload")
    top = module.partition(".")[0]
    try:
        spec = find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None:
        raise ConfigError(
            f"{text}: there is no module {top} beside {sys.executable}: install it, or remove the name", "preload"
        )


def check_device(device: str) -> None:
    """Raise ConfigError unless the name is a device a model can run on; the engine checks whether the host has it."""
    if not _DEVICE.fullmatch(device):
        raise ConfigError(
            f'device = {toml_value(device)} must be "cpu", "cuda", or "cuda:0" and so on for one of several GPUs',
            "device",
        )


def checked(key: str, value: Any) -> Any:
    """Convert a value from TOML or a flag to the type in Config; raises ConfigError for a wrong type."""
    kind = SETTINGS[key].kind
    if type(value) not in kind.toml:
        raise ConfigError(f"{key} = {toml_value(value)} must be {kind.words}", key)
    if kind in _ITEMS:
        if not all(type(item) is _ITEMS[kind] for item in value):
            raise ConfigError(f"{key} = {toml_value(value)} must be a {kind.words}", key)
        return tuple(value)
    return Path(value) if kind is PATH else value
