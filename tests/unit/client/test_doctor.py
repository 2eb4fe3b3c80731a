"""Checks of doctor: each level of each check, for texts and numbers as machines give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.cli.doctor.command import summary, to_json
from shmserve.client.cli.doctor.finding import Finding, Level, Needs, ok, problem
from shmserve.client.cli.doctor.gpu_checks import (
    Driver,
    Gpu,
    Torch,
    check_driver,
    check_gpu,
    check_mps,
    check_torch,
    driver_version,
    read_gpus,
    read_torch,
)
from shmserve.client.cli.doctor.installation_checks import (
    Place,
    UnitFiles,
    check_core,
    check_lingering,
    check_sockets,
    check_units,
    check_user,
    programs_of,
)
from shmserve.client.cli.doctor.limit_checks import (
    ControlGroup,
    Limit,
    check_locked_memory,
    check_memory_limit,
    check_open_files,
    check_processor_limit,
    check_real_time,
    check_task_limit,
    read_limits,
)
from shmserve.client.cli.doctor.machine_checks import (
    MIB,
    check_clock,
    check_governor,
    check_kernel,
    check_processors,
    check_shared_memory,
)
from shmserve.client.cli.doctor.service_checks import check_service, needs_of
from shmserve.client.cli.host_services import HostService

ANY = Needs()
SEALED = Needs(transport="sealed")
CUDA = Needs(device="cuda:0")
REAL_TIME = Needs(lock_memory=True, engine_priority=10)


def found(finding: Finding, level: str, *words: str) -> None:
    """The finding has this level, these words, and a remedy if there is something to do."""
    assert finding.level.value == level, finding
    for word in words:
        assert word in f"{finding.found} | {finding.remedy}", finding
    assert bool(finding.remedy) == (level != "ok"), finding


def test_the_kernel_is_judged_by_its_release_and_by_what_it_refuses() -> None:
    found(check_kernel("6.18.44-generic", {}), "ok", "Linux 6.18.44-generic")
    assert "without" not in check_kernel("6.18.44", {}).found
    found(check_kernel("6.1.0-18-amd64", {}), "ok", "SO_PEERPIDFD", "time slices")
    found(check_kernel("5.2.1", {}), "ok", "pidfds")
    found(check_kernel("6.1", {"memfd_create": "Operation not permitted"}), "problem", "memfd_create (Operation not")


def test_processors_count_those_that_the_service_may_use() -> None:
    found(check_processors({0, 1, 2, 3}, 4, ()), "ok", "4 of 4")
    found(check_processors({3}, 8, ()), "warning", "1 of 8", "CPUAffinity=")
    found(check_processors({0, 1}, 4, {2, 3}), "warning", "isolated 2,3", "CPUAffinity=2,3")
    found(check_processors({2, 3}, 4, {2, 3}), "ok", "isolated: 2,3")


def test_a_governor_that_lowers_the_clock_is_a_warning() -> None:
    found(check_governor([]), "ok", "hypervisor")
    found(check_governor(["performance"] * 4), "ok")
    found(check_governor(["performance", "powersave", "powersave"]), "warning", "powersave (2)", "cpupower")


def test_a_clock_that_takes_a_system_call_is_a_warning() -> None:
    for source in ("tsc", "kvm-clock", "arch_sys_counter", None):
        found(check_clock(source), "ok")
    for source in ("hpet", "acpi_pm", "xen"):
        found(check_clock(source), "warning", source, "dmesg")


@pytest.mark.parametrize(
    ("kind", "size", "free", "needs", "level", "words"),
    [
        ("tmpfs", 8 << 30, 8 << 30, ANY, "ok", "8,192 MiB free"),
        ("tmpfs", 64 * MIB, 64 * MIB, ANY, "warning", "default of a container"),
        ("tmpfs", 8 << 30, 15 * MIB, ANY, "problem", "too little"),
        ("tmpfs", 8 * MIB, 8 * MIB, SEALED, "ok", "transport sealed does not use it"),
        ("overlay", 8 << 30, 8 << 30, ANY, "problem", "overlay, not tmpfs"),
        (None, 0, 0, ANY, "problem", "mount -t tmpfs"),
        (None, 0, 0, SEALED, "ok", "nothing is mounted"),
    ],
)
def test_shared_memory_is_judged_by_what_the_transport_needs(
    kind: str | None, size: int, free: int, needs: Needs, level: str, words: str
) -> None:
    found(check_shared_memory(kind, size, free, 0, needs), level, words)


_LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max processes             96551                96551                processes
Max open files            1024                 524288               files
Max locked memory         8388608              8388608              bytes
Max realtime priority     0                    0
"""


