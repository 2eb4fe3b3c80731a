"""Spare engine: used by crashes, updates and rollbacks, replaced afterwards, and never where it would do harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ShmClient
from tests.support.admin_command import admin, engines_of, rollback, update
from tests.support.daemon_process import NORMAL_PRIORITY, Daemon, is_running, wait_stopped, wait_until
from tests.support.gain_packages import gain_package

Start = Callable[..., Daemon]

X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module that writes down each process that imports it."""
    folder = tmp_path_factory.mktemp("preloaded")
    (folder / "noted.py").write_text(
        f"import os\nwith open({str(folder / 'imported')!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    )
    return folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, preloaded: Path) -> Iterator[Daemon]:
    """A daemon of any y = k * x with a spare engine that imports two modules; no other engine is kept."""
    package = gain_package(tmp_path_factory.mktemp("packages"), 2)
    daemon = Daemon(package, config='standby_s = 0\npreload = ["noted", "json.tool"]\n', spare=True)
    daemon.environment = {"PYTHONPATH": str(preloaded)}
    with daemon:
        yield daemon


def kill_engine(daemon: Daemon, client: ShmClient) -> int:
    """Kill the serving engine, and return the next one's pid once it has answered."""
    os.kill(daemon.engine_pid, signal.SIGKILL)
    client.infer(X)
    return daemon.engine_pid


