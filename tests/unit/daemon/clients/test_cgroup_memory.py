"""Memory headroom of control groups, read from files laid out as the kernel does; see also test_memory_limit."""

from __future__ import annotations

from pathlib import Path
from typing import final

import pytest

from shmserve.daemon.host.cgroup_memory import Headroom, group_without_headroom

MIB = 1 << 20
#: What channels may have of 64 MiB: an eighth is left to the engines.
FREE = 56 * MIB
SERVICE = "system.slice/shmserved.service"


@final
class Machine:
    """A /proc/self and a mounted control group file system."""

    def __init__(self, folder: Path) -> None:
        self.process = folder / "self"
        self.process.mkdir()
        self.mounted = folder / "cgroup"
        self.mounted.mkdir()

    def says(self, *, cgroup: str, mounts: str) -> None:
        (self.process / "cgroup").write_text(cgroup)
        others = (
            "22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw\n",
            "31 28 0:27 / /sys/fs/bpf rw,relatime - bpf bpf rw,mode=700\n",
        )
        (self.process / "mountinfo").write_text(others[0] + mounts + others[1])

    def version_2(self, path: str, root: str = "/") -> None:
        """Of the process, and what is mounted of all groups."""
        options = "rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
        self.says(cgroup=f"0::{path}\n", mounts=f"35 24 0:30 {root} {self.mounted} {options}\n")
        (self.mounted / "memory.stat").write_text("anon 1000\nfile 1000\n")  # the topmost has no memory.max
        (self.mounted / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")

    def group(self, path: str, limit: int | str, used: int, inactive: int = 0, active: int = 0) -> None:
        folder = self.mounted / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"anon 4096\nfile {inactive + active}\nkernel 4096\nshmem 0\ninactive_anon 0\nactive_anon 4096\n"
            f"inactive_file {inactive}\nactive_file {active}\nunevictable 0\n"
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_group_has_its_limit_without_an_eighth_and_without_what_is_used(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group("system.slice", "max", 100 * MIB)
    machine.group(SERVICE, 64 * MIB, 20 * MIB)

    assert group_without_headroom(FREE - 20 * MIB, machine.process) is None
    assert group_without_headroom(FREE - 20 * MIB + 1, machine.process) == Headroom(64 * MIB, FREE - 20 * MIB)


def test_pages_of_files_are_room(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group(SERVICE, 64 * MIB, 60 * MIB, inactive=30 * MIB, active=10 * MIB)

    assert group_without_headroom(FREE - 20 * MIB, machine.process) is None
    assert group_without_headroom(FREE - 20 * MIB + 1, machine.process) == Headroom(64 * MIB, FREE - 20 * MIB)


def test_a_group_above_has_a_limit_as_well(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group("system.slice", 64 * MIB, 50 * MIB)
    machine.group(SERVICE, 1024 * MIB, 20 * MIB)

    assert group_without_headroom(6 * MIB, machine.process) is None
    assert group_without_headroom(7 * MIB, machine.process) == Headroom(64 * MIB, 6 * MIB)


def test_a_group_that_is_over_its_limit_has_nothing(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group(SERVICE, 64 * MIB, 63 * MIB)

    assert group_without_headroom(1, machine.process) == Headroom(64 * MIB, 0)


def test_max_means_no_limit(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group("system.slice", "max", 1 << 50)
    machine.group(SERVICE, "max", 1 << 50)

    assert group_without_headroom(1 << 50, machine.process) is None


@pytest.mark.parametrize(
    ("path", "root", "seen_at"),
    [
        pytest.param("/", "/", "", id="a namespace of its own"),
        pytest.param("/docker/0123", "/docker/0123", "", id="the host's namespace"),
        pytest.param("/docker/0123/inner", "/docker/0123", "inner", id="a group within the container"),
    ],
)
def test_a_container_finds_its_own_group(machine: Machine, path: str, root: str, seen_at: str) -> None:
    machine.version_2(path, root)
    machine.group(seen_at, 64 * MIB, 20 * MIB)

    assert group_without_headroom(FREE, machine.process) == Headroom(64 * MIB, FREE - 20 * MIB)


def test_a_mount_of_version_1_beside_version_2_is_not_read(machine: Machine) -> None:
    memory, unified = machine.mounted / "memory", machine.mounted / "unified"
    (memory / SERVICE).mkdir(parents=True)
    (memory / SERVICE / "memory.max").write_text("1\n")
    options = "rw,nosuid,nodev,noexec,relatime"
    machine.says(
        cgroup=f"12:cpu,cpuacct:/{SERVICE}\n7:memory:/{SERVICE}\n0::/{SERVICE}\n",
        mounts=(
            f"33 25 0:29 / {memory} {options} shared:16 - cgroup cgroup rw,memory\n"
            f"26 25 0:23 / {unified} {options} shared:10 - cgroup2 cgroup2 rw\n"
        ),
    )
    machine.mounted = unified
    machine.group(SERVICE, 64 * MIB, 60 * MIB, inactive=20 * MIB)

    assert group_without_headroom(16 * MIB, machine.process) is None
    assert group_without_headroom(16 * MIB + 1, machine.process) == Headroom(64 * MIB, 16 * MIB)


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo"])
def test_where_nothing_is_known_nothing_is_refused(machine: Machine, missing: str) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group(SERVICE, 64 * MIB, 64 * MIB)
    (machine.process / missing).unlink()

    assert group_without_headroom(1 << 40, machine.process) is None


def test_a_group_that_goes_away_meanwhile_refuses_nothing(machine: Machine) -> None:
    machine.version_2(f"/{SERVICE}")
    machine.group(SERVICE, 64 * MIB, 64 * MIB)
    (machine.mounted / SERVICE / "memory.stat").unlink()

    assert group_without_headroom(1 << 40, machine.process) is None
