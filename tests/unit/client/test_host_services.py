"""Services of a host, from directories, sockets and texts of the kernel."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.cli.host_services import (
    HostService,
    find_service,
    host_services,
    installed_units,
    listening_paths,
    lock_holder,
    with_status,
)
from shmserve.directories import ServicePlace, runtime_directories

_LOCKS = """\
1: FLOCK  ADVISORY  WRITE 4321 00:1a:77 0 EOF
2: POSIX  ADVISORY  WRITE 9 00:1a:78 0 EOF
2: -> FLOCK  ADVISORY  WRITE 10 00:1a:79 0 EOF
3: FLOCK  ADVISORY  WRITE 0 00:1a:80 0 EOF
"""
_SOCKETS = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 10 /run/shmserve/arm/client.sock
0000000000000000: 00000003 00000000 00000000 0001 03 11 /run/shmserve/head/client.sock
0000000000000000: 00000003 00000000 00000000 0001 03 12
"""


@pytest.mark.parametrize(("inode", "pid"), [(77, 4321), (78, None), (79, None), (80, None), (7, None)])
def test_only_a_held_flock_of_the_file_names_a_daemon(inode: int, pid: int | None) -> None:
    assert lock_holder(_LOCKS, os.makedev(0, 0x1A), inode) == pid
    assert lock_holder(_LOCKS, os.makedev(0, 0x1B), inode) is None


def test_only_listening_sockets_with_a_path_count() -> None:
    assert listening_paths(_SOCKETS) == {"/run/shmserve/arm/client.sock"}


@pytest.fixture
def place(tmp_path: Path) -> ServicePlace:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "lock").touch()
    return ServicePlace(tmp_path / "arm", named=True)


def test_a_directory_without_a_daemon_is_stale_and_one_of_a_unit_is_stopped(place: ServicePlace) -> None:
    stale, stopped = find_service(place, None), find_service(place, "system")

    assert (stale.state, stale.uid, stale.pid) == ("stale", os.getuid(), None)
    assert stale.note == f"left by a daemon that ended: rm -r {place.directory}"
    assert (stopped.state, stopped.unit, stopped.note) == ("stopped", "system", "")


def test_a_service_that_systemd_starts_for_its_next_client_is_not_called(place: ServicePlace) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.directory / "admin.sock"))
        listener.listen()
        listener.setblocking(False)

        assert find_service(place, "system").state == "waiting"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_socket_that_nobody_listens_at_is_stale(place: ServicePlace) -> None:
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(place.directory / "admin.sock"))

    assert find_service(place, None).state == "stale"


def test_services_are_found_in_the_given_directory_and_other_folders_in_it_are_not(place: ServicePlace) -> None:
    runtime = place.directory.parent
    (runtime / "no-service").mkdir()
    (runtime / "a file").touch()
    (runtime / "-bad").mkdir()

    assert [service.name for service in host_services(str(runtime))] == ["arm"]


def test_the_usual_places_are_those_of_the_system_this_user_and_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shmserve-4242", "shmserve-x"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", "/chosen")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    found = {place.directory: place for place in runtime_directories()}

    assert found[Path("/chosen")].named
    assert found[Path("/run/shmserve")].system
    assert {tmp_path / "shmserve-4242", tmp_path / f"shmserve-{os.getuid()}"} <= found.keys()
    assert tmp_path / "shmserve-x" not in found
    assert [place.directory for place in runtime_directories("/only")] == [Path("/only")]


def test_an_enabled_unit_without_a_directory_is_a_stopped_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants = tmp_path / "systemd/user/default.target.wants"
    wants.mkdir(parents=True)
    for name in ("shmserved@toe.service", "shmserved@toe.socket", "shmserved@a b.service", "other@x.service"):
        (wants / name).symlink_to("/nowhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))

    directory = tmp_path / "run/shmserve/toe"
    assert {path: kind for path, kind in installed_units().items() if kind == "user"} == {directory: "user"}
    assert HostService("toe", directory, "stopped", unit="user") in host_services()


def test_the_daemon_describes_its_state_its_model_and_its_age() -> None:
    status: dict[str, Any] = {"state": "loading", "error": None, "pid": 7, "model": None, "uptime_s": 5.0}
    service = HostService("arm", Path("/r/arm"), "running", pid=7, since_s=100.0)

    found = with_status(service, status)
    assert (found.state, found.model, found.note, found.since_s) == ("loading", None, "", 100.0)
    status |= {"model": {"name": "grasp", "version": "ab12", "device": "cpu"}, "error": "no memory"}
    found = with_status(service, status)
    assert (found.model, found.note) == (("grasp", "ab12"), "no memory")
    assert found.to_json()["model"] == {"name": "grasp", "version": "ab12"}
