"""Who gets in, as what, and how much of the service one user can take."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmserve.daemon.host.service_lock import ServiceLock
from shmserve.daemon.store.directory import StoreDirectory
from shmserve.daemon.store.errors import StoreUnavailable
from tests.support.daemon_process import Daemon, wait_until
from tests.support.stranger_process import UID, Stranger, let_in, needs_root

OTHER_UID = UID + 1
OPERATOR_UID = UID + 2
_CONFIG = f"""
allow_uids = [{UID}]
admin_uids = [{OPERATOR_UID}]
max_clients_per_user = 3
max_bytes_per_user = 4_194_304
max_rate_per_user = 40
max_attach_rate_per_user = 0.5
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("obedient", config=_CONFIG, arguments=("--transport", "sealed")) as daemon:
        let_in(daemon)
        yield daemon


def ask(daemon: Daemon, uid: int, clients: int, count: int, times: int = 1) -> str:
    """What a process of this user says that attaches so many clients and asks so often, all that again and again."""
    with Stranger("asks", daemon.name, daemon.runtime_dir, uid, clients, count, times) as stranger:
        return stranger.finish().strip()


@needs_root
def test_a_named_user_is_served(daemon: Daemon) -> None:
    assert ask(daemon, UID, 3, 10) == "served"


@needs_root
def test_an_unnamed_user_gets_the_setting_that_would_admit_it(daemon: Daemon) -> None:
    said = ask(daemon, OTHER_UID, 1, 1)

    assert said == (
        f"ServiceUnavailable: the daemon of 't' does not serve uid {OTHER_UID}: its setting allow_uids must name this "
        "user"
    )
    assert f"refusing uid {OTHER_UID}, pid " in daemon.log


@needs_root
@pytest.mark.long
def test_the_channels_of_each_user_are_counted_apart(daemon: Daemon) -> None:
    said = ask(daemon, UID, 4, 1)

    assert "gives no channel: uid 61234 has 3 clients attached and max_clients_per_user is 3" in said
    with daemon.client() as own:
        assert own.infer({"do": "echo", "value": 1}) == 1


@pytest.mark.long
def test_a_user_s_bytes_are_counted_whichever_channel_has_them(daemon: Daemon) -> None:
    with daemon.client(slots=1) as first, daemon.client(slots=1, max_retries=0) as second:
        assert first.infer({"do": "echo", "value": bytes(600_000)}) == bytes(600_000)

        with pytest.raises(Exception, match=r"max_bytes_per_user is 4194304"):
            second.infer({"do": "echo", "value": bytes(1_500_000)})

        assert second.infer({"do": "echo", "value": 2}) == 2, "the channel that it had is still there"


@pytest.mark.fault("T61")
@needs_root
@pytest.mark.long
def test_requests_above_the_rate_of_a_user_are_refused_and_no_others(daemon: Daemon) -> None:
    with daemon.client() as own:
        said = ask(daemon, UID, 1, 1000)

        assert own.infer({"do": "echo", "value": 1}) == 1
    assert said.startswith("TooManyRequests: request ")
    assert "max_rate_per_user is 40 requests a second, and uid 61234 sends more" in said


@pytest.mark.fault("T62")
@needs_root
def test_the_daemon_delays_only_the_user_that_attaches_too_often(daemon: Daemon) -> None:
    said = ask(daemon, UID, 1, 0, times=40)  # with three channels for a user, twelve at once

    assert re.search(
        r"gives no channel: uid 61234 attaches or grows its channels too often; again in \d\.\d s "
        r"\(max_attach_rate_per_user = 0\.5\)",
        said,
    ), said
    for number in range(13):
        with daemon.client() as own:
            assert own.infer({"do": "echo", "value": number}) == number
    wait_until("it is let in again", lambda: ask(daemon, UID, 1, 1) == "served")


@needs_root
@pytest.mark.long
def test_a_reload_changes_the_limits_of_clients_that_are_attached(daemon: Daemon) -> None:
    file = daemon.folder / "config.toml"
    try:
        file.write_text(_CONFIG.replace("max_rate_per_user = 40", "").replace(f"[{UID}]", f"[{UID}, {OTHER_UID}]"))
        with daemon.client() as own:
            applied = daemon.admin("Reload")["applied"]
            assert applied == {"allow_uids": [UID, OTHER_UID], "max_rate_per_user": None}

            assert ask(daemon, OTHER_UID, 1, 300) == "served"
            for number in range(100):
                assert own.infer({"do": "echo", "value": number}) == number
    finally:
        file.write_text(_CONFIG)
        daemon.admin("Reload")


