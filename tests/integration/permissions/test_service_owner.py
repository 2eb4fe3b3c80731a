"""Whose daemon a robot and an operator talk to: their own user's, root's, the system's, or the one that they named."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shmserve import directories
from shmserve.client import ForeignService, ShmClient, ShmServeError
from shmserve.client.cli.completion import complete_services
from shmserve.client.cli.connection import AdminConnection
from shmserve.client.cli.main import main as admin_command
from shmserve.client.compat.openpi import WebsocketClientPolicy
from shmserve.doorbell import NamedDoorbell, create_doorbell, unlink_doorbell
from shmserve.layout import Geometry
from shmserve.segment import Identity, Segment, create_segment, unlink_segment
from tests.support.stranger_process import UID, Stranger, needs_root

pytestmark = needs_root

OTHER_UID = UID + 1
_ATTACHED = ["io.shmserve.Client.Attach", "io.shmserve.Client.Describe"]

Squat = Callable[..., Stranger]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's tmp_path, which lies in a folder that other users may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="shmserve-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where everybody's programs put their runtime directories, for want of a better place; as /tmp is."""
    for name in ("XDG_RUNTIME_DIR", "SHMSERVE_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    monkeypatch.setattr(directories, "_SYSTEM_RUNTIME", folder / "run" / "shmserve")
    return folder / "tmp"


@pytest.fixture
def squat() -> Iterator[Squat]:
    """Starts a daemon of another user: `squat(uid, directory)`, or at sockets that others have bound."""
    with ExitStack() as stack:

        def start(uid: int, directory: Path, *sockets: socket.socket) -> Stranger:
            fds = tuple(sock.fileno() for sock in sockets)
            stranger = stack.enter_context(Stranger("squatter", uid, directory, *fds, fds=fds))
            assert stranger.says() == "serves"
            return stranger

        yield start


def refused() -> str:
    """What a robot is told that asks for service `t`; its operator is told the same."""
    with pytest.raises(ForeignService) as raised:
        ShmClient("t", timeout=30, retry_delay=30).connect()
    with pytest.raises(ForeignService) as of_the_operator, AdminConnection("t", None):
        pass
    said = str(raised.value)
    assert str(of_the_operator.value).replace("admin.sock", "client.sock") == said.replace(
        "runtime_dir=", "--runtime-dir"
    )
    return said


def test_a_stranger_s_daemon_in_the_usual_place_is_sent_nothing(
    squat: Squat, temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = squat(UID, temporary / "shmserve-0" / "t")
    package = tmp_path / "model.tar"
    package.touch()

    said = refused()
    for command in (["status"], ["update-model", str(package)], ["record", "--out", str(tmp_path / "a.rec")], ["top"]):
        with pytest.raises(SystemExit) as ended:
            admin_command(["--name", "t", *command], prog_name="shmserve-admin")
        assert ended.value.code == 1
        assert "expected uid 0 (root): another user can serve any model there" in capsys.readouterr().err
    with pytest.raises(ShmServeError, match="belongs to uid 61234"):
        WebsocketClientPolicy("shm://t")

    assert said.startswith(f"the directory {temporary}/shmserve-0 belongs to uid {UID}, expected uid 0 (root): ")
    assert "name its runtime directory (runtime_dir= or SHMSERVE_RUNTIME_DIR); else have it removed" in said
    # The first to be heard: whoever is refused does not even connect.
    AdminConnection("t", temporary / "shmserve-0").open().close()
    assert stranger.says() == "[]"


def test_a_service_named_by_its_path_is_used_and_the_status_names_its_owner(
    squat: Squat, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_dir = temporary / "shmserve-0"
    stranger = squat(UID, runtime_dir / "t")

    with ShmClient("t", runtime_dir=runtime_dir, timeout=30):
        pass
    assert json.loads(stranger.says()) == _ATTACHED
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(runtime_dir))
    with ShmClient("t", timeout=30):
        pass
    assert json.loads(stranger.says()) == _ATTACHED
    with AdminConnection("t", None) as connection:
        status = connection.status()
    whose = {key: status[key] for key in ("uid", "user", "runtime_dir", "runtime_dir_uid", "runtime_dir_user")}
    assert whose == {
        "uid": UID,
        "user": None,
        "runtime_dir": str(runtime_dir),
        "runtime_dir_uid": UID,
        "runtime_dir_user": None,
    }


def test_a_user_other_than_root_has_equal_protection(squat: Squat, temporary: Path) -> None:
    stranger = squat(UID, temporary / f"shmserve-{OTHER_UID}" / "t")

    with Stranger("visits", OTHER_UID, temporary) as visitor:
        said = visitor.finish().splitlines()

    expected = f"ForeignService: the directory {temporary}/shmserve-{OTHER_UID} belongs to uid {UID}, expected uid "
    assert [line.startswith(f"{expected}{OTHER_UID} or uid 0 (root): ") for line in said] == [True, True], said
    AdminConnection("t", temporary / f"shmserve-{OTHER_UID}").open().close()
    assert stranger.says() == "[]"


def test_a_client_detects_a_foreign_daemon_by_its_process_under_any_socket_owner(squat: Squat, temporary: Path) -> None:
    # As if the directory had been renamed after it was looked at.
    directory = temporary / "shmserve-0" / "t"
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as admin:
        client.bind(str(directory / "client.sock"))
        admin.bind(str(directory / "admin.sock"))
        stranger = squat(UID, directory, client, admin)

        said = refused()

        assert said.startswith(
            f"the daemon at {directory}/client.sock is a process of uid {UID}, expected uid 0 (root)"
        )
        assert [stranger.says(), stranger.says()] == ["[]", "[]"]


def test_a_stranger_s_link_to_another_service_of_one_s_own_is_not_followed(squat: Squat, temporary: Path) -> None:
    runtime_dir = temporary / "shmserve-0"
    runtime_dir.symlink_to(temporary / "own")
    os.chown(runtime_dir, UID, UID, follow_symlinks=False)
    (temporary / "own" / "t").mkdir(parents=True)
    squat(0, temporary / "own" / "t")

    assert f"the link {runtime_dir} belongs to uid {UID}" in refused()

    os.chown(runtime_dir, 0, 0, follow_symlinks=False)
    ShmClient("t", timeout=30).connect().close()


def test_a_socket_or_a_service_s_directory_of_a_stranger_is_refused(squat: Squat, temporary: Path) -> None:
    runtime_dir = temporary / "shmserve-0"
    squat(0, runtime_dir / "t")
    os.chown(runtime_dir / "t" / "client.sock", UID, UID)
    os.chown(runtime_dir / "t" / "admin.sock", UID, UID)
    assert f"the socket {runtime_dir}/t/client.sock belongs to uid {UID}" in refused()

    os.chown(runtime_dir / "t", UID, UID)
    assert f"the directory {runtime_dir}/t belongs to uid {UID}" in refused()


def test_a_directory_that_others_may_write_to_is_refused_unless_it_is_sticky(squat: Squat, temporary: Path) -> None:
    directory = temporary / "shmserve-0" / "t"
    squat(0, directory)

    for changed in (directory, directory.parent):
        changed.chmod(0o777)
        assert f"{changed} has mode 0777, so that other users can replace what is in it: chmod go-w it" in refused()
        changed.chmod(0o1777)
        ShmClient("t", timeout=30).connect().close()


def test_a_directory_that_cannot_be_looked_into_is_another_user_s(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after `su` without `-`: XDG_RUNTIME_DIR is still the other user's.
    (temporary / "theirs").mkdir(mode=0o700)
    os.chown(temporary / "theirs", UID, UID)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "theirs"))

    os.setegid(OTHER_UID)
    os.seteuid(OTHER_UID)
    try:
        said = refused()
    finally:
        os.seteuid(0)
        os.setegid(0)

    assert said.startswith(f"the directory {temporary}/theirs belongs to uid {UID}, expected uid {OTHER_UID} or uid 0")


def test_the_service_of_the_group_is_the_one_in_a_directory_made_by_root(squat: Squat, folder: Path) -> None:
    run = folder / "run"
    service = run / "shmserve" / "t"
    service.mkdir(parents=True)
    os.chown(service, UID, UID)
    stranger = squat(UID, service)
    # Root made it for one user, and another one has come to listen there.
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as admin:

        def listen_as_another() -> None:
            for sock, file in ((client, "client.sock"), (admin, "admin.sock")):
                (service / file).unlink()
                sock.bind(str(service / file))
                os.chown(service / file, UID, UID)
            squat(OTHER_UID, service, client, admin)

        ShmClient("t", timeout=30).connect().close()
        assert json.loads(stranger.says()) == _ATTACHED
        for open_to_all in (run, run / "shmserve"):
            for mode in (0o777, 0o1777, 0o775):
                open_to_all.chmod(mode)
                os.chown(open_to_all, 0, UID)
                assert re.search(f"{service} belongs to uid {UID}|has mode 0{mode:o}", refused())
            open_to_all.chmod(0o755)
        os.chown(run / "shmserve", UID, UID)
        ShmClient("t", timeout=30).connect().close()

        listen_as_another()
        assert f"a process of uid {OTHER_UID}, expected uid 0 (root) or uid {UID}: " in refused()


def test_names_of_a_stranger_s_services_are_not_offered(
    temporary: Path, squat: Squat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered() -> list[str]:
        context = admin_command.make_context("shmserve-admin", ["status"], resilient_parsing=True)
        return [item.value for item in complete_services(context, admin_command.params[0], "")]

    for name in ("t", "u\nv"):
        (temporary / "shmserve-0" / name).mkdir(parents=True)
        (temporary / "shmserve-0" / name / "admin.sock").touch()
    assert offered() == ["t"]

    os.chown(temporary / "shmserve-0", UID, UID)
    assert offered() == []
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(temporary / "shmserve-0"))
    assert offered() == ["t"]


def test_named_memory_of_another_user_is_not_mapped() -> None:
    name = f"/shmserve-test.{os.getpid()}"
    create_segment(name, Geometry(1, 4096, 65536), Identity(1, 0, 1))
    create_doorbell(name)
    try:
        for uid in (UID, 0):
            os.chown(f"/dev/shm{name}", uid, uid)
            os.chown(f"/dev/shm/sem.{name[1:]}", uid, uid)
            for owned in (
                Segment.open(name, writable=True, owners={uid}),
                NamedDoorbell(name, {uid}),
                NamedDoorbell(name),
            ):
                owned.close()
            with pytest.raises(ForeignService, match=f"belongs to uid {uid}, whose daemon this is not"):
                Segment.open(name, writable=False, owners={UID - uid})
            with pytest.raises(ForeignService, match=f"belongs to uid {uid}, whose daemon this is not"):
                NamedDoorbell(name, {UID - uid})
    finally:
        unlink_segment(name)
        unlink_doorbell(name)