def test_it_takes_over_when_the_serving_engine_is_killed_and_another_one_is_started(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.infer(X)
        first = daemon.wait_spare()
        assert first["memory_bytes"] > 50 << 20

        assert kill_engine(daemon, client) == first["pid"]

        second = daemon.wait_spare()
        assert second["pid"] != first["pid"] and second["uses"] == first["uses"] + 1


def test_an_update_and_a_cold_rollback_use_it(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.client() as client:
        before = client.infer(X)["y"][2]
        first = daemon.wait_spare()
        update(daemon, gain_package(tmp_path, 3))
        assert client.infer(X)["y"][2] == 6 and daemon.engine_pid == first["pid"]

        second = daemon.wait_spare()
        rollback(daemon)
        assert client.infer(X)["y"][2] == before and daemon.engine_pid == second["pid"]
        assert (
            f'shmserve_spare_engine_uses_total{{service="t"}} {second["uses"] + 1}' in admin(daemon, "metrics").stdout
        )


def test_one_that_ends_is_replaced(daemon: Daemon) -> None:
    pid = daemon.wait_spare()["pid"]

    os.kill(pid, signal.SIGKILL)

    daemon.wait_spare("waiting")
    assert daemon.wait_spare()["pid"] != pid
    assert f"the spare engine {pid} ended (killed by SIGKILL); another one is started" in daemon.log


def test_one_that_does_not_respond_is_not_used(daemon: Daemon) -> None:
    pid = daemon.wait_spare()["pid"]
    os.kill(pid, signal.SIGSTOP)
    with daemon.client() as client:
        client.infer(X)

        assert kill_engine(daemon, client) != pid

    assert f"the spare engine {pid} is not used: it did not respond within 3 s; another engine is started" in daemon.log
    wait_until("it is gone", lambda: not is_running(pid))


def test_a_model_is_loaded_again_if_the_spare_engine_is_stopped_as_it_loads(daemon: Daemon, tmp_path: Path) -> None:
    pid = daemon.wait_spare()["pid"]
    package = gain_package(tmp_path, 5)
    stop = f"import os\nif os.getpid() == {pid}:\n    os.kill({pid}, {signal.SIGSTOP.value})\n"
    (package / "policy.py").write_text(stop + (package / "policy.py").read_text())

    update(daemon, package)

    with daemon.client() as client:
        assert client.infer(X)["y"][2] == 10
    assert f"the spare engine {pid} is not used: it was stopped (SIGSTOP)" in daemon.log


def test_it_stays_in_the_background_until_it_is_used(make_daemon: Start, tmp_path: Path) -> None:
    daemon = make_daemon(gain_package(tmp_path, 2), spare=True)
    daemon.starter = []  # it may change priorities
    daemon.start()

    def priorities(pid: int) -> tuple[set[int], int]:
        threads = map(int, os.listdir(f"/proc/{pid}/task"))
        nice = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
        return nice, int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    pid = daemon.wait_spare()["pid"]
    waiting = priorities(pid)
    with daemon.client() as client:
        assert kill_engine(daemon, client) == pid
    own = priorities(daemon.pid)
    assert waiting[1] == 1000 and priorities(pid) == own
    if os.geteuid() == 0:
        assert waiting[0] == {10}


def test_one_that_is_stopped_while_it_imports_is_not_waited_for(make_daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "long_to_import.py").write_text("import time; time.sleep(600)")
    daemon = make_daemon(gain_package(tmp_path, 2), spare=True, config='preload = ["long_to_import"]\n')
    daemon.environment = {"PYTHONPATH": str(tmp_path)}
    daemon.start()
    pid = daemon.wait_spare("starting")["pid"]
    os.kill(pid, signal.SIGSTOP)
    with daemon.client() as client:
        client.infer(X)

        assert kill_engine(daemon, client) != pid

    assert f"the spare engine {pid} is not used: it was stopped (SIGSTOP)" in daemon.log
    wait_until("it is gone", lambda: not is_running(pid))


@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
def test_no_request_is_lost_if_the_spare_engine_dies_as_it_takes_over(
    make_daemon: Start, tmp_path: Path, transport: str
) -> None:
    daemon = make_daemon(gain_package(tmp_path, 2), spare=True, arguments=("--transport", transport))
    daemon.environment = {"SHMSERVE_FAILPOINTS": "spare.taken=stop@1"}
    daemon.start()
    pid = daemon.wait_spare()["pid"]
    with daemon.client() as client:
        client.infer(X)
        pending = client.submit(X)
        pending.result()
        os.kill(daemon.engine_pid, signal.SIGKILL)
        wait_stopped(daemon.pid)
        waiting = [client.submit(X) for _ in range(2)]
        os.kill(pid, signal.SIGKILL)
        daemon.signal(signal.SIGCONT)

        assert [pending.result()["y"][2] for pending in waiting] == [4, 4]
    assert f"the spare engine {pid} is not used: killed by SIGKILL" in daemon.log


def test_a_supervisor_killed_as_the_spare_engine_takes_over_leaves_no_process(
    make_daemon: Start, tmp_path: Path
) -> None:
    daemon = make_daemon(gain_package(tmp_path, 2), spare=True)
    daemon.environment = {"SHMSERVE_FAILPOINTS": "spare.taken=kill"}
    daemon.start()
    daemon.wait_spare()
    pid = daemon.pid
    with daemon.client() as client:
        client.infer(X)
        os.kill(daemon.engine_pid, signal.SIGKILL)
        assert daemon.wait_end() == -signal.SIGKILL
        wait_until("its engines are gone", lambda: not engines_of(pid))
        daemon.environment = {}
        daemon.start()
        assert client.infer(X)["y"][2] == 4


@pytest.mark.long
def test_it_is_kept_or_ended_as_the_setting_is_reloaded(make_daemon: Start, tmp_path: Path) -> None:
    config = "spare_engine = {}\n"
    daemon = make_daemon(gain_package(tmp_path, 2), config=config.format("true"), spare=None)
    daemon.starter = [*NORMAL_PRIORITY]
    daemon.start()
    path = daemon.folder / "config.toml"
    pid = daemon.wait_spare()["pid"]

    path.write_text(config.format("false"))
    daemon.admin("Reload")
    daemon.wait_spare("off")
    wait_until("it is gone", lambda: not is_running(pid))

    path.write_text(config.format("true"))
    daemon.admin("Reload")
    daemon.wait_spare()


def test_modules_of_preload_are_imported_by_it(daemon: Daemon, preloaded: Path) -> None:
    spare = daemon.wait_spare()["pid"]

    imported = (preloaded / "imported").read_text().split()
    assert str(spare) in imported and str(daemon.pid) not in imported


@pytest.mark.long
def test_one_that_cannot_import_is_reported_once_and_tried_again_after_an_engine_has_started(
    make_daemon: Start, tmp_path: Path
) -> None:
    (tmp_path / "broken_module.py").write_text("raise OSError('libbroken.so: cannot open shared object file')")
    daemon = make_daemon(gain_package(tmp_path, 2), spare=True, config='preload = ["broken_module"]\nstandby_s = 0\n')
    daemon.environment = {"PYTHONPATH": str(tmp_path)}
    daemon.start()
    reason = "importing broken_module failed: libbroken.so: cannot open shared object file"
    assert daemon.wait_spare("failed")["reason"] == reason
    with daemon.client() as client:
        kill_engine(daemon, client)
        daemon.wait_spare("failed")
        wait_until("it was tried twice", lambda: daemon.log.count("an engine cannot start") == 2)
        daemon.wait_spare("failed")

        (tmp_path / "broken_module.py").write_text("")
        kill_engine(daemon, client)
        daemon.wait_spare()
    assert daemon.log.count("no spare engine can be kept") == 1
    assert 'broken_module.py", line 1' in daemon.log
