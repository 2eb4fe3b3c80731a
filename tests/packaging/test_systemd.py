"""The units hold what the research measured, systemd accepts them, and the daemon serves on sockets that it is given."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client import ShmClient
from shmserve.daemon.config.sources import Settings
from shmserve.daemon.host.logging import SERVING
from shmserve.daemon.host.socket_activation import ActivationError, listen_fds
from tests.support import watchdog
from tests.support.daemon_process import SHMSERVED, Daemon, environment
from tests.support.descriptors import inheritable
from tests.support.folders import REPOSITORY
from tests.support.mostly_long import only

UNITS = REPOSITORY / "systemd"
ADMIN = SHMSERVED.with_name("shmserve-admin")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt-get install systemd)"
)


def admin(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ADMIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **variables},
        check=False,
    )


def installed(root: Path, *arguments: object) -> Path:
    """Where install-service put the units of a service `arm` below `root`."""
    result = admin("--name", "arm", "install-service", "--root", root, "--no-start", *arguments)
    assert result.returncode == 0, result.stderr
    return root / "etc/systemd/system"


def with_drop_in(units: Path, drop_in: str | None) -> Path:
    """The service's template with one of the drop-ins for it."""
    shutil.rmtree(units / "shmserved@arm.service.d", ignore_errors=True)
    if drop_in is not None:
        folder = units / "shmserved@.service.d"
        folder.mkdir()
        shutil.copy(UNITS / drop_in, folder)
    return units / "shmserved@.service"


# The units


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "cpu-only.conf", "jetson.conf", "realtime.conf"])
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path, drop_in: str | None) -> None:
    units = installed(tmp_path)
    service = with_drop_in(units, drop_in)

    result = subprocess.run(
        ["systemd-analyze", "verify", service, units / "shmserved@.socket", units / "shmserved-admin@.socket"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_no_fault_in_the_user_s_units(tmp_path: Path) -> None:
    result = admin("install-service", "--user", "--dry-run", "--model-path", tmp_path, XDG_CONFIG_HOME=str(tmp_path))
    for path, content in re.findall(r"^==> (\S+) <==\n(.*?)(?=^==> )", result.stdout, re.MULTILINE | re.DOTALL):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content)

    units = tmp_path / "systemd/user"
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", *sorted(units.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )

    assert len(list(units.iterdir())) == 3
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "cpu-only.conf", "jetson.conf", "realtime.conf"])
def test_the_service_is_exposed_by_1_0_at_most(tmp_path: Path, drop_in: str | None) -> None:
    service = with_drop_in(installed(tmp_path), drop_in)

    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", service],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stdout[-300:]
    assert "Overall exposure level" in result.stdout


def test_the_units_do_not_forbid_what_pytorch_needs() -> None:
    lines = (UNITS / "shmserved@.service").read_text().splitlines()

    # oneDNN makes code at run time; CUDA has device nodes; with PrivateUsers every client is "nobody".
    assert not any(
        line.startswith(("MemoryDenyWriteExecute=y", "PrivateDevices=y", "PrivateUsers=y")) for line in lines
    )
    assert "ProcSubset=pid" not in lines, "hides /proc/meminfo and /proc/driver/nvidia"
    assert not any(line.startswith("DynamicUser=") for line in lines), "its uid is not the one that owns the state"


def test_the_drop_in_for_real_time_leaves_the_supervisor_its_priority_and_permits_the_engine_s() -> None:
    lines = (UNITS / "realtime.conf").read_text().splitlines()

    assert not any(line.startswith("CPUScheduling") for line in lines), "the supervisor and a load have normal priority"
    (priority,) = (line for line in lines if line.startswith("Environment=SHMSERVE_ENGINE_PRIORITY="))
    (limit,) = (line for line in lines if line.startswith("LimitRTPRIO="))
    assert priority.rpartition("=")[2] == limit.rpartition("=")[2]
    assert {"RestrictRealtime=no", "SystemCallFilter=sched_setscheduler", "LimitMEMLOCK=infinity"} <= {*lines}


