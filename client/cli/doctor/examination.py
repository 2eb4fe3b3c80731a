"""Examination of this machine and of one service: reads what the checks judge. A file that cannot be read is left out."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shmserve import __version__
from shmserve.directories import ADMIN_SOCKET, CLIENT_SOCKET, service_place
from shmserve.errors import ShmServeError
from shmserve.service_owner import foreign_place, user_name
from shmserve.varlink import VarlinkError

from ..connection import AdminConnection
from ..host_services import HostService, service_here
from ..service_installation import Installation, InstallationRefused, known_drop_ins
from . import gpu_checks, installation_checks, limit_checks, machine_checks, service_checks
from .finding import Finding, Needs

_SHM = Path("/dev/shm")
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_ANSWER_S = 5.0
#: Of nvidia-smi, which may have to wake the driver up.
_SMI_S = 20.0


def examine(name: str, runtime_dir: str | None) -> list[Finding]:
    """Return every finding, in the order of the output: the service, its limits, the machine, the GPU, the installation."""
    service = service_here(name, runtime_dir)
    status, settings = _ask(service, name, runtime_dir)
    needs = service_checks.needs_of(settings)
    process = _PROC / str(service.pid) if service.is_of_this_proc else _PROC / "self"
    engine: dict[str, Any] = (status or {}).get("engine") or {}
    return [
        *service_checks.check_service(service, status, __version__),
        *_limits(process, engine, needs),
        *_machine(process, needs),
        *_gpu(needs),
        *_installation(service, engine, needs, runtime_dir),
    ]


def _ask(service: HostService, name: str, runtime_dir: str | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the status and the settings of a daemon that runs; it is asked only if it was asked before, for `service`."""
    if service.pid is None or service.state in ("running", "hidden"):
        return None, {}
    connection = AdminConnection(name, runtime_dir)
    try:
        connection.open(_ANSWER_S)
        status: dict[str, Any] = connection.call("Status", timeout_s=_ANSWER_S)["status"]
        settings = connection.call("Config", timeout_s=_ANSWER_S)["settings"]
    except (OSError, VarlinkError, ShmServeError):  # it has ended since
        return None, {}
    finally:
        connection.close()
    return status, {each["key"]: each["value"] for each in settings}


def _limits(process: Path, engine: dict[str, Any], needs: Needs) -> Iterator[Finding]:
    limits = limit_checks.read_limits(_text(process / "limits"))
    groups = _control_groups(process)
    runtime = _text(_PROC / "sys/kernel/sched_rt_runtime_us")
    yield limit_checks.check_locked_memory(limits.get("Max locked memory"), engine.get("memory_locked"), needs)
    yield limit_checks.check_real_time(
        limits.get("Max realtime priority"),
        engine.get("priority"),
        int(runtime) if runtime.strip().lstrip("-").isdigit() else None,
        needs,
    )
    yield limit_checks.check_open_files(limits.get("Max open files"), needs)
    yield limit_checks.check_task_limit(limits.get("Max processes"), groups)
    yield limit_checks.check_memory_limit(groups)
    yield limit_checks.check_processor_limit(groups)


def _control_groups(process: Path) -> list[limit_checks.ControlGroup]:
    """Return the control groups of the process (version 2), from its own upwards; none where they are not visible."""
    if not (_CGROUPS / "cgroup.controllers").exists():
        return []
    lines = [line.split(":", 2) for line in _text(process / "cgroup").splitlines()]
    own = next((parts[2] for parts in lines if parts[0] == "0" and len(parts) == 3), "/")
    folder = _CGROUPS / own.lstrip("/")
    if not folder.is_dir():  # a container, whose mount begins below the path of the host
        folder = _CGROUPS
    groups = []
    while folder.is_relative_to(_CGROUPS):
        files = ("memory.max", "memory.current", "memory.stat", "cpu.max", "cpu.stat", "pids.max")
        texts = {name.replace(".", "_"): _text(folder / name) for name in files}
        groups.append(limit_checks.ControlGroup(f"/{folder.relative_to(_CGROUPS)}".replace("/.", "/"), **texts))
        folder = folder.parent
    return groups


def _machine(process: Path, needs: Needs) -> Iterator[Finding]:
    cpus = Path("/sys/devices/system/cpu")
    yield machine_checks.check_kernel(platform.release(), _refused_calls())
    allowed = next(
        (line.split()[1] for line in _text(process / "status").splitlines() if line.startswith("Cpus_allowed_list:")),
        "",
    )
    usable = machine_checks.processors_of(allowed) or os.sched_getaffinity(0)
    isolated = machine_checks.processors_of(_text(cpus / "isolated"))
    yield machine_checks.check_processors(usable, os.cpu_count() or len(usable), isolated)
    governors = [_text(path).strip() for path in sorted(cpus.glob("cpufreq/policy*/scaling_governor"))]
    yield machine_checks.check_governor([name for name in governors if name])
    source = _text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")).strip()
    yield machine_checks.check_clock(source or None)
    kind = machine_checks.file_system_at(_text(_PROC / "mounts"), str(_SHM))
    size = free = 0
    with suppress(OSError):
        found = os.statvfs(_SHM)
        size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    yield machine_checks.check_shared_memory(kind, size, free, _bytes_of_shmserve(), needs)


