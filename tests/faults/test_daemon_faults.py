"""A supervisor that is killed, stopped, started twice or started with a model that cannot be served."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ServiceRestarted, ServiceStopping, ServiceUnavailable
from shmserve.daemon.clients.shm_names import NameRegistry
from shmserve.doorbell import create_doorbell, unlink_doorbell
from tests.support.client_parts import in_loop
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gate import Gate
from tests.support.mostly_long import only
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too


@pytest.mark.fault("T28")
def test_a_killed_supervisor_takes_its_engine_along_and_its_successor_cleans_up(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient")
    client = daemon.client(timeout=100, max_retries=0)
    idle = daemon.client(timeout=100, max_retries=0)
    idle.infer({"do": "echo", "value": 0})
    held = client.submit(gate.observation)
    gate.wait_entered()
    engine = daemon.engine_pid
    stale = daemon.names_in_shm()
    stranger = NameRegistry(daemon.folder / "another").fresh()
    create_doorbell(stranger)
    try:
        daemon.kill9()
        wait_until("the engine is gone", lambda: not is_running(engine))

        with pytest.raises(ServiceRestarted, match="went away while the request was in flight"):
            held.result()
        with pytest.raises(ServiceUnavailable, match="no daemon serves 't'"):
            client.infer({"do": "echo", "value": 1})
        assert daemon.names_in_shm() == stale

        daemon.start()

        assert not set(stale) & set(daemon.names_in_shm())
        assert client.infer({"do": "echo", "value": 2}) == 2
        # This one has not noticed anything yet; nothing of its was out.
        assert idle.describe()["name"] == "obedient"
        assert idle.infer({"do": "echo", "value": 3}) == 3
        assert os.path.exists(f"/dev/shm/sem.{stranger.removeprefix('/')}")
        if stale:  # transport `sealed` has no names
            assert f"removed {len(stale)} shared-memory objects that an earlier daemon left" in daemon.log
    finally:
        unlink_doorbell(stranger)


def test_infer_asks_the_successor_of_a_daemon_that_was_killed_under_it(
    start_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot]
) -> None:
    daemon = start_daemon("tagged")
    robot = start_robot("retrying", daemon)
    assert robot.says() == "busy"
    daemon.kill9()
    daemon.start()

    wait_until("it asks the new daemon", lambda: daemon.status()["requests"]["served"] > 100)
    robot.process.send_signal(signal.SIGTERM)

    found = robot.finish()
    assert found["wrong"] == 0


@pytest.mark.fault("T57")
def test_sigterm_answers_what_was_sent_and_exits_0(start_daemon: Callable[..., Daemon], gate: Gate) -> None:
    daemon = start_daemon("obedient")
    client = daemon.client(slots=4)
    with daemon.client() as other:
        held = client.submit(gate.observation)
        gate.wait_entered()
        waiting = [client.submit({"do": "echo", "value": number}) for number in range(3)]
        others = other.submit({"do": "echo", "value": "other"})
        grown = other.submit({"do": "grow", "items": 500_000, "value": 7})
        os.kill(daemon.pid, signal.SIGTERM)
        wait_until("it drains", lambda: daemon.status()["state"] == "draining")
        with pytest.raises(ServiceUnavailable, match="stopping"):
            daemon.client(max_retries=0).infer({"do": "echo", "value": 9})
        gate.open()

        assert held.result()["waited"]
        assert [pending.result() for pending in waiting] == [0, 1, 2]
        assert others.result() == "other"
        assert np.array_equal(grown.result(), np.full(500_000, 7)), "it needs more room than its channel has"
        assert daemon.wait_end() == 0
    with pytest.raises(ServiceUnavailable):
        client.infer({"do": "echo", "value": 1}, timeout=0.5)


@pytest.mark.long
def test_a_request_that_comes_while_the_daemon_drains_is_refused_at_once_and_goes_to_the_successor(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient", config="drain_s = 100\n")
    with (
        daemon.client(timeout=100) as client,
        daemon.client(timeout=100, max_retries=0) as late,
        daemon.client(timeout=100, retry_delay=0.05, max_retries=10_000) as patient,
        ThreadPoolExecutor(2) as pool,
    ):
        late.infer({"do": "echo", "value": 0})
        patient.infer({"do": "echo", "value": 0})
        held = client.submit(gate.observation)
        gate.wait_entered()
        # The engine has to wait for this client to make room, and until then it drains.
        large = client.submit({"do": "grow", "items": 500_000, "value": 7})
        os.kill(daemon.pid, signal.SIGTERM)
        wait_until("it drains", lambda: daemon.status()["state"] == "draining")
        gate.open()

        def refused() -> bool:
            try:
                late.infer({"do": "echo", "value": 1})
            except ServiceStopping as error:
                return "was not started: the daemon is stopping" in str(error)
            return False

        wait_until("the engine has heard of it", refused)
        asked = pool.submit(patient.infer, {"do": "echo", "value": "patient"})
        asked_async = pool.submit(asyncio.run, in_loop(patient).infer({"do": "echo", "value": "async"}))
        assert np.array_equal(large.result(), np.full(500_000, 7))
        assert held.result()["waited"]
        assert daemon.wait_end() == 0
        daemon.start()
        assert (asked.result(), asked_async.result()) == ("patient", "async")


_LEAVES_A_MARK = """
import atexit, subprocess, sys, threading, time
class Policy:
    def __init__(self, path, device):
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        threading.Thread(target=time.sleep, args=(600,)).start()
    def infer(self, observation):
        atexit.register(self.leave, observation["mark"])
        return self.child.pid
    def leave(self, mark):
        with open(mark, "w") as file:
            file.write("flushed")
