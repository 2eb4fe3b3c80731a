"""C++ programs with shmserve.hpp: its handles, what a step of action chunks does, gcc's checks, and a daemon that goes away."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import watchdog
from tests.support.admin_command import rollback, update
from tests.support.c_library import THREAD_CHECKS, compile_traps
from tests.support.cpp_library import COMPILERS, STANDARDS, check_cpp, compile_cpp
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY, SUPPORT

pytestmark = [pytest.mark.sealed_too]

PROGRAMS = SUPPORT / "cpp_programs"
LOOP = REPOSITORY / "examples/cpp_control_loop/control_loop.cpp"
Play = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("standard", STANDARDS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_headers_compile_without_a_warning(compiler: str, standard: str) -> None:
    check_cpp(LOOP, compiler=compiler, standard=standard)


def test_the_headers_compile_without_exceptions() -> None:
    check_cpp(LOOP, "-fno-exceptions", "-fno-rtti")


@pytest.mark.parametrize("header", sorted(path.name for path in (REPOSITORY / "native/include").glob("*.hpp")))
def test_each_header_compiles_alone(tmp_path: Path, header: str) -> None:
    (tmp_path / "alone.cpp").write_text(f"#include <{header}>\n#include <{header}>\n")

    check_cpp(tmp_path / "alone.cpp")


@pytest.mark.parametrize(
    ("standard", "checks"),
    [
        pytest.param("c++17", "", id="17"),
        pytest.param("c++20", "", id="20"),
        pytest.param("c++17", "addresses", id="addresses", marks=pytest.mark.long),
    ],
)
def test_every_handle_does_what_it_says(echo: Daemon, standard: str, checks: str) -> None:
    program = compile_cpp(PROGRAMS / "handles.cpp", standard=standard, checks=checks)

    ended = subprocess.run(
        [program, echo.runtime_dir, echo.name],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=100,
        check=False,
    )

    assert (ended.stdout, ended.stderr, ended.returncode) == ("all hold\n", "", 0)


@pytest.fixture(scope="module")
def traps() -> Path:
    return compile_traps()


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts the player, built with some checks; killed at the end."""
    started = []

    def play_(
        daemon: Daemon, chunks: int, *arguments: str, checks: str = "", **variables: str
    ) -> subprocess.Popen[str]:
        program = compile_cpp(PROGRAMS / "player.cpp", checks=checks)
        process = subprocess.Popen(
            [str(program), str(daemon.runtime_dir), daemon.name, str(chunks), *arguments],
            env={**environment(), **THREAD_CHECKS, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog.watch(process)
        started.append(process)
        return process

    yield play_
    for process in started:
        watchdog.reap(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def next_line(process: subprocess.Popen[str], *beginnings: str) -> str:
    """Read until a line begins so; the program goes on meanwhile."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(beginnings):
            return line.strip()
    raise AssertionError(f"it ended: {process.communicate()}")


def end(process: subprocess.Popen[str]) -> str:
    """Its last line, once it has ended with 0 and without a word on standard error."""
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, ""), output
    return output.splitlines()[-1]


@pytest.mark.parametrize(
    "checks",
    ["traps", pytest.param("addresses", marks=pytest.mark.long), pytest.param("threads", marks=pytest.mark.long)],
)
def test_steps_go_on_through_a_restart_and_play_no_row_twice(
    make_daemon: Callable[..., Daemon], play: Play, traps: Path, checks: str
) -> None:
    """With traps: no step allocates, locks, or makes another system call, also while the service is away."""
    daemon = make_daemon("chunked").start()
    player = play(daemon, 400, "trap", LD_PRELOAD=str(traps)) if checks == "traps" else play(daemon, 400, checks=checks)

    next_line(player, "100")
    daemon.kill9()
    next_line(player, "away")
    daemon.start()
    next_line(player, "back")

    assert end(player) == "done"


@pytest.mark.parametrize(
    "checks",
    ["traps", pytest.param("addresses", marks=pytest.mark.long), pytest.param("threads", marks=pytest.mark.long)],
)
def test_steps_play_no_row_of_a_model_that_means_something_else(
    make_daemon: Callable[..., Daemon], play: Play, traps: Path, tmp_path: Path, checks: str
) -> None:
    """With traps: a step that meets another model's reply allocates nothing, while the daemon is asked."""
    packages = {}
    for name, contract, mark in (
        ("ours", "rate_hz = 1000", 1),
        ("finer", "rate_hz = 1000 # finer", 1),
        ("other", "rate_hz = 50", 2),
    ):
        packages[name] = Path(shutil.copytree(SUPPORT / "policies/chunked", tmp_path / name))
        policy = packages[name] / "policy.py"
        policy.write_text(policy.read_text().replace("MARK = 1.0", f"MARK = {mark}.0"))
        with (packages[name] / "model.toml").open("a") as manifest:
            manifest.write(f"[contract]\n{contract}\n")
    daemon = make_daemon(packages["ours"]).start()
    if checks == "traps":
        player = play(daemon, 100_000_000, "trap", '{"rate_hz": 1000}', LD_PRELOAD=str(traps))
    else:
        player = play(daemon, 100_000_000, "untrapped", '{"rate_hz": 1000}', checks=checks)

    next_line(player, "50")
    update(daemon, packages["finer"])
    update(daemon, packages["other"], allow_contract_change=True)
    next_line(player, "refused")
    rollback(daemon)
    next_line(player, "agrees")

    assert next_line(player, *"123456789").isdigit() and player.poll() is None


def test_chunks_that_need_larger_slots_are_played_once_these_have_grown(echo: Daemon, play: Play) -> None:
    output, errors = play(echo, 20, "large").communicate(timeout=100)

    assert (output, errors) == ("attached\nfailed 0, the channel grew: 1\ndone\n", "")


def test_a_step_that_allocates_would_be_seen(tmp_path: Path, traps: Path) -> None:
    source = tmp_path / "allocates.cpp"
    source.write_text(
        '#include "real_time_calls.h"\n#include <vector>\n'
        "int main(int count, char **)\n{\n    arm(1);\n    std::vector<int> items(static_cast<unsigned>(count));\n"
        "    return items[0];\n}\n"
    )
    program = compile_cpp(source, f"-I{SUPPORT}/c_programs", "-O0")

    ended = subprocess.run([program], capture_output=True, text=True, env={"LD_PRELOAD": str(traps)}, check=False)

    assert ended.stderr == "trapped: malloc\n"
