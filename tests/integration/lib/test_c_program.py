"""C programs with the library: what a real-time call does, the checks of a compiler, and the daemon that goes away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import watchdog
from tests.support.c_library import THREAD_CHECKS, compile_program, compile_traps
from tests.support.daemon_process import Daemon, environment, wait_until
from tests.support.folders import REPOSITORY, SUPPORT

pytestmark = [pytest.mark.sealed_too]

PROGRAMS = SUPPORT / "c_programs"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def asker() -> Path:
    return compile_program(PROGRAMS / "asker.c")


@pytest.fixture(scope="session")
def sanitized_asker() -> Path:
    return compile_program(PROGRAMS / "asker.c", checks="addresses")


@pytest.fixture(scope="session")
def traps() -> Path:
    return compile_traps()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the asker; killed at the end."""
    started = []

    def start_(program: Path, daemon: Daemon, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        command = [str(program), str(daemon.runtime_dir), daemon.name, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            env={**environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog.watch(process)
        started.append(process)
        return process

    yield start_
    for process in started:
        watchdog.reap(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """What it prints until it ends with 0."""
    output, errors = process.communicate(timeout=140)
    assert process.returncode == 0, output + errors
    assert not errors
    return output.splitlines()


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_real_time_call_allocates_nothing_locks_nothing_and_makes_no_other_system_call(
    echo: Daemon, asker: Path, traps: Path, start: Start, size: int
) -> None:
    lines = lines_of(start(asker, echo, 2000, size, "trap", LD_PRELOAD=str(traps)))

    assert lines == ["attached", "1000", "2000", "done"]


def test_another_system_call_is_seen(echo: Daemon, asker: Path, start: Start) -> None:
    assert start(asker, echo, 1, 100, "trapped").wait(60) == -signal.SIGSYS


@pytest.mark.parametrize("armed", ["malloc", "pthread_mutex_lock"])
def test_the_traps_are_seen(tmp_path: Path, traps: Path, armed: str) -> None:
    source = tmp_path / f"armed_{armed}.c"
    call = "return malloc(99) == NULL;" if armed == "malloc" else "return pthread_mutex_lock(&mutex);"
    source.write_text(
        "#include <pthread.h>\n#include <stdlib.h>\nextern void shmserve_test_arm(int);\n"
        "extern void *volatile kept;\nvoid *volatile kept;\n"
        f"pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;\nint main(void) {{ shmserve_test_arm(1); {call} }}\n"
    )
    program = tmp_path / f"armed_{armed}"
    subprocess.run(["gcc", "-fno-builtin", source, "-o", program, traps], check=True)

    ended = subprocess.run([program], check=False, capture_output=True, text=True, env={"LD_PRELOAD": str(traps)})

    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == f"trapped: {armed}\n"


@pytest.mark.parametrize(
    "requests", [pytest.param(5000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.long)]
)
def test_requests_under_gcc_s_checks_of_addresses_and_undefined_behaviour(
    echo: Daemon, sanitized_asker: Path, start: Start, requests: int
) -> None:
    lines = lines_of(start(sanitized_asker, echo, requests, 3000, UBSAN_OPTIONS="print_stacktrace=1"))

    assert lines[0] == "attached" and lines[-1] == "done"
    assert not any(line.startswith("status") for line in lines)


@pytest.mark.parametrize(
    "requests", [pytest.param(3000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.long)]
)
def test_clients_in_two_threads_under_gcc_s_checks_of_threads(echo: Daemon, start: Start, requests: int) -> None:
    program = compile_program(PROGRAMS / "threads.c", checks="threads")

    lines = lines_of(start(program, echo, requests, **THREAD_CHECKS))

    assert lines == [f"{2 * requests} answers"]


@pytest.mark.parametrize(
    "requests", [pytest.param(300, id="short"), pytest.param(10_000, id="long", marks=pytest.mark.long)]
)
def test_requests_under_valgrind(echo: Daemon, asker: Path, requests: int) -> None:
    try:
        command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", str(asker)]
        ended = subprocess.run(
            [*command, echo.runtime_dir, echo.name, str(requests), "3000"],
            check=False,
            capture_output=True,
            text=True,
            timeout=140,
        )
    except FileNotFoundError:
        pytest.skip("no valgrind here (apt-get install valgrind)")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "done"


def test_a_client_for_aarch64_asks_under_emulation(echo: Daemon, tmp_path: Path, start: Start) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no aarch64-linux-gnu-gcc or qemu-aarch64 here (apt-get install gcc-aarch64-linux-gnu qemu-user)")
    program, native = tmp_path / "asker", REPOSITORY / "native"
    sources = [PROGRAMS / "asker.c", *sorted((native / "core").glob("*.c")), *sorted((native / "lib").glob("*.c"))]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", f"-I{native}", f"-I{native}/include", "-static"]
    built = subprocess.run(
        [compiler, *flags, *sources, "-o", program, "-lrt", "-lm", "-pthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr

    command = tmp_path / "emulated"
    command.write_text(f'#!/bin/sh\nexec {emulator} {program} "$@"\n')
    command.chmod(0o755)

    assert lines_of(start(command, echo, 1000, 3000)) == ["attached", "1000", "done"]


def next_line(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
    """Read until a line is wanted; the program goes on meanwhile."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if wanted(line.strip()):
            return line.strip()
    raise AssertionError(f"it ended: {process.communicate()}")


def test_a_restarted_daemon_is_asked_again(make_daemon: Callable[..., Daemon], asker: Path, start: Start) -> None:
    daemon = make_daemon("echo").start()
    process = start(asker, daemon, 100_000_000, 100)

    for kill, statuses in ((daemon.kill9, {"status -3"}), (daemon.stop, {"status -3", "status 9"})):
        next_line(process, str.isdigit)
        kill()
        daemon.start()
        assert next_line(process, lambda line: line.startswith("status")) in statuses
        next_line(process, str.isdigit)

    assert process.poll() is None


def test_a_killed_engine_ends_a_request_at_most(start_daemon: Callable[..., Daemon], asker: Path, start: Start) -> None:
    daemon = start_daemon("echo")
    process = start(asker, daemon, 20_000, 100)
    assert process.stdout is not None and process.stdout.readline() == "attached\n"
    for _ in range(2):
        assert process.stdout.readline().strip().isdigit()
        before = daemon.engine_pid
        os.kill(before, signal.SIGKILL)
        wait_until("another engine serves", lambda before=before: daemon.engine_pid != before)

    lines = lines_of(process)

    assert lines[-1] == "done"
    assert not any(line.startswith("status") for line in lines)


def test_a_killed_client_leaves_nothing_behind(echo: Daemon, asker: Path, start: Start) -> None:
    for _ in range(5):
        process = start(asker, echo, 100_000_000, 1000)
        assert process.stdout is not None and process.stdout.readline() == "attached\n"
        assert process.stdout.readline() == "1000\n"
        process.kill()
        process.wait()

    wait_until("its channel is gone", lambda: not echo.status()["clients"])
    assert len(echo.names_in_shm()) <= 1
    assert lines_of(start(asker, echo, 1000, 1000)) == ["attached", "1000", "done"]


def test_the_minimal_example_does_what_its_page_says(minimal: Daemon) -> None:
    program = compile_program(REPOSITORY / "examples/c_minimal/robot.c")

    said = subprocess.run(
        [program],
        env={**environment(), "SHMSERVE_RUNTIME_DIR": str(minimal.runtime_dir)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == "the goal is missed by 0.0000\n"
    assert said.stdout.strip() in (REPOSITORY / "examples/c_minimal/README.md").read_text()