"""


def test_an_idle_daemon_stops_without_a_word_of_requests_that_waited(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "policy.py").write_text(_LEAVES_A_MARK)
    daemon = start_daemon(tmp_path, config="drain_s = 2\n")
    mark = tmp_path / "mark"
    with daemon.client() as client:
        child = client.infer({"mark": str(mark)})
        assert is_running(child)

        daemon.stop()

    assert "not enough" not in daemon.log, daemon.log
    assert "did not stop" not in daemon.log, "a thread of the policy's holds nothing up"
    assert not is_running(child)
    assert mark.read_text() == "flushed", "atexit functions of the policy run"


@pytest.mark.long
def test_a_daemon_that_stops_before_all_is_answered_says_so(start_daemon: Callable[..., Daemon], gate: Gate) -> None:
    daemon = start_daemon("obedient", config="drain_s = 0.2\n")
    with daemon.client(max_retries=0) as client:
        held = client.submit(gate.observation)
        gate.wait_entered()

        daemon.stop()

        assert "0.2 s were not enough to answer what waited: stopping anyway" in daemon.log
        with pytest.raises(ServiceRestarted):
            held.result()


def test_sigterm_while_the_model_loads_exits_0(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("obedient")
    process = daemon.spawn()
    wait_until("it loads", lambda: "state loading" in daemon.log)

    process.send_signal(signal.SIGTERM)

    assert daemon.wait_end() == 0
    assert daemon.names_in_shm() == []


@pytest.fixture(scope="module")
def of_a_group() -> Iterator[Daemon]:
    with Daemon("echo", config="group_clients = true\n", arguments=("--transport", "named")) as daemon:
        yield daemon


@pytest.mark.fault("T54")
def test_a_second_daemon_of_the_same_name_is_refused_and_the_first_unharmed(
    of_a_group: Daemon, make_daemon: Callable[..., Daemon]
) -> None:
    first = of_a_group
    with first.client() as client:
        client.infer({"x": 1})
        names, mode = first.names_in_shm(), stat.S_IMODE(first.service_dir.stat().st_mode)
        second = make_daemon("echo")
        second.runtime_dir = first.runtime_dir

        assert second.run_to_end() == 1

        said = second.log.strip().splitlines()[-1]
        assert f"already served by pid {first.pid}" in said
        assert "choose another --name or --runtime-dir" in said
        assert "Traceback" not in second.log
        assert first.names_in_shm() == names
        assert stat.S_IMODE(first.service_dir.stat().st_mode) == mode == 0o750
        assert client.infer({"x": 2}) == {"x": 2}
        with first.client() as another:
            assert another.infer({"x": 3}) == {"x": 3}


@pytest.mark.long
def test_two_names_in_one_directory_are_two_services(
    start_daemon: Callable[..., Daemon], make_daemon: Callable[..., Daemon]
) -> None:
    arm = start_daemon("echo", name="arm")
    head = make_daemon("tagged", name="head")
    head.runtime_dir, head.service_dir = arm.runtime_dir, arm.runtime_dir / "head"
    head.start()

    with arm.client() as one, head.client() as other:
        assert one.infer({"x": 1}) == {"x": 1}
        assert other.infer({"tag": 1, "k": 2, "x": np.arange(2)})["y"].tolist() == [0, 2]
        head.stop()
        assert one.infer({"x": 2}) == {"x": 2}


_BROKEN: dict[str, tuple[str, str, str]] = {
    "constructor": (
        "",
        "class Policy:\n    def __init__(self, path, device): raise OSError('weights.bin is missing')\n",
        "load failed: OSError: weights.bin is missing",
    ),
    "module": ("", "import no_such_module_anywhere\n", "load failed: ModuleNotFoundError: No module named 'no_such"),
    "exit": ("", "raise SystemExit('wrong GPU')\n", "load failed: SystemExit: wrong GPU"),
    "class": ("[model]\nentry = 'policy:Polcy'\n", "class Policy: pass\n", "policy:Polcy: policy has no Polcy"),
    "method": (
        "",
        "class Policy:\n    def __init__(self, path, device): pass\n",
        "policy:Policy has no method infer(observation)",
    ),
    "file": ("[model]\nentry = 'model:Policy'\n", "", "has no module model (model.py)"),
    "warm up": (
        "",
        (
            "class Policy:\n    def __init__(self, path, device): pass\n    def example_observation(self): return {'x': 1}\n"
            "    def infer(self, observation): raise KeyError('state')\n"
        ),
        "warm up failed: KeyError: 'state'",
    ),
    "death": ("", "import os\nos._exit(9)\n", "load failed: the engine died: exit status 9"),
}


@pytest.mark.parametrize("fault", only({"constructor", "warm up", "death"}, list(_BROKEN)))
def test_a_model_that_cannot_be_served_ends_the_daemon_with_its_reason(
    make_daemon: Callable[..., Daemon], tmp_path: Path, fault: str
) -> None:
    manifest, policy, reason = _BROKEN[fault]
    (tmp_path / "model.toml").write_text(manifest)
    (tmp_path / "policy.py").write_text(policy)
    daemon = make_daemon(tmp_path)

    assert daemon.run_to_end() == 1

    assert reason in daemon.log.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"policy": "no-such-policy"}, 78, "no-such-policy does not exist; it must be a directory with policy.py"),
        ({"policy": "echo/policy.py"}, 78, "policy.py is not a directory"),
        ({"policy": "echo", "config": "max_client = 3\n"}, 78, "unknown key 'max_client'; did you mean 'max_clients'?"),
        ({"policy": "echo", "config": "max_clients = 0\n"}, 78, "max_clients = 0 must be 1 to 256"),
        ({"policy": "echo", "config": "max_clients = \n"}, 78, "is not TOML"),
        ({"policy": "echo", "arguments": ("--device", "gpu")}, 78, 'device = "gpu" must be "cpu", "cuda", or "cuda:0"'),
        (
            {"policy": "echo", "arguments": ("--device", "cuda:99")},
            1,
            "load failed: DeviceMissing: device cuda:99: the",
        ),
        ({"policy": "echo", "name": "../x"}, 78, "service name '../x'"),
        ({"policy": "echo", "arguments": ("--transport", "tcp")}, 2, "'tcp' is not"),
        ({"policy": "echo", "arguments": ("--spin-us", "often")}, 2, "'often' is neither a number of microseconds"),
        ({"policy": "echo", "arguments": ("--config", "/nowhere.toml")}, 78, "/nowhere.toml cannot be read"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_of_the_operators_is_named_and_leaves_nothing_behind(
    make_daemon: Callable[..., Daemon], settings: dict[str, Any], status: int, said: str
) -> None:
    daemon = make_daemon(**settings)

    assert daemon.run_to_end() == status

    assert said in daemon.log
    assert "Traceback" not in daemon.log
    assert daemon.names_in_shm() == []


def test_an_unknown_key_of_the_model_is_named(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('[model]\nentyr = "policy:Policy"\n')
    daemon = make_daemon(tmp_path)

    assert daemon.run_to_end() == 78
    assert f"{tmp_path / 'model.toml'}: 'entyr' is not a key of [model]; did you mean 'entry'?" in daemon.log


def test_a_runtime_directory_too_long_for_a_socket_is_named(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo")
    daemon.runtime_dir = daemon.folder / ("long" * 30)
    daemon.service_dir = daemon.runtime_dir / daemon.name

    assert daemon.run_to_end() == 1

    assert "the kernel takes 107: choose a shorter runtime directory" in daemon.log.strip().splitlines()[-1]
    assert "Traceback" not in daemon.log
    assert daemon.names_in_shm() == []


def test_sockets_and_directory_are_the_users_alone(echo: Daemon) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [echo.service_dir, *echo.service_dir.iterdir()]}

    assert modes == {echo.name: 0o700, "client.sock": 0o600, "admin.sock": 0o600, "lock": 0o600}


def test_a_groups_sockets_are_the_groups(of_a_group: Daemon) -> None:
    daemon = of_a_group
    wait_until("the clients of other tests are gone", lambda: not daemon.status()["clients"])
    with daemon.client() as client:
        client.infer({"x": 1})
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in daemon.service_dir.iterdir()}
        shared = sorted(stat.S_IMODE(os.stat(f"/dev/shm/{name}").st_mode) for name in daemon.names_in_shm())

    assert modes["client.sock"] == modes["admin.sock"] == 0o660
    # Both doorbells and the requests are written by clients, the replies only read.
    assert shared == [0o640, 0o660, 0o660, 0o660]
