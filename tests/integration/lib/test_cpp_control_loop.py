"""examples/cpp_control_loop, built as its page says, beside a real daemon whose engine and supervisor are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import watchdog
from tests.support.c_library import installed
from tests.support.cpp_library import require
from tests.support.daemon_process import Daemon, environment, wait_until
from tests.support.folders import REPOSITORY
from tests.support.mostly_long import only

pytestmark = [pytest.mark.sealed_too]

EXAMPLE = REPOSITORY / "examples/cpp_control_loop"
SECONDS = 60.0


@pytest.fixture(scope="module")
def prefix() -> Path:
    return installed()


def build_with_make(prefix: Path, folder: Path) -> Path:
    require("g++", "make", "pkg-config")
    variables = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    sources = [f"-f{EXAMPLE}/Makefile", f"VPATH={EXAMPLE}"]
    subprocess.run(["make", "-s", *sources], cwd=folder, env=variables, check=True)
    return folder / "control_loop"


def build_with_cmake(prefix: Path, folder: Path) -> Path:
    require("g++", "cmake")
    for arguments in (["-S", str(EXAMPLE), "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}"], ["--build", "build"]):
        subprocess.run(["cmake", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "build/control_loop"


BUILDS = {"make": build_with_make, "cmake": build_with_cmake}


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDS[request.param](prefix, tmp_path_factory.mktemp("program"))


@pytest.fixture
def run(prefix: Path, program: Path, tmp_path: Path) -> Iterator[Callable[[Daemon], subprocess.Popen[str]]]:
    """Starts the loop; killed at the end, unless it has ended."""
    started: list[subprocess.Popen[str]] = []

    def run_(daemon: Daemon) -> subprocess.Popen[str]:
        variables = {"SHMSERVE_RUNTIME_DIR": str(daemon.runtime_dir), "LD_LIBRARY_PATH": str(prefix / "lib")}
        process = subprocess.Popen(
            [program, daemon.name, str(SECONDS), tmp_path / "trace"],
            env={**environment(), **variables},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog.watch(process)
        started.append(process)
        return process

    yield run_
    for process in started:
        watchdog.reap(process)
        assert process.stdout is not None
        process.stdout.close()


class Ledger:
    """The lines that the loop prints at its end."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __getitem__(self, name: str) -> int:
        found = re.search(rf"{name}:? (\d+)", self.text)
        assert found is not None, self.text
        return int(found[1])


def end(process: subprocess.Popen[str]) -> Ledger:
    """Ask it to end, as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return Ledger(output)


class Played(NamedTuple):
    """One line of the trace."""

    tick: int
    source: str
    chunk: int
    row: int
    velocity: float
    meant_for: int


def trace(folder: Path) -> list[Played]:
    fields = [line.split() for line in (folder / "trace").read_text().splitlines()]
    return [Played(int(t), s, int(c), int(r), float(v), int(m)) for t, s, c, r, v, m in fields]


def check(played: list[Played]) -> None:
    """Each row is played once at most, in its order, and is the policy's own; joints without an action stop."""
    rows = [each for each in played if each.source in ("chunk", "overrun")]
    places = [(each.chunk, each.row) for each in rows]
    assert places == sorted(set(places))
    observed = {(each.chunk, each.meant_for - each.row) for each in rows}
    assert len(observed) == len({chunk for chunk, _ in observed})
    assert [tick for _, tick in sorted(observed)] == sorted({tick for _, tick in observed})
    assert {(each.velocity, each.row) for each in played if each.source not in ("chunk", "overrun")} <= {(0.0, -1)}


def served(daemon: Daemon) -> int:
    return int(daemon.status()["requests"]["served"])


@pytest.mark.parametrize("program", BUILDS, indirect=True)
def test_the_loop_starts_before_its_daemon_and_reaches_the_goal(
    make_daemon: Callable[..., Daemon], run: Callable[[Daemon], subprocess.Popen[str]], tmp_path: Path
) -> None:
    daemon = make_daemon(EXAMPLE / "model")
    loop = run(daemon)
    daemon.start()
    wait_until("the joints have moved", lambda: served(daemon) > 150)

    ledger = end(loop)

    check(trace(tmp_path))
    assert ledger["replayed"] == ledger["other models"] == 0
    steps = sum(ledger[name] for name in ("fresh", "overrun", "fallback", "without an action"))
    assert steps == ledger["ticks"] - ledger["missed"]
    assert re.search(r"scheduling: (SCHED_FIFO, priority 80|ordinary, SCHED_FIFO is not allowed \(.+\))", ledger.text)
    assert re.search(r"memory: (locked|not locked \(.+\))", ledger.text)
    assert "the goal is missed by 0.0" in ledger.text
    assert "refused" not in ledger.text


@pytest.mark.parametrize("program", only({"make"}, list(BUILDS)), indirect=True)
def test_the_joints_stop_while_the_service_is_away_and_no_row_is_replayed(
    make_daemon: Callable[..., Daemon], run: Callable[[Daemon], subprocess.Popen[str]], tmp_path: Path
) -> None:
    daemon = make_daemon(EXAMPLE / "model").start()
    loop = run(daemon)
    wait_until("it is served", lambda: served(daemon) > 20)

    before = daemon.engine_pid
    os.kill(before, signal.SIGKILL)
    wait_until("another engine serves", lambda: daemon.engine_pid not in (0, before))
    daemon.wait_ready()
    after = served(daemon)
    wait_until("it is served again", lambda: served(daemon) > after + 20)
    daemon.kill9()
    daemon.start()
    wait_until("the next daemon serves it", lambda: served(daemon) > 20)
    ledger = end(loop)

    played = trace(tmp_path)
    check(played)
    stops = [each for each in played if each.source == "zero"]
    assert ledger["replayed"] == 0
    assert ledger["failed requests"] >= 2
    fresh = [each.tick for each in played if each.source == "chunk"]
    assert fresh[0] < stops[0].tick < fresh[-1]
    assert "refused" not in ledger.text