@pytest.mark.fault("T70")
@needs_root
@pytest.mark.long
def test_only_operators_reach_the_admin_socket_and_the_log_names_the_caller(daemon: Daemon) -> None:
    def operate(uid: int) -> str:
        with Stranger("operates", daemon.admin_socket, uid) as stranger:
            return stranger.finish().strip()

    assert operate(OPERATOR_UID) == "ready"
    assert operate(UID) == "org.varlink.service.PermissionDenied {'setting': 'admin_uids'}"
    assert f"refusing uid {UID}, pid " in wait_until("it is logged", lambda: daemon.log)


@needs_root
@pytest.mark.long
def test_without_the_setting_other_users_cannot_connect(echo: Daemon) -> None:
    let_in(echo)
    echo.service_dir.chmod(0o711)
    try:
        with Stranger("operates", echo.admin_socket, UID) as stranger:
            assert "Permission denied" in stranger.finish()
    finally:
        echo.service_dir.chmod(0o700)


@pytest.mark.fault("T11")
@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(
    ("config", "transport", "expected"),
    [
        ("", "named", {"r": 0o755, "t": 0o700, "client.sock": 0o600, "admin.sock": 0o600, "shared": {0o600}}),
        (
            "group_clients = true",
            "named",
            {"r": 0o755, "t": 0o750, "client.sock": 0o660, "admin.sock": 0o660, "shared": {0o640, 0o660}},
        ),
        (
            f"allow_uids = [{UID}]\nadmin_uids = [{UID}]",
            "sealed",
            {"r": 0o755, "t": 0o711, "client.sock": 0o666, "admin.sock": 0o666, "shared": {0o600, 0o620}},
        ),
    ],
    ids=["own", "group", "users"],
)
@pytest.mark.long
def test_every_file_mode_is_exact_under_any_umask(
    start_daemon: Callable[..., Daemon], umask: int, config: str, transport: str, expected: dict[str, object]
) -> None:
    before = os.umask(umask)
    try:
        daemon = start_daemon("echo", config=config, arguments=("--transport", transport))
    finally:
        os.umask(before)

    with daemon.client() as client:
        client.infer({"x": 1})
        paths = [daemon.runtime_dir, daemon.service_dir, daemon.client_socket, daemon.admin_socket]
        found: dict[str, object] = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
        found["shared"] = {stat.S_IMODE(mode) for mode in shared_modes(daemon)}
        assert found == expected
        assert stat.S_IMODE((daemon.service_dir / "lock").stat().st_mode) == 0o600
        state = [daemon.state_dir, daemon.state_dir / daemon.name, daemon.state_dir / daemon.name / "models"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in state] == [0o755, 0o755, 0o700]


def shared_modes(daemon: Daemon) -> set[int]:
    """Of what a client shares with the daemon: files in /dev/shm, or memfds, the ones that both processes hold."""
    named = [f"/dev/shm/{name}" for name in daemon.names_in_shm()]
    if named:
        return {os.stat(name).st_mode for name in named}
    held = [f"/proc/{daemon.pid}/fd/{entry}" for entry in os.listdir(f"/proc/{daemon.pid}/fd")]
    return {os.stat(name).st_mode for name in held if os.readlink(name).startswith("/memfd:shmserve (")}


@pytest.mark.long
def test_a_runtime_directory_that_others_may_write_to_is_refused(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo")
    daemon.runtime_dir.mkdir()
    daemon.runtime_dir.chmod(0o777)

    assert daemon.run_to_end() == 1

    assert f"{daemon.runtime_dir} belongs to uid" in daemon.log
    assert "has mode 0777: others could replace this daemon's files in it" in daemon.log


@pytest.mark.long
def test_a_state_directory_that_others_may_write_to_is_refused(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo")
    (daemon.state_dir / daemon.name).mkdir(parents=True)
    (daemon.state_dir / daemon.name).chmod(0o777)

    assert daemon.run_to_end() == 1

    assert "has mode 0777: others could replace this daemon's files in it" in daemon.log


@needs_root
def test_a_directory_or_a_link_of_a_stranger_is_refused_before_anything_is_made_there(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    for path in (tmp_path / "theirs", tmp_path / "link"):
        os.chown(path, UID, UID, follow_symlinks=False)

        with pytest.raises(PermissionError, match=f"{path} belongs to uid {UID}"):
            ServiceLock(path / "t").acquire(0o700)
        assert not (path / "t").exists()
        with pytest.raises(StoreUnavailable, match=f"{path} belongs to uid {UID}"):
            StoreDirectory(path / "t" / "models", print).acquire()

        assert not (path / "t" / "models" / "lock").exists()
