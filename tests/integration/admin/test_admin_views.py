"""What an operator looks at: status, clients and top, also of a full house and on a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.daemon.api.admin_monitoring import fitted
from shmserve.directories import ADMIN_SOCKET
from shmserve.protocol import WIRE_VERSION
from shmserve.varlink import MESSAGE_LIMIT
from shmserve.varlink_connection import VarlinkConnection
from tests.support import watchdog
from tests.support.daemon_process import POLICIES, SHMSERVED, Daemon, environment, wait_until

CLIENTS = 256


def command(daemon: Daemon, *arguments: str) -> list[str]:
    admin = str(SHMSERVED.with_name("shmserve-admin"))
    return [admin, "--name", daemon.name, "--runtime-dir", str(daemon.runtime_dir), *arguments]


def admin(daemon: Daemon, *arguments: str) -> str:
    return subprocess.run(command(daemon, *arguments), capture_output=True, text=True, timeout=60, check=True).stdout


class Screen:
    """A command on a terminal of its own, and what it has drawn."""

    def __init__(self, arguments: list[str]) -> None:
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment(), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
            start_new_session=True,
        )
        watchdog.watch(self.process)
        os.close(theirs)
        self.drawn = ""

    def wait_for(self, text: str) -> None:
        """Until it has drawn `text`."""
        until = time.monotonic() + 60
        while text not in self.drawn:
            assert time.monotonic() < until, f"{text!r} was not drawn: {self.drawn[-2000:]!r}"
            self._read(0.5)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """Its exit status, once it has ended."""
        until = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < until, "it does not end"
            self._read(0.1)  # a full terminal would hold it up
        while self._read(0.1):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        """A piece of what it drew (a terminal gives 4 KiB at a time); False if there was none."""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            if select.select([self._terminal], [], [], timeout_s)[0]:
                piece = os.read(self._terminal, 65536)
                self.drawn += piece.decode("utf-8", "replace")
                return bool(piece)
        return False

    def dismiss(self) -> None:
        watchdog.reap(self.process)
        os.close(self._terminal)


@pytest.fixture
def on_screen() -> Iterator[Callable[..., Screen]]:
    with contextlib.ExitStack() as stack:

        def start(daemon: Daemon, *arguments: str) -> Screen:
            screen = Screen(command(daemon, *arguments))
            stack.callback(screen.dismiss)
            return screen

        yield start


# A full house


@pytest.fixture(scope="module")
def full_house() -> Iterator[Daemon]:
    """A daemon with as many clients as there can be, each with the longest name."""
    with Daemon("echo", config=f"max_clients = {CLIENTS}\n") as daemon, contextlib.ExitStack() as stack:
        for number in range(CLIENTS):
            connection = stack.enter_context(VarlinkConnection.connect(daemon.client_socket, 10.0))
            wanted = dict.fromkeys(("request_metadata", "request_bytes", "reply_metadata", "reply_bytes"), 0)
            parameters = {
                "wire_version": WIRE_VERSION,
                "wanted": {"slots": 1, **wanted},
                "program": f"{number:03}\u20ac".ljust(64, "\u20ac"),  # six bytes each in JSON
            }
            connection.call("io.shmserve.Client.Attach", parameters, timeout_s=30.0)
        yield daemon


def test_a_status_of_a_full_house_is_cut_and_tells_how_many_there_are(full_house: Daemon) -> None:
    status = full_house.status()

    assert status["clients_total"] == CLIENTS
    assert 20 < len(status["clients"]) < CLIENTS
    assert len(json.dumps(status)) < MESSAGE_LIMIT
    assert f"and {CLIENTS - len(status['clients'])} more clients: shmserve-admin clients" in admin(full_house, "status")


def test_every_client_of_a_full_house_is_listed(full_house: Daemon) -> None:
    found = json.loads(admin(full_house, "--json", "clients"))

    assert sorted(client["id"] for client in found) == list(range(CLIENTS))
    lines = admin(full_house, "clients").splitlines()
    assert len(lines) == CLIENTS + 1, "and the heading"


def test_metrics_of_all_clients_of_a_full_service_arrive_complete(full_house: Daemon) -> None:
    text = admin(full_house, "metrics")

    assert text.count("\nshmserve_client_requests_total{") == CLIENTS
    assert text.endswith("\n# EOF\n")
    assert len(text) > MESSAGE_LIMIT, "more than one message holds"


def test_a_foreign_varlink_client_sees_the_same_methods(full_house: Daemon) -> None:
    with VarlinkConnection.connect(full_house.service_dir / ADMIN_SOCKET, 5.0) as connection:
        parameters = {"interface": "io.shmserve.Admin"}
        reply = connection.call("org.varlink.service.GetInterfaceDescription", parameters, timeout_s=10.0)

    methods = [
        line.split("(")[0] for line in reply.parameters["description"].splitlines() if line.startswith("method ")
    ]
    assert {"method Metrics", "method Clients", "method Latencies", "method Config", "method Reload"} <= set(methods)


def test_a_status_omits_a_long_model_description() -> None:
    model = {"name": "m", "version": "1", "device": "cpu", "metadata": {"notes": "x" * 60_000}, "contract": {}}

    found = fitted({"model": model, "clients": [], "state": "ready"})

    assert found["model"] == {"name": "m", "version": "1", "device": "cpu", "shortened": True}


def test_a_status_reports_model_metadata_with_infinite_bounds(described: Daemon) -> None:
    metadata = described.status()["model"]["metadata"]

    assert metadata["low"] == ["-inf", 0.0] and metadata["high"] == ["inf", "nan"]


@pytest.mark.long
def test_a_status_names_the_log_and_the_remedy_for_an_engine_without_heartbeat(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("echo")
    assert f"tail {daemon.folder}/log" in admin(daemon, "status")
    engine = daemon.status()["engine"]["pid"]

    os.kill(engine, signal.SIGSTOP)
    wait_until("it is quiet", lambda: daemon.status()["engine"]["heartbeat_age_s"] > 5)
    shown = admin(daemon, "status")
    os.kill(engine, signal.SIGCONT)

    assert re.search("\\bdo +no heartbeat of the engine for", shown) and "heartbeat_timeout_s" in shown


def test_the_first_version_is_listed_with_its_device(echo: Daemon) -> None:
    def devices() -> list[str | None]:
        return [version["device"] for version in echo.admin("Versions")["versions"] if version["serving"]]

    wait_until("it is written down", lambda: devices() == ["cpu"])
    assert " cpu " in admin(echo, "versions")


# On a terminal


def test_top_draws_rates_and_stages_and_ends_with_q(echo: Daemon, on_screen: Callable[..., Screen]) -> None:
    with echo.client() as client:
        screen = on_screen(echo, "top", "--interval", "0.2")
        for stage in ("queued", "infer", "total"):
            screen.wait_for(stage)
        until = time.monotonic() + 60
        while "█" not in screen.drawn and time.monotonic() < until:
            client.infer({"a": 1})
            screen._read(0)
        screen.wait_for("█")  # the history of a rate

        screen.type("q")

        assert screen.end() == 0
        assert "\x1b[?1049l" in screen.drawn, "the screen is given back"


def test_a_status_that_is_watched_ends_with_control_c(echo: Daemon, on_screen: Callable[..., Screen]) -> None:
    screen = on_screen(echo, "status", "--watch")
    screen.wait_for("heartbeat")

    screen.process.send_signal(signal.SIGINT)

    assert screen.end() == 0


def test_watching_an_absent_service_prints_a_readable_error(
    make_daemon: Callable[..., Daemon], on_screen: Callable[..., Screen]
) -> None:
    screen = on_screen(make_daemon("echo"), "top")

    assert screen.end() == 3
    assert "no daemon serves 't'" in screen.drawn
    assert "\x1b[?1049h" not in screen.drawn, "the screen was not taken"


@pytest.mark.long
def test_top_says_so_when_the_daemon_goes_away(
    start_daemon: Callable[..., Daemon], on_screen: Callable[..., Screen]
) -> None:
    daemon = start_daemon("echo")
    screen = on_screen(daemon, "top", "--interval", "0.2")
    screen.wait_for("ready")

    daemon.stop()

    assert screen.end() == 3
    assert "closed the connection" in screen.drawn


@pytest.mark.long
def test_long_work_shows_how_far_it_is_and_a_pipe_does_not_see_it(
    start_daemon: Callable[..., Daemon],
    make_daemon: Callable[..., Daemon],
    on_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    daemon = start_daemon("echo")
    package = tmp_path / "large"
    shutil.copytree(POLICIES / "echo", package)
    with open(package / "weights.bin", "wb") as weights:
        weights.truncate(64 << 20)
    np.savez(tmp_path / "example.npz", a=np.zeros(1))
    asking = ("bench", "--seconds", "1", "--example", str(tmp_path / "example.npz"))

    loading = on_screen(daemon, *asking)
    loading.wait_for("asking")
    assert loading.end() == 0, loading.drawn
    receiving = on_screen(daemon, "update-model", str(package))
    receiving.wait_for("of 67 MB")
    assert receiving.end() == 0, receiving.drawn
    waiting = on_screen(make_daemon("echo"), "wait-ready", "--timeout", "2")
    waiting.wait_for("waiting for service 't'")
    assert waiting.end() == 3
    quiet = subprocess.run(command(daemon, *asking), capture_output=True, text=True, timeout=60, check=True)
    assert quiet.stderr == "" and "asking" not in quiet.stdout


def test_latencies_only_grow(echo: Daemon) -> None:
    def counted() -> dict[str, Any]:
        return echo.admin("Latencies")["stages"]  # type: ignore[no-any-return]

    with echo.client() as client:
        before = counted()
        for _ in range(5):
            client.infer({"a": 1})
        # A request is counted after its answer, and its total last.
        wait_until("all are counted", lambda: sum(counted()["total"]) - sum(before["total"]) >= 5)
        after = counted()

    for stage, counts in after.items():
        assert sum(counts) - sum(before[stage]) == 5
        assert all(now >= then for now, then in zip(counts, before[stage], strict=True))