def _refused_calls() -> dict[str, str]:
    """Return the calls that shmserve needs and may not make here, with the reasons."""
    refused = {}
    calls: dict[str, Callable[[], int]] = {
        "memfd_create": lambda: os.memfd_create("shmserve-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),
        "pidfd_open": lambda: os.pidfd_open(os.getpid()),
    }
    for name, call in calls.items():
        try:
            os.close(call())
        except OSError as error:
            refused[name] = error.strerror or str(error)
    return refused


def _bytes_of_shmserve() -> int:
    total = 0
    with suppress(OSError), os.scandir(_SHM) as entries:
        for entry in entries:
            if entry.name.removeprefix("sem.").startswith("shmserve."):
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _gpu(needs: Needs) -> Iterator[Finding]:
    driver = _driver()
    yield gpu_checks.check_driver(driver, needs)
    yield gpu_checks.check_torch(_torch(), driver, needs)
    if driver is None:
        return
    for gpu in gpu_checks.read_gpus(_output("nvidia-smi", f"--query-gpu={','.join(gpu_checks.GPU_FIELDS)}")):
        yield gpu_checks.check_gpu(gpu)
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    yield gpu_checks.check_mps((pipes / "control").exists())


def _driver() -> gpu_checks.Driver | None:
    text, tegra = _text(_PROC / "driver/nvidia/version"), _text(Path("/etc/nv_tegra_release"))
    if not text and not tegra:
        return None
    cuda = None
    with suppress(OSError, AttributeError):
        number = ctypes.c_int()
        # It asks the library alone: no context, and no device is opened.
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            cuda = (number.value // 1000, number.value % 1000 // 10)
    if not text:
        return gpu_checks.Driver(f"Jetson ({tegra.partition(',')[0].strip('# ')})", cuda)
    return gpu_checks.Driver(gpu_checks.driver_version(text), cuda, Path("/dev/nvidia-uvm").exists())


def _torch() -> gpu_checks.Torch | None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return gpu_checks.read_torch(_text(Path(spec.origin).with_name("version.py")))


def _output(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SMI_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _installation(
    service: HostService, engine: dict[str, Any], needs: Needs, runtime_dir: str | None
) -> Iterator[Finding]:
    from shmserve.backend import BACKEND

    yield installation_checks.check_core(BACKEND, engine.get("backend"))
    yield from installation_checks.check_units(service.name, _unit_files(service), needs)
    if service.unit == "system":
        yield installation_checks.check_user(_uid_of(installation_checks.SERVICE_USER))
    sockets = [
        place
        for file in (CLIENT_SOCKET, ADMIN_SOCKET)
        if (place := _place(service.directory / file, os.W_OK)) is not None
    ]
    where = service_place(service.name, runtime_dir)
    is_foreign = not where.named and foreign_place(where)
    yield installation_checks.check_sockets(_place(service.directory, os.X_OK), sockets, is_foreign)
    user = user_name(os.getuid()) or str(os.getuid())
    lingering = installation_checks.check_lingering(
        service.unit, user, Path(f"/var/lib/systemd/linger/{user}").exists()
    )
    if lingering is not None:
        yield lingering


def _uid_of(name: str) -> int | None:
    import pwd  # only here

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _unit_files(service: HostService) -> installation_checks.UnitFiles:
    installation = Installation(service.name, user=service.unit == "user", start=False)
    try:
        expected = installation.installed_units()
    except InstallationRefused:
        expected = {}
    installed = {str(path): text for path in expected if (text := _text(path))}
    folders = [path.with_name(f"{path.name}.d") for path in expected if path.suffix == ".service"]
    folders += [folder.with_name(folder.name.replace("@", f"@{service.name}")) for folder in folders]
    folders += [Path("/etc/systemd/system") / folder.name for folder in folders if service.unit != "user"]
    drop_ins = {str(path): _text(path) for folder in dict.fromkeys(folders) for path in sorted(folder.glob("*.conf"))}
    programs = installation_checks.programs_of(list(installed.values()))
    return installation_checks.UnitFiles(
        installed=installed,
        expected={str(path): text for path, text in expected.items()} if installed else {},
        drop_ins=drop_ins,
        known_drop_ins=known_drop_ins(),
        missing_programs={program for program in programs if not os.access(program, os.X_OK)},
    )


def _place(path: Path, access: int) -> installation_checks.Place | None:
    import grp  # only here

    try:
        found = path.stat()
    except OSError:
        return None
    group = str(found.st_gid)
    with suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    user = user_name(found.st_uid) or str(found.st_uid)
    return installation_checks.Place(str(path), found.st_mode, user, group, os.access(path, access))


def _text(path: Path) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