def test_the_limits_of_a_process_are_read_by_name() -> None:
    limits = read_limits(_LIMITS)

    assert limits["Max open files"] == Limit(1024, 524288)
    assert limits["Max cpu time"] == Limit(None, None)
    assert limits["Max realtime priority"] == Limit(0, 0)
    assert len(limits) == 5 and read_limits("") == {}


def test_locked_memory_matters_where_it_was_asked_for() -> None:
    limit = Limit(8 * MIB, 8 * MIB)
    found(check_locked_memory(limit, None, ANY), "ok", "8,388,608", "only")
    found(check_locked_memory(None, None, ANY), "ok", "not visible")
    found(check_locked_memory(limit, None, REAL_TIME), "ok", "no engine has begun")
    found(check_locked_memory(limit, True, REAL_TIME), "ok", "is locked")
    found(check_locked_memory(limit, False, REAL_TIME), "problem", "no effect", "LimitMEMLOCK=infinity")


def test_real_time_matters_where_it_was_asked_for() -> None:
    found(check_real_time(Limit(0, 0), None, 950_000, ANY), "ok", "RLIMIT_RTPRIO is 0")
    found(check_real_time(Limit(10, 10), 10, 950_000, REAL_TIME), "ok", "priority 10")
    found(check_real_time(Limit(10, 10), 10, -1, REAL_TIME), "warning", "sched_rt_runtime_us")
    found(check_real_time(Limit(0, 0), 0, None, REAL_TIME), "problem", "no effect", "LimitRTPRIO=10")


def test_open_files_are_judged_by_the_clients_that_are_allowed() -> None:
    found(check_open_files(Limit(1024, 524_288), ANY), "ok", "524,288")
    found(check_open_files(Limit(None, None), ANY), "ok", "unlimited")
    found(check_open_files(Limit(256, 256), ANY), "warning", "64 clients", "512", "LimitNOFILE")
    found(check_open_files(Limit(256, 256), Needs(max_clients=4)), "ok")
    found(check_open_files(Limit(64, 64), ANY), "problem")


def test_limits_of_control_groups_are_the_least_on_the_way_up() -> None:
    free = ControlGroup("/", memory_max="max\n", cpu_max="max 100000\n")
    full = ControlGroup(
        "/docker/a", memory_max=f"{4 << 30}\n", memory_current=f"{4 << 30}\n", cpu_max="150000 100000\n"
    )
    roomy = ControlGroup("/docker", memory_max=f"{8 << 30}\n", memory_current="1\n", cpu_max="400000 100000\n")
    tiny = ControlGroup(
        "/b", memory_max=f"{256 * MIB}\n", cpu_stat="nr_periods 10\nnr_throttled 1234\n", pids_max="100\n"
    )

    found(check_memory_limit([]), "ok", "not visible")
    found(check_memory_limit([free]), "ok", "none of a control group")
    found(check_memory_limit([roomy, free]), "ok", "8,192 MiB by /docker")
    found(check_memory_limit([full, roomy]), "warning", "/docker/a", "may not fit", "MemoryMax=")
    cached = replace(full, memory_stat=f"anon 5\ninactive_file {2 << 30}\nactive_file {1 << 30}\nfile 7\n")
    found(check_memory_limit([cached]), "ok", "1,024 MiB in use")
    found(check_memory_limit([tiny]), "warning", "hardly fit")
    found(check_processor_limit([free]), "ok")
    found(check_processor_limit([full, roomy]), "warning", "1.5 processors by /docker/a", "CPUQuota=")
    throttled = ControlGroup("/c", cpu_max="50000 100000", cpu_stat=tiny.cpu_stat)
    found(check_processor_limit([throttled]), "warning", "stopped 1,234 times")
    found(check_task_limit(Limit(96551, 96551), [tiny]), "warning", "100 processes", "TasksMax=")
    found(check_task_limit(Limit(96551, 96551), [free]), "ok", "96,551")
    found(check_task_limit(None, []), "ok", "unlimited")


_OLD, _NEW, _FOR_CPU = Torch("2.10.0", "12.8"), Torch("2.13.0+cu130", "13.0"), Torch("2.13.0+cpu", None)
_DRIVER = Driver("570.86.15", (12, 8))