def test_the_drop_in_for_real_time_names_settings_that_exist() -> None:
    variables = re.findall(r"^Environment=SHMSERVE_(\w+)=(\w+)$", (UNITS / "realtime.conf").read_text(), re.MULTILINE)

    settings = Settings(
        "arm",
        {"runtime_dir": Path("/r"), "state_dir": Path("/s")},
        flags={},
        environment={f"SHMSERVE_{key}": value for key, value in variables},
        file=None,
    )

    config = settings.read()
    assert (config.engine_priority, config.lock_memory) == (10, True)
    assert settings.unknown_variables() == []


# install-service


def test_the_installed_units_start_the_programs_of_this_installation(tmp_path: Path) -> None:
    units = installed(tmp_path)

    lines = (units / "shmserved@.service").read_text().splitlines()
    assert f"ExecStart={SHMSERVED} --name %i" in lines
    assert f"ExecReload={ADMIN} --name %i reload" in lines


@needs_systemd
def test_the_service_and_both_sockets_are_enabled(tmp_path: Path) -> None:
    units = installed(tmp_path)

    wanted = {str(link.relative_to(units)) for link in units.glob("*.wants/*")}
    assert wanted == {
        "multi-user.target.wants/shmserved@arm.service",
        "sockets.target.wants/shmserved@arm.socket",
        "sockets.target.wants/shmserved-admin@arm.socket",
    }


def test_the_catalog_explains_every_message_id_of_the_code_and_the_page_lists_them() -> None:
    source = (REPOSITORY / "daemon/host/logging.py").read_text()
    ids = set(re.findall(r'^[A-Z_]+ = "([0-9a-f]{32})"$', source, re.MULTILINE))
    catalog = (UNITS / "shmserve.catalog").read_text()
    entries = re.split(r"^-- ", catalog, flags=re.MULTILINE)[1:]

    assert len(ids) >= 4 and SERVING in ids
    assert {entry.partition("\n")[0] for entry in entries} == ids
    assert len(entries) == len(ids)
    page = (REPOSITORY / "docs/how-to/operating.md").read_text()
    assert set(re.findall(r"^\| `([0-9a-f]{32})` \|", page, re.MULTILINE)) == ids
    for entry in entries:
        head, _, text = entry.partition("\n\n")
        assert re.search(r"^Subject: \S.*\nDefined-By: shmserve\nDocumentation: ", head, re.MULTILINE)
        assert len(text.strip()) > 200, "what it means, and what to do"
        for page_name in re.findall(r"man:(\S+)\(1\)", head):
            assert (REPOSITORY / f"man/{page_name}.1").exists(), page_name


@needs_systemd
def test_an_installed_catalog_is_in_the_database_of_journalctl(tmp_path: Path) -> None:
    installed(tmp_path)

    listed = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True, timeout=60, check=True
    )

    assert (listed.stdout.count("shmserve: "), listed.stderr) == (4, "")
    assert f"{SERVING} shmserve: A model began to serve" in listed.stdout


def test_real_time_is_a_drop_in_of_this_service(tmp_path: Path) -> None:
    units = installed(tmp_path, "--real-time")

    assert (units / "shmserved@arm.service.d/realtime.conf").read_text() == (UNITS / "realtime.conf").read_text()
    assert not (installed(tmp_path / "other") / "shmserved@arm.service.d/realtime.conf").exists()


