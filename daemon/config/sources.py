"""Sources of the settings, by precedence: flags, the environment, the file, the defaults."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shmserve.text_file import text_of

from .config import SETTINGS, Config, ConfigError, checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "SHMSERVE_"
#: Variables that other modules read.
_OTHER_VARIABLES = ("RUNTIME_DIR", "STATE_DIR", "CONFIG", "FAILPOINTS", "PURE")
SYSTEM_DIRECTORY = Path("/etc/shmserve")


@dataclass(frozen=True)
class Effective:
    """The effective value of a setting."""

    value: Any
    #: Its source, as text for the operator: the flag, the variable, the file, or "default".
    origin: str
    #: Its value after a restart, if a reload found another one; None: the same.
    waiting: Any = None


@dataclass(frozen=True)
class Reloaded:
    """Result of a reload."""

    applied: dict[str, Any]
    needs_restart: dict[str, Any]


class Settings:
    """Reader of all sources: `read` once at the start, `reload` while the daemon runs."""

    def __init__(
        self,
        name: str,
        directories: Mapping[str, Path],
        *,
        flags: Mapping[str, Any],
        environment: Mapping[str, str],
        file: Path | None,
    ) -> None:
        """Create it; `file` is the argument of --config, None searches the usual places."""
        self._name = name
        self._directories = dict(directories)
        self._flags = {key: value for key, value in flags.items() if value is not None}
        # A copy: the daemon changes its own environment for its engines.
        self._environment = {key: environment[key] for key in environment if key.startswith((PREFIX, "XDG_", "HOME"))}
        named = file or self._environment.get(f"{PREFIX}CONFIG")
        self._named_file = Path(named) if named else None
        #: The file that was read last; None if no file exists.
        self.file: Path | None = None
        self.effective: dict[str, Effective] = {}

    def read(self) -> Config:
        """Read all sources and return the settings; raises ConfigError naming the key, its value and its source."""
        self.file = self._named_file or _usual_file(self._name, self._environment)
        layers = [
            *([(f"file {self.file}", read_config_file(self.file))] if self.file else []),
            ("environment", self._from_environment()),
            ("flag", {key: checked(key, value) for key, value in self._flags.items()}),
        ]
        config, self.effective = self._combined(layers)
        return config

    def reload(self) -> Reloaded:
        """Read the sources again and return the changes. Raises ConfigError, and then leaves the settings unchanged."""
        before = self.effective
        self.read()
        now = self.effective
        changed = [key for key in SETTINGS if before[key].value != now[key].value]
        for key in changed:
            if not SETTINGS[key].reloadable:
                now[key] = replace(before[key], waiting=now[key].value)
        return Reloaded(
            applied={key: now[key].value for key in changed if SETTINGS[key].reloadable},
            needs_restart={key: now[key].waiting for key in changed if not SETTINGS[key].reloadable},
        )

    def unknown_variables(self) -> list[str]:
        """Return warnings for variables that look like settings but are not, each with the nearest key."""
        found = []
        for variable in sorted(name for name in self._environment if name.startswith(PREFIX)):
            key = variable.removeprefix(PREFIX)
            if key not in _OTHER_VARIABLES and key.lower() not in SETTINGS:
                found.append(f"{variable}: no such setting; {_nearest(key.lower(), SETTINGS)}")
        return found

    def _combined(self, layers: Iterable[tuple[str, dict[str, Any]]]) -> tuple[Config, dict[str, Effective]]:
        service: dict[str, Any] = {**self._directories, "name": self._name}
        defaults = Config(**service)
        effective = {key: Effective(getattr(defaults, key), "default") for key in SETTINGS}
        for origin, layer in layers:
            for key, value in layer.items():
                effective[key] = Effective(value, _origin(origin, key))
        chosen = {key: found.value for key, found in effective.items()}
        try:
            return Config(**service, **chosen), effective
        except ConfigError as error:
            if error.key is None:
                raise
            raise ConfigError(f"{error} ({effective[error.key].origin})", error.key) from error

    def _from_environment(self) -> dict[str, Any]:
        found = {}
        for key, setting in SETTINGS.items():
            text = self._environment.get(PREFIX + key.upper())
            if text is None:
                continue
            try:
                found[key] = checked(key, setting.kind.parse(text))
            except ValueError as error:
                raise ConfigError(
                    f"environment {PREFIX}{key.upper()}={text!r} must be {setting.kind.words}", key
                ) from error
        return found


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file; raises ConfigError for an unknown key or a wrong type."""
    try:
        document: dict[str, Any] = tomllib.loads(text_of(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error
    for key in document:
        if key not in SETTINGS:
            raise ConfigError(f"configuration {path}: unknown key {key!r}; {_nearest(key, SETTINGS)}", key)
    try:
        return {key: checked(key, value) for key, value in document.items()}
    except ConfigError as error:
        raise ConfigError(f"configuration {path}: {error}", error.key) from error


def _usual_file(name: str, environment: Mapping[str, str]) -> Path | None:
    """Return the user's own file, else the system's, else None."""
    places = [SYSTEM_DIRECTORY]
    if os.getuid() != 0:
        home = environment.get("HOME")
        own = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
        places[:0] = [Path(own) / "shmserve"] if own else []
    # lexists: an unreadable file must be an error, not count as absent.
    return next((place / f"{name}.toml" for place in places if os.path.lexists(place / f"{name}.toml")), None)


def _origin(layer: str, key: str) -> str:
    if layer == "flag":
        return f"flag --{key.replace('_', '-')}"
    return f"environment {PREFIX}{key.upper()}" if layer == "environment" else layer


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
