"""Settings part of io.shmserve.Admin: the settings in force, and reading the file again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmserve.varlink import VarlinkError

from ..config.config import SETTINGS, Config, ConfigError
from ..config.sources import PREFIX, Effective, Settings
from ..varlink.interface import Connection, Method

log = logging.getLogger(__name__)

DESCRIPTION = """\

# A setting in force. `origin` is default, or the file, variable or flag it comes from; `waiting` is what it will be
# after a restart, null for the same; a `reloadable` one changes with Reload.
type Setting (key: string, value: object, origin: string, reloadable: bool, waiting: object)

# Every setting, and the file that was read; null if there is none.
method Config() -> (file: ?string, settings: []Setting)

# Read the file again. `applied` are in force now; `needs_restart` would be after a restart.
method Reload() -> (applied: object, needs_restart: object)

# The file holds a mistake; nothing has changed.
error Misconfigured (message: string)
"""


class AdminConfig:
    """The methods, for one daemon's settings."""

    def __init__(
        self, interface: str, settings: Settings, config: Config, on_reload: Callable[[dict[str, Any]], None]
    ) -> None:
        """`on_reload` is called with the settings that a reload has changed."""
        self._interface = interface
        self._on_reload = on_reload
        self._settings = settings
        self._config = config

    def methods(self) -> dict[str, Method]:
        return {"Config": self.config, "Reload": self.reload}

    async def config(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        file = self._settings.file
        settings = [self._setting(key, effective) for key, effective in self._settings.effective.items()]
        return {"file": None if file is None else str(file), "settings": settings}

    def _setting(self, key: str, effective: Effective) -> dict[str, Any]:
        # The Config also holds decisions made at the start, such as group_clients by a socket's mode.
        return {
            "key": key,
            "value": _plain(getattr(self._config, key)),
            "origin": effective.origin,
            "reloadable": SETTINGS[key].reloadable,
            "waiting": _plain(effective.waiting),
        }

    async def reload(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        log.info("reload requested by %s", connection.peer)
        try:
            reloaded = self._settings.reload()
        except ConfigError as error:
            log.warning("the settings stay: %s", error)
            raise VarlinkError(f"{self._interface}.Misconfigured", {"message": str(error)}) from error
        self._config.change_live(reloaded.applied)
        if "log_level" in reloaded.applied:
            logging.getLogger().setLevel(self._config.log_level.upper())
            os.environ[f"{PREFIX}LOG_LEVEL"] = self._config.log_level  # for engines from now on
        self._on_reload(reloaded.applied)
        for key, value in reloaded.applied.items():
            log.info("%s = %r from now on", key, value)
        for key, value in reloaded.needs_restart.items():
            log.warning("%s = %r needs a restart", key, value)
        return {
            name: {key: _plain(value) for key, value in changed.items()}
            for name, changed in (("applied", reloaded.applied), ("needs_restart", reloaded.needs_restart))
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
