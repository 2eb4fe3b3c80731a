"""Installation of a systemd service, of the machine or of one user: unit files and first configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import shmserve
from shmserve.directories import check_service_name
from shmserve.errors import ShmServeError
from shmserve.toml_value import toml_value

#: The files of the repository's systemd/, which a wheel carries with it.
_UNITS = Path(__file__).parent / "units"
_SERVICE, _CLIENT_SOCKET, _ADMIN_SOCKET = "shmserved@.service", "shmserved@.socket", "shmserved-admin@.socket"
_METRICS, _METRICS_TIMER = "shmserve-metrics@.service", "shmserve-metrics@.timer"
#: Where a distribution's package has shmserve, and its units that start these programs (debian/).
_PACKAGED = Path("/usr/lib/shmserve")
_PACKAGED_PROGRAMS = Path("/usr/bin")
#: Explanations of the log messages. A package has its own in /usr/lib; systemd reads none in /etc.
_CATALOG = Path("/usr/local/lib/systemd/catalog/shmserve.catalog")
#: Where the unit's sandbox shows an empty folder, or none.
_HOMES = ("/home", "/root", "/run/user")
_HIDDEN = (*_HOMES, "/tmp", "/var/tmp")


class InstallationRefused(ShmServeError):
    """The service cannot be installed this way; the message says what to do."""


@dataclass(frozen=True)
class Installation:
    """One installation: `files` and `commands` describe it, `install` performs it."""

    name: str
    #: A service of the calling user instead of the machine's.
    user: bool = False
    model_path: Path | None = None
    device: str | None = None
    jetson: bool = False
    real_time: bool = False
    start: bool = True
    #: Write the service's metrics twice a minute, for node_exporter.
    metrics: bool = False
    #: Write below this directory, for an image or a package; nothing is started then.
    root: Path = Path("/")

    def files(self) -> dict[Path, str]:
        """Return every file by its path below `root`; raises InstallationRefused."""
        check_service_name(self.name)
        if (
            self.start
            and self.model_path is None
            and not (self.root / self.configuration_path().relative_to("/")).exists()
        ):
            raise InstallationRefused(
                f"there is no {self.configuration_path()} yet, so the service has no model to begin with: give "
                "--model-path DIR, or --no-start and write that file"
            )
        if self.user and self.real_time:
            raise InstallationRefused(
                "--real-time is for the machine's service: systemd does not let one user's service raise its own limits. "
                "Install it without --user"
            )
        if self.user and self.metrics:
            raise InstallationRefused(
                "--metrics is for the machine's service: node_exporter reads a folder of root's. For a service of one user run "
                "`shmserve-admin metrics --textfile` from a timer of that user"
            )
        if self.user:
            return {**self._units(_user_home() / "systemd/user", _UNITS / "user"), **self._configuration()}
        files = self._units(Path("/etc/systemd/system"), _UNITS)
        if not _packaged():
            files[Path("/etc/sysusers.d/shmserve.conf")] = (_UNITS / "shmserve.sysusers.conf").read_text()
            files[Path("/etc/tmpfiles.d/shmserve.conf")] = (_UNITS / "shmserve.tmpfiles.conf").read_text()
            files[_CATALOG] = (_UNITS / "shmserve.catalog").read_text()
        drop_ins = Path(f"/etc/systemd/system/shmserved@{self.name}.service.d")
        if self.jetson:
            files[drop_ins / "jetson.conf"] = (_UNITS / "jetson.conf").read_text()
        elif self.device == "cpu":
            files[drop_ins / "cpu-only.conf"] = (_UNITS / "cpu-only.conf").read_text()
        if self.real_time:
            files[drop_ins / "realtime.conf"] = (_UNITS / "realtime.conf").read_text()
        shown = _shown_paths([*_installed_at(), *([self._model()] if self.model_path else [])])
        if shown:
            files[drop_ins / "shown.conf"] = shown
        return {**files, **self._configuration()}

    def installed_units(self) -> dict[Path, str]:
        """Return the units of this kind of service as this version has them, a package's where that brought them."""
        if self.user and not _packaged():
            return self._units(_user_home() / "systemd/user", _UNITS / "user")
        if not _packaged():
            return self._units(Path("/etc/systemd/system"), _UNITS)
        source, target = (_UNITS / "user", "user") if self.user else (_UNITS, "system")
        names = (_SERVICE, _CLIENT_SOCKET, _ADMIN_SOCKET)
        return {Path("/usr/lib/systemd", target, name): (source / name).read_text() for name in names}

    def commands(self) -> list[list[str]]:
        """Return the commands that make systemd load and start the service."""
        metrics = [_METRICS_TIMER] if self.metrics else []
        units = [unit.replace("@", f"@{self.name}") for unit in (_CLIENT_SOCKET, _ADMIN_SOCKET, _SERVICE, *metrics)]
        has_catalog = not self.user and not _packaged()
        if self.root != Path("/"):
            return [
                *([["journalctl", f"--root={self.root}", "--update-catalog"]] if has_catalog else []),
                ["systemctl", f"--root={self.root}", *(["--global"] if self.user else []), "enable", *units],
            ]
        manager = ["systemctl", "--user"] if self.user else ["systemctl"]
        # Report a mistake in an existing file here, not only in the journal.
        check = [str(_program("shmserved")), "--check-config", "--config", str(self.configuration_path())]
        enable = [
            [*check, "--name", self.name],
            [*manager, "daemon-reload"],
            [*manager, "enable", *(["--now"] if self.start else []), *units],
        ]
        if self.user:
            return enable
        return [
            ["systemd-sysusers", "shmserve.conf"],
            ["systemd-tmpfiles", "--create", "shmserve.conf"],
            *([["journalctl", "--update-catalog"]] if has_catalog else []),
            *enable,
        ]

    def install(self) -> list[str]:
        """Write the files and run the commands; return a line for each step.

        Raises InstallationRefused, or PermissionError.
        """
        done = []
        for path, content in self.files().items():
            target = self.root / path.relative_to("/")
            if path == self.configuration_path() and target.exists():
                done.append(f"kept     {target}")
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            target.chmod(0o644)  # not the caller's umask: the daemon's user reads the files
            done.append(f"wrote    {target}")
        for command in self.commands():
            try:
                result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            except FileNotFoundError as error:
                raise InstallationRefused(f"{command[0]} was not found: this machine does not run systemd") from error
            if result.returncode:
                raise InstallationRefused(
                    f"{' '.join(command)} failed: {result.stderr.strip() or result.stdout.strip()}"
                )
            done.append(f"ran      {' '.join(command)}")
        return done

    def configuration_path(self) -> Path:
        """Return the path of this service's configuration."""
        return (_user_home() / "shmserve" if self.user else Path("/etc/shmserve")) / f"{self.name}.toml"

    def _configuration(self) -> dict[Path, str]:
        lines = [f"# Settings of the shmserve service {self.name!r}; `shmserve-admin config` shows what is in force."]
        lines += [f"model_path = {toml_value(self._model())}"] if self.model_path else ['# model_path = "/srv/model"']
        lines += [f"device = {toml_value(self.device)}"] if self.device else ['# device = "cuda:0"']
        return {self.configuration_path(): "\n".join(lines) + "\n"}

    def _model(self) -> Path:
        assert self.model_path is not None
        path = self.model_path.absolute()
        if not path.is_dir():
            raise InstallationRefused(f"model package {path} is not a directory")
        if not self.user and path.stat().st_mode & 0o005 != 0o005:
            raise InstallationRefused(f"{path} is not readable for the user shmserve: chmod -R o+rX {path}")
        return path

    def _units(self, target: Path, source: Path) -> dict[Path, str]:
        if _packaged():
            own = self.root / (target / _SERVICE).relative_to("/")
            if own.exists():
                raise InstallationRefused(
                    f"{own} comes before the unit of the installed package, and was written by another installation: "
                    f"remove it and {_CLIENT_SOCKET}, {_ADMIN_SOCKET} beside it"
                )
            return {}
        programs = {f"/usr/bin/{name}": _quoted(_program(name)) for name in ("shmserved", "shmserve-admin")}
        files = {}
        metrics = [_METRICS, _METRICS_TIMER] if self.metrics else []
        for unit in (_SERVICE, _CLIENT_SOCKET, _ADMIN_SOCKET, *metrics):
            lines = (source / unit).read_text().splitlines()
            files[target / unit] = "\n".join(_with_programs(line, programs) for line in lines) + "\n"
        return files


