"""Checks of the installation: the native core, the units of systemd, and the directories of the sockets."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .finding import Finding, Needs, ok, problem, warning

#: User of the machine's services, and the first uid that is a person's: logind removes shared memory of persons at logout.
SERVICE_USER = "shmserve"
_FIRST_PERSON = 1000


def check_core(backend: str, engine_backend: str | None) -> Finding:
    """Judge the code that carries requests: of this installation, and of the engine if one runs."""
    if backend == engine_backend == "native" or (backend == "native" and engine_backend is None):
        return ok("core", "native, compiled for this Python")
    where = "here" if engine_backend in (None, backend) else f"here {backend}, in the engine {engine_backend}"
    return warning(
        "core",
        f"pure Python ({where}): a request takes about twice as long",
        "apt-get install gcc python3-dev, unset SHMSERVE_PURE, and install shmserve again",
    )


@dataclass(frozen=True)
class UnitFiles:
    """Files of the service's units: texts by path. `expected` is what this version would write; None where no unit is installed."""

    installed: Mapping[str, str]
    expected: Mapping[str, str]
    #: Drop-ins of the service by their path, and the texts that this version has for those it knows, by file name.
    drop_ins: Mapping[str, str]
    known_drop_ins: Mapping[str, str]
    #: Programs that the installed units start and that do not exist.
    missing_programs: Collection[str] = ()


def check_units(name: str, files: UnitFiles, needs: Needs) -> list[Finding]:
    """Judge the installed units against those of this version."""
    if not files.installed:
        return [ok("units", "none of systemd: shmserve-admin install-service makes it start at boot")]
    write = (
        f"shmserve-admin --name {name} install-service --no-start (with the options of before); systemctl daemon-reload"
    )
    if files.missing_programs:
        return [
            problem("units", f"they start {', '.join(sorted(files.missing_programs))}, which does not exist", write)
        ]
    findings = []
    other = sorted(path for path, text in files.expected.items() if files.installed.get(path, "") != text)
    if other:
        findings.append(warning("units", f"not those of this version: {', '.join(other)}", write))
    else:
        findings.append(ok("units", f"as this version has them: {', '.join(sorted(files.installed))}"))
    return findings + ([_drop_ins(files, needs, write)] if files.drop_ins else [])


def _drop_ins(files: UnitFiles, needs: Needs, write: str) -> Finding:
    by_name = {path.rpartition("/")[2]: path for path in files.drop_ins}
    if "cpu-only.conf" in by_name and needs.wants_gpu:
        path = by_name["cpu-only.conf"]
        return problem(
            "drop-ins", f"{path} hides the GPU, and device = {needs.device!r}", f"rm {path}; systemctl daemon-reload"
        )
    # An operator adds lines, such as CPUAffinity=.
    old = [
        path
        for path, text in files.drop_ins.items()
        if not _directives(files.known_drop_ins.get(path.rpartition("/")[2], "")) <= _directives(text)
    ]
    if old:
        return warning("drop-ins", f"not those of this version: {', '.join(sorted(old))}", write)
    return ok("drop-ins", ", ".join(sorted(files.drop_ins)))


def _directives(unit: str) -> set[str]:
    return {line.strip() for line in unit.splitlines() if line.strip() and not line.startswith("#")}


def check_user(uid: int | None) -> Finding:
    """Judge the user of the machine's services; None: there is no such user."""
    if uid is None:
        return problem(
            "user", f"there is no user {SERVICE_USER}, as whom the unit runs", "sudo systemd-sysusers shmserve.conf"
        )
    if uid >= _FIRST_PERSON:
        return warning(
            "user",
            f"{SERVICE_USER} has uid {uid} as persons have, and its shared memory goes when a login of it ends",
            "use a system user (systemd-sysusers), or RemoveIPC=no in logind.conf",
        )
    return ok("user", f"{SERVICE_USER} has uid {uid}")


@dataclass(frozen=True)
class Place:
    """A directory or a socket: its path, mode, owner and group, and whether this user may use it."""

    path: str
    mode: int
    user: str
    group: str
    is_usable: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.user}:{self.group} {stat.S_IMODE(self.mode):04o})"


def check_sockets(directory: Place | None, sockets: Collection[Place], is_foreign: bool) -> Finding:
    """Judge the directory of the service and the sockets in it; `is_foreign` if clients of this user refuse it."""
    if directory is None:
        return ok("sockets", "no directory: no daemon has run under this name")
    if is_foreign:
        return problem(
            "sockets",
            f"{directory} belongs to another user, or others may write to it: clients refuse it",
            'see docs/explanation/security.md, "Whose daemon"; or name its runtime directory (SHMSERVE_RUNTIME_DIR)',
        )
    if not directory.is_usable or any(not each.is_usable for each in sockets if each.path.endswith("client.sock")):
        return warning(
            "sockets",
            f"this user may not attach: {', '.join(map(str, (directory, *sockets)))}",
            f"sudo usermod -aG {directory.group} USER, and log in again; a daemon started by hand needs group_clients = true",
        )
    return ok("sockets", ", ".join(map(str, (directory, *sockets))))


def check_lingering(unit: str | None, user: str, lingers: bool) -> Finding | None:
    """Judge whether a user's own service survives the last logout; None for a service of the machine."""
    if unit != "user":
        return None
    if lingers:
        return ok("lingering", f"{user}'s services run without a login")
    return warning(
        "lingering",
        f"{user}'s service starts at login and ends at logout, and its shared memory with it",
        f"loginctl enable-linger {user}",
    )


def programs_of(units: Collection[str]) -> set[str]:
    """Return the programs that units start.

    >>> sorted(programs_of(['[Service]\\nExecStart="/opt/my venv/bin/shmserved" --name %i\\nExecReload=/usr/bin/x\\n']))
    ['/opt/my venv/bin/shmserved', '/usr/bin/x']
    """
    found = re.findall(r'^Exec\w+=(?:"([^"\n]+)"|(\S+))', "\n".join(units), re.MULTILINE)
    return {(quoted or plain).replace("%%", "%") for quoted, plain in found}