@needs_systemd
def test_the_metrics_are_written_by_a_timer_of_this_service(tmp_path: Path) -> None:
    units = installed(tmp_path, "--metrics")

    lines = (units / "shmserve-metrics@.service").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("ExecStart="))
    assert command.startswith(f"ExecStart={ADMIN} --name %i metrics --textfile /")
    (folder,) = (line.partition("=")[2] for line in lines if line.startswith("ReadWritePaths="))
    assert command.endswith(f" {folder}/shmserve-%i.prom")
    assert (units / "timers.target.wants/shmserve-metrics@arm.timer").is_symlink()
    verify = subprocess.run(
        ["systemd-analyze", "verify", units / "shmserve-metrics@.service", units / "shmserve-metrics@.timer"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (verify.returncode, verify.stdout, verify.stderr) == (0, "", "")
    assert not (installed(tmp_path / "other") / "shmserve-metrics@.timer").exists()


def test_metrics_of_one_user_s_service_are_refused(tmp_path: Path) -> None:
    result = admin("install-service", "--user", "--metrics", "--dry-run", "--model-path", tmp_path)

    assert result.returncode == 1
    assert "--metrics is for the machine's service" in result.stderr


def test_real_time_for_one_user_s_service_is_refused(tmp_path: Path) -> None:
    result = admin("install-service", "--user", "--real-time", "--dry-run", "--model-path", tmp_path)

    assert result.returncode == 1
    assert "--real-time is for the machine's service" in result.stderr


def test_a_configuration_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "etc/shmserve").mkdir(parents=True)
    (tmp_path / "etc/shmserve/arm.toml").write_text("max_clients = 3\n")

    installed(tmp_path, "--device", "cpu")

    assert (tmp_path / "etc/shmserve/arm.toml").read_text() == "max_clients = 3\n"


def test_paths_outside_the_sandbox_are_bound_into_it(tmp_path: Path) -> None:
    package = tmp_path / "my model 100%"
    package.mkdir(mode=0o755)
    package.chmod(0o755)

    units = installed(tmp_path / "root", "--model-path", package)

    drop_in = (units / "shmserved@arm.service.d/shown.conf").read_text()
    escaped = str(package).replace("%", "%%")
    assert f'BindReadOnlyPaths="{escaped}"' in drop_in.splitlines()
    assert f'model_path = "{package}"' in (tmp_path / "root/etc/shmserve/arm.toml").read_text()


def test_a_model_that_the_daemon_s_user_cannot_read_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "private"
    package.mkdir(mode=0o700)

    result = admin("--name", "arm", "install-service", "--root", tmp_path / "root", "--model-path", package)

    assert result.returncode == 1
    assert f"chmod -R o+rX {package}" in result.stderr


def test_a_service_without_a_model_is_refused(tmp_path: Path) -> None:
    result = admin("--name", "arm", "install-service", "--root", tmp_path / "root")

    assert result.returncode == 1
    assert "--model-path DIR" in result.stderr
    assert not (tmp_path / "root").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = admin("install-service", "--root", tmp_path / "root", "--no-start", "--dry-run")

    assert result.returncode == 0
    assert "==> /etc/systemd/system/shmserved@.service <==" in result.stdout
    assert not (tmp_path / "root").exists()


# Socket activation


class ActivatedDaemon(Daemon):
    """A daemon whose sockets the test has opened before, as systemd's socket units do."""

    def __init__(self, policy: str, *, names: str = "client:admin", mode: int = 0o600) -> None:
        super().__init__(policy)
        self.names = names
        self.service_dir.mkdir(parents=True)
        self.listeners = []
        for path in (self.client_socket, self.admin_socket):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            path.chmod(mode)
            listener.listen(16)
            self.listeners.append(listener)

    def spawn(self) -> subprocess.Popen[bytes]:
        first, second = (listener.fileno() for listener in self.listeners)
        # LISTEN_PID must be the daemon's own, which the process only knows once it is there.
        launcher = (
            "import os, sys\n"
            f"copies = [os.dup2(fd, 50 + at) for at, fd in enumerate(({first}, {second}))]\n"
            "[os.dup2(fd, 3 + at) for at, fd in enumerate(copies)]\n"
            f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES={self.names!r})\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", launcher, str(SHMSERVED), "--model-path", str(self.package)]
        command += ["--name", self.name, "--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                pass_fds=(first, second),
                start_new_session=True,
            )
        watchdog.watch(self._process)
        return self._process

    def dismiss(self) -> None:
        for listener in self.listeners:
            listener.close()
        if self._process is not None and self._process.poll() is None:
            self.stop()
        for path in (self.client_socket, self.admin_socket):
            path.unlink()
        super().dismiss()


@pytest.fixture
def activated() -> Iterator[Callable[..., ActivatedDaemon]]:
    made: list[ActivatedDaemon] = []

    def make(**settings: Any) -> ActivatedDaemon:
        made.append(ActivatedDaemon("echo", **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.dismiss()


@pytest.mark.parametrize("names", only({"client:admin", ""}, ["client:admin", "unknown:unknown", ""]))
def test_a_client_that_started_first_waits_for_the_daemon_and_sees_its_user_and_not_the_manager_s(
    activated: Callable[..., ActivatedDaemon], names: str
) -> None:
    daemon = activated(names=names)
    answers: list[Any] = []

    def robot() -> None:
        with ShmClient(daemon.name, runtime_dir=daemon.runtime_dir, timeout=90.0) as client:
            answers.append(client.infer({"first": 1}))

    thread = threading.Thread(target=robot)
    thread.start()

    daemon.start()

    thread.join()
    assert answers == [{"first": 1}]
    assert (inheritable(daemon.pid), inheritable(daemon.engine_pid)) == ({}, {})
    assert b"LISTEN_" not in Path(f"/proc/{daemon.engine_pid}/environ").read_bytes()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(daemon.client_socket))
        pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    assert pid == daemon.pid


@pytest.mark.long
def test_the_sockets_outlive_the_daemon_and_its_successor_serves_on_them(
    activated: Callable[..., ActivatedDaemon],
) -> None:
    daemon = activated().start()
    with daemon.client() as client:
        assert client.infer({"a": 1}) == {"a": 1}
        daemon.stop()
        assert daemon.client_socket.is_socket() and daemon.admin_socket.is_socket()

        daemon.start()

        assert client.infer({"a": 2}) == {"a": 2}


@pytest.mark.parametrize(("mode", "group_bits"), [(0o600, 0), (0o660, 0o60)])
def test_shared_memory_is_the_group_s_where_the_client_socket_is(
    activated: Callable[..., ActivatedDaemon], mode: int, group_bits: int
) -> None:
    daemon = activated(mode=mode).start()

    with daemon.client() as client:
        client.infer({"a": 1})
        modes = {(Path("/dev/shm") / name).stat().st_mode & 0o77 for name in daemon.names_in_shm()}

    assert modes <= {group_bits, group_bits & 0o40}, "the replies are for reading"
    assert group_bits in modes


def test_a_socket_of_another_service_is_refused(activated: Callable[..., ActivatedDaemon]) -> None:
    daemon = activated()
    daemon.name = "other"

    assert daemon.run_to_end() == 78

    assert "correct ListenStream=, or --name and --runtime-dir" in daemon.log


def test_sockets_for_another_process_are_not_taken(tmp_path: Path) -> None:
    variables = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "client:admin"}

    assert listen_fds(variables, tmp_path) == {}
    assert variables == {}


def test_a_path_that_is_not_a_socket_is_refused(tmp_path: Path) -> None:
    script = (
        "import os, pathlib\n"
        "from shmserve.daemon.host.socket_activation import ActivationError, listen_fds\n"
        "os.dup2(os.open('/dev/null', os.O_RDWR), 3)\n"
        "try: listen_fds({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}, pathlib.Path('/x'))\n"
        "except ActivationError as error: print(error)\n"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert "descriptor 3" in result.stdout and "not a socket" in result.stdout
    assert issubclass(ActivationError, ValueError)