def test_torch_is_judged_against_the_driver_and_the_device() -> None:
    found(check_torch(None, None, ANY), "problem", "shmserve[daemon]")
    found(check_torch(_FOR_CPU, None, ANY), "ok", "the CPU only")
    found(check_torch(_FOR_CPU, None, CUDA), "problem", "cuda:0", "built for CUDA")
    found(check_torch(_FOR_CPU, _DRIVER, ANY), "warning", "has a GPU")
    found(check_torch(_NEW, None, ANY), "ok", "runs on the CPU")
    found(check_torch(_NEW, _DRIVER, ANY), "problem", "CUDA 12.8 at most", "newer driver")
    found(check_torch(_OLD, _DRIVER, CUDA), "ok", "CUDA 12.8")
    found(check_torch(_OLD, Driver("525.1", (12, 0)), CUDA), "ok")  # minor releases of CUDA are compatible
    found(check_torch(Torch("2.13.0+rocm", None, "6.4"), None, CUDA), "ok", "ROCm 6.4")


def test_the_driver_is_judged_by_its_parts() -> None:
    found(check_driver(None, ANY), "ok")
    found(check_driver(None, CUDA), "problem", "--gpus all")
    found(check_driver(_DRIVER, ANY), "ok", "570.86.15", "CUDA 12.8")
    found(check_driver(Driver("570.1", None), ANY), "problem", "libcuda.so.1")
    found(check_driver(Driver("570.1", (12, 8), has_uvm=False), ANY), "problem", "modprobe nvidia-uvm")


def test_the_state_of_an_idle_gpu_is_read_and_judged() -> None:
    gpus = read_gpus("NVIDIA H200, Disabled, 345, 1980\nNVIDIA H200, Enabled, 1980, 1980\nOrin, [N/A], [N/A], [N/A]\n")

    assert gpus[2] == Gpu("Orin", None, None, None)
    found(check_gpu(gpus[0]), "warning", "persistence", "nvidia-smi -pm 1")
    found(check_gpu(Gpu("A", True, 345, 1980)), "warning", "345 of 1980 MHz", "nvidia-smi -lgc 1980")
    found(check_gpu(gpus[1]), "ok", "NVIDIA H200")
    found(check_gpu(gpus[2]), "ok")
    assert read_gpus("No devices were found\n") == []
    found(check_mps(True), "ok", "on")
    found(check_mps(False), "ok", "off")


def test_versions_are_read_from_files_without_loading_anything() -> None:
    text = "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"

    assert read_torch(text) == _FOR_CPU
    assert read_torch("nothing of it") is None
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\nGCC version: 12.2\n"
    assert driver_version(opened) == "575.57.08"
    assert driver_version("") == "of an unknown release"


def test_pure_python_is_a_warning_wherever_it_runs() -> None:
    found(check_core("native", None), "ok")
    found(check_core("native", "native"), "ok")
    found(check_core("pure", None), "warning", "gcc")
    found(check_core("native", "pure"), "warning", "in the engine pure")


_UNIT = "/etc/systemd/system/shmserved@.service"
_DROP_IN = "/etc/systemd/system/shmserved@arm.service.d/"


def units(**changed: Any) -> UnitFiles:
    same: dict[str, Any] = {"installed": {_UNIT: "a"}, "expected": {_UNIT: "a"}, "drop_ins": {}, "known_drop_ins": {}}
    return UnitFiles(**{**same, **changed})


def test_installed_units_are_compared_with_those_of_this_version() -> None:
    [none] = check_units("arm", units(installed={}), ANY)
    found(none, "ok", "install-service")
    [same] = check_units("arm", units(), ANY)
    found(same, "ok", _UNIT)
    [other] = check_units("arm", units(installed={_UNIT: "b"}), ANY)
    found(other, "warning", _UNIT, "--name arm install-service", "daemon-reload")
    [gone] = check_units("arm", units(missing_programs={"/opt/x/bin/shmserved"}), ANY)
    found(gone, "problem", "/opt/x/bin/shmserved, which does not exist")


def test_drop_ins_are_named_and_compared() -> None:
    known = {"cpu-only.conf": "c", "realtime.conf": "r"}
    own = units(drop_ins={f"{_DROP_IN}override.conf": "x", f"{_DROP_IN}realtime.conf": "r"}, known_drop_ins=known)
    found(check_units("arm", own, ANY)[1], "ok", "override.conf", "realtime.conf")
    old = units(drop_ins={f"{_DROP_IN}realtime.conf": "old"}, known_drop_ins=known)
    found(check_units("arm", old, ANY)[1], "warning", f"{_DROP_IN}realtime.conf")
    added = units(drop_ins={f"{_DROP_IN}realtime.conf": "# mine\nr\nCPUAffinity=2"}, known_drop_ins=known)
    found(check_units("arm", added, ANY)[1], "ok", "realtime.conf")
    hides = units(drop_ins={f"{_DROP_IN}cpu-only.conf": "c"}, known_drop_ins=known)
    found(check_units("arm", hides, ANY)[1], "ok")
    found(check_units("arm", hides, CUDA)[1], "problem", "hides the GPU", f"rm {_DROP_IN}cpu-only.conf")