def known_drop_ins() -> dict[str, str]:
    """Return the texts of the drop-ins that this version has, by their file names."""
    return {name: (_UNITS / name).read_text() for name in ("cpu-only.conf", "jetson.conf", "realtime.conf")}


def _with_programs(line: str, programs: dict[str, str]) -> str:
    key, separator, command = line.partition("=")
    program, _, arguments = command.partition(" ")
    return f"{key}{separator}{programs[program]} {arguments}" if program in programs else line


def _packaged() -> bool:
    """Return whether this is a distribution's package, which brings the units, the user and the folders."""
    return Path(shmserve.__file__).parent.parent == _PACKAGED


def _program(name: str) -> Path:
    if _packaged():
        return _PACKAGED_PROGRAMS / name
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        raise InstallationRefused(f"{beside} does not exist: install 'shmserve[daemon]' for {sys.executable}")
    return beside


def _installed_at() -> list[Path]:
    """Return the directories of the daemon and its imports."""
    return [Path(sys.prefix), Path(sys.base_prefix), Path(shmserve.__file__).resolve().parent.parent]


def _shown_paths(paths: Iterable[Path]) -> str:
    """Return a drop-in that shows the sandboxed daemon the `paths` that its sandbox hides."""
    hidden = sorted({path for path in paths if any(path.is_relative_to(place) for place in _HIDDEN)})
    outermost = [path for path in hidden if not any(other != path and path.is_relative_to(other) for other in hidden)]
    if not outermost:
        return ""
    lines = ["# The service's sandbox hides these, which it needs; nothing else in those places is shown.", "[Service]"]
    if any(path.is_relative_to(home) for path in outermost for home in _HOMES):
        lines.append("ProtectHome=tmpfs")
    lines += [f"BindReadOnlyPaths={_quoted(path)}" for path in outermost]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """Return a path as a unit file takes it: systemd expands % and splits at spaces."""
    text = str(path)
    if any(character in text for character in '\n"\\'):
        raise InstallationRefused(f"{text!r} cannot stand in a unit file: move it to a path without quotes")
    text = text.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _user_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