def test_sockets_are_judged_by_whether_this_user_may_attach() -> None:
    directory = Place("/run/shmserve/arm", 0o40750, "shmserve", "shmserve", is_usable=True)
    client = Place("/run/shmserve/arm/client.sock", 0o140660, "shmserve", "shmserve", is_usable=True)
    admin = Place("/run/shmserve/arm/admin.sock", 0o140600, "shmserve", "shmserve", is_usable=False)
    closed = Place("/run/shmserve/arm/client.sock", 0o140660, "shmserve", "shmserve", is_usable=False)

    found(check_sockets(None, [], is_foreign=False), "ok", "no daemon has run")
    found(check_sockets(directory, [client, admin], is_foreign=False), "ok", "(shmserve:shmserve 0750)", "admin.sock")
    found(check_sockets(directory, [closed], is_foreign=False), "warning", "usermod -aG shmserve USER")
    found(check_sockets(directory, [client], is_foreign=True), "problem", "clients refuse it")


def test_the_user_of_the_machine_s_services_is_a_system_user() -> None:
    found(check_user(997), "ok", "997")
    found(check_user(1001), "warning", "1001", "RemoveIPC=no")
    found(check_user(None), "problem", "systemd-sysusers shmserve.conf")


def test_lingering_is_for_the_services_of_users() -> None:
    assert check_lingering("system", "ann", lingers=False) is None
    for lingers, level in ((True, "ok"), (False, "warning")):
        finding = check_lingering("user", "ann", lingers)
        assert finding is not None
        found(finding, level, "ann")
    assert programs_of(["[Service]\nExecStart=/usr/bin/a --name %i\n", 'ExecStart="/my 100%%/b" x\n']) == {
        "/usr/bin/a",
        "/my 100%/b",
    }


def status(**changed: Any) -> dict[str, Any]:
    model = {"name": "grasp", "version": "ab12", "device": "cpu"}
    plain: dict[str, Any] = {
        "pid": 7,
        "state": "ready",
        "error": None,
        "model": model,
        "release": "1",
        "logs": "tail log",
    }
    return {**plain, "engine": {"restarts": 0}, "problems": [], **changed}


def test_the_service_is_judged_by_its_status() -> None:
    service = HostService("arm", Path("/r/arm"), "ready", uid=5, pid=7)

    [ready] = check_service(service, status(), "1")
    found(ready, "ok", "pid 7 of uid 5 is ready, serves grasp ab12 on cpu")
    [failed] = check_service(service, status(state="failed", error="no memory"), "1")
    found(failed, "problem", "no memory", "tail log")
    [_, release, died, trouble] = check_service(
        service, status(release="0", engine={"restarts": 2}, problems=["a version is damaged"]), "1"
    )
    found(release, "warning", "shmserve 0, and 1 is installed", "restart")
    found(died, "warning", "2 engines have died")
    found(trouble, "warning", "a version is damaged")


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("absent", "ok"),
        ("waiting", "ok"),
        ("stopped", "ok"),
        ("stale", "ok"),
        ("running", "warning"),
        ("hidden", "warning"),
    ],
)
def test_a_service_that_was_not_asked_is_described(state: str, level: str) -> None:
    [finding] = check_service(HostService("arm", Path("/r/arm"), state), None, "1")

    found(finding, level)


def test_the_settings_in_force_say_what_is_needed() -> None:
    settings = {
        "transport": "sealed",
        "device": "cuda",
        "lock_memory": True,
        "engine_priority": 5,
        "max_clients": 9,
        "x": 1,
    }

    assert needs_of(settings) == Needs("sealed", "cuda", 9, True, 5)
    assert needs_of({}) == Needs() == needs_of({"device": None})
    assert needs_of(settings).wants_gpu and not Needs().wants_gpu


def test_the_document_counts_levels() -> None:
    findings = [ok("a", "x"), problem("b", "y", "z"), problem("c", "y", "z")]

    assert to_json("arm", findings) | {"findings": None} == {
        "service": "arm",
        "problems": 2,
        "warnings": 0,
        "findings": None,
    }
    assert summary(findings) == "3 checks: 2 problems, 0 warnings"
    assert Level("problem") is findings[1].level
