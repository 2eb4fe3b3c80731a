"""Every command of shmserve-admin and each way that it can end: 0 done, 1 refused or failed, 2 usage, 3 no daemon.

4, of `wait-ready` alone, is in test_wait_ready.py; 5, of `export` alone, in tests/integration/recording/test_export.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shmserve.client.cli.load import Load
from shmserve.client.cli.main import main as admin_command
from tests.support.admin_command import COMMAND, admin, end_admin, served, start_admin
from tests.support.daemon_process import Daemon, environment, wait_until
from tests.support.gain_packages import gain_package
from tests.support.gate import Gate
from tests.support.stranger_process import become, let_in, needs_root

_X = {"x": np.arange(3), "robot": "r"}


@dataclass(frozen=True)
class Case:
    """Arguments with which a command ends with each status; what stands in braces is a file of `Place`."""

    usage: list[str]
    done: list[str] | None = None
    refused: list[str] | None = None
    #: Whether it needs a daemon.
    asks: bool = True
    #: Where `done` may not be asked of a daemon that is not there: it waits, or makes a file.
    absent: list[str] | None = None


_NONSENSE = ["--no-such-option"]
#: In the order in which they are done: what is replayed is what the first model said, and after a drain nothing is.
CASES: dict[str, Case] = {
    "wait-ready": Case(["--timeout", "nan"], ["--timeout", "30"], absent=["--timeout", "0.1"]),
    "status": Case(_NONSENSE, []),
    "clients": Case(_NONSENSE, []),
    "config": Case(_NONSENSE, []),
    "metrics": Case(_NONSENSE, ["--textfile", "{tmp}/metrics.prom"], ["--textfile", "{absent}/metrics.prom"]),
    "bench": Case(
        ["--clients", "0"], ["--seconds", "0.2", "--example", "{example}"], ["--seconds", "1", "--example", "{text}"]
    ),
    "infer": Case(["--shape", "image"], ["--example", "{example}"], ["--example", "{text}"]),
    "record": Case(
        ["--out", "f", "--seconds", "nan"], ["--out", "{tmp}/a.rec", "--seconds", "0.1"], ["--out", "{text}"]
    ),
    "replay": Case(["{recording}", "--device", "cpu"], ["{recording}"], ["{text}"], asks=False),
    "export": Case(
        ["{recording}"], ["{recording}", "--mcap", "{tmp}/a.mcap"], ["{text}", "--mcap", "{tmp}/b.mcap"], asks=False
    ),
    # What it does needs Ray: tests/ray.
    "remote": Case(["deploy"], None, ["deploy", "{absent}"], asks=False),
    "update-model": Case([], ["{other}"], ["{absent}"]),
    "versions": Case(_NONSENSE, []),
    "rollback": Case(["one", "two"], [], ["ffff"]),
    "reload": Case(_NONSENSE, [], []),  # refused: of a file with a mistake
    # Ended with q or a signal: see below, and tests/integration/admin/test_admin_views.py.
    "top": Case(["--interval", "0"]),
    "generate-key": Case([], ["{tmp}/key.pem"], ["{text}"], asks=False),
    "sign": Case(["{other}"], ["{signed}", "--key", "{tmp}/key.pem"], ["{signed}", "--key", "{absent}"], asks=False),
    "doctor": Case(_NONSENSE, asks=False),  # its status depends on the machine: test_doctor.py
    "list": Case(_NONSENSE, [], asks=False),
    "completion": Case(["tcsh"], ["bash"], asks=False),
    "install-service": Case(
        _NONSENSE,
        ["--user", "--model-path", "{other}", "--dry-run"],
        ["--user", "--model-path", "{absent}", "--dry-run"],
        asks=False,
    ),
    "drain": Case(_NONSENSE, []),
}


@dataclass(frozen=True)
class Place:
    """A daemon, and files that commands are given."""

    daemon: Daemon
    files: dict[str, Path]

    def arguments(self, words: list[str]) -> list[str]:
        return [word.format_map(self.files) for word in words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tmp = tmp_path_factory.mktemp("place")
    files = {"tmp": tmp, "absent": tmp / "absent", "text": tmp / "text", "example": tmp / "example.npz"}
    files |= {"recording": tmp / "recording.rec", "other": gain_package(tmp, 3)}
    files["signed"] = Path(shutil.copytree(files["other"], tmp / "signed"))
    files["text"].write_text("not what it is taken for\n")
    np.savez(files["example"], x=np.arange(3), robot=np.array("r"))
    with Daemon(gain_package(tmp, 2), config="max_slots = 8\n") as daemon:
        recording = start_admin(daemon, "record", "--out", files["recording"], "--count", 2)
        wait_until("it records", lambda: daemon.status()["recording"])
        with daemon.client() as client:
            for _ in range(2):
                client.infer(_X)
        assert end_admin(recording).returncode == 0
        yield Place(daemon, files)


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """In this process: starting one for each case takes longer than all of them."""
    with pytest.raises(SystemExit) as raised:
        admin_command([*map(str, arguments)], prog_name="shmserve-admin")
    code = raised.value.code
    return code if isinstance(code, int) else int(bool(code)), capsys.readouterr().err


def where(daemon: Daemon) -> list[str]:
    return ["--name", daemon.name, "--runtime-dir", str(daemon.runtime_dir)]


def asked_of_nobody(name: str) -> list[str]:
    case = CASES[name]
    return case.absent if case.absent is not None else case.done or []


def test_every_command_is_in_the_table() -> None:
    assert CASES.keys() == admin_command.commands.keys()


# 2: usage


@pytest.mark.parametrize("name", CASES)
def test_a_usage_error_exits_with_2(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (place.arguments(CASES[name].usage), _NONSENSE):
        status, said = ended(capsys, *where(place.daemon), name, *words)

        assert (status, "Usage: " in said) == (2, True), said


@pytest.mark.parametrize(
    "words",
    [
        ["--name", "a/b", "status"],
        ["--name", "", "status"],
        ["no-such-command"],
        ["bench", "--rate", "-1"],
        ["bench", "--rate", "nan"],
        ["bench", "--seconds", "inf"],
        ["bench", "--timeout", "-1"],
        ["record"],
        ["record", "--out", "f", "--count", "0"],
        ["replay"],
        ["replay", "f", "--atol", "-1"],
        ["replay", "f", "--atol", "nan"],
        ["top", "--interval", "nan"],
        ["wait-ready", "--timeout", "-1"],
    ],
)
def test_numbers_and_names_that_are_none_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, *words)[0] == 2


@pytest.mark.parametrize("name", CASES)
def test_the_service_and_the_form_of_the_answer_may_stand_after_the_command(
    name: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = ["--name", "other", "--runtime-dir", str(tmp_path), "--json"]
    words = [word.format_map({**place.files, "tmp": tmp_path}) for word in asked_of_nobody(name)]

    status, said = ended(capsys, name, *after, "--no-such-option")
    assert (status, "No such option '--no-such-option'" in said) == (2, True), said
    for bad in ("a/b", ""):
        assert ended(capsys, name, "--name", bad)[0] == 2
    if CASES[name].asks and name != "wait-ready":
        status, said = ended(capsys, name, *words, *after)
        assert (status, "no daemon serves 'other'" in said) == (3, True), said


# 3: no daemon


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.asks])
@pytest.mark.parametrize("missing", ["nothing there", "another name", "a socket that nobody listens at"])
def test_without_a_daemon_every_command_that_asks_one_exits_with_3(
    name: str, missing: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, service = place.daemon.runtime_dir, "other"
    if missing != "another name":
        folder, service = tmp_path, "t"
    if missing == "a socket that nobody listens at":
        (tmp_path / "t").mkdir()
        with socket.socket(socket.AF_UNIX) as closed:
            closed.bind(str(tmp_path / "t" / "admin.sock"))
    words = [word.format_map({**place.files, "tmp": tmp_path}) for word in asked_of_nobody(name)]

    status, said = ended(capsys, "--name", service, "--runtime-dir", folder, name, *words)

    assert status == 3
    assert f"no daemon serves {service!r}" in said and f"shmserved --model-path DIR --name {service}" in said
    assert not list(tmp_path.glob("*.rec"))
    # The metrics of a service without a daemon say so, and are nothing else.
    assert all("\nshmserve_up{" in file.read_text() for file in tmp_path.glob("*.prom"))


#: Requests of a load's client before it begins to measure.
_WARM_UP = Load.warmup + 2


@pytest.mark.long
def test_a_daemon_that_is_killed_in_the_middle_of_a_command_is_3(
    make_daemon: Callable[..., Daemon], gate: Gate, tmp_path: Path
) -> None:
    daemon = make_daemon(gain_package(tmp_path, 2)).start()
    np.savez(tmp_path / "example.npz", x=np.arange(3), robot=np.array("r"))
    slow = gain_package(tmp_path, 3, loads_behind=str(gate.path))
    running = {
        "update-model": start_admin(daemon, "update-model", slow),
        "record": start_admin(daemon, "record", "--out", tmp_path / "a.rec"),
        "status": start_admin(daemon, "--json", "status", "--watch"),
        "top": start_admin(daemon, "top"),
    }
    gate.wait_entered()
    wait_until("it records", lambda: daemon.status()["recording"])
    for name in ("status", "top"):
        assert (stdout := running[name].stdout) is not None and stdout.readline()
    asking = ("bench", "--seconds", 5, "--timeout", 1, "--example", tmp_path / "example.npz")
    running["bench"] = start_admin(daemon, *asking)
    # After its warm-up: a load that never began would have failed for that reason.
    wait_until("it measures", lambda: daemon.status()["requests"]["served"] > _WARM_UP)

    daemon.kill9()
    done = {name: end_admin(process) for name, process in running.items()}

    assert {name: one.returncode for name, one in done.items()} == {
        "bench": 3,
        "record": 0,  # what was recorded is whole, and it was to end with the daemon
        "status": 3,
        "top": 3,
        "update-model": 3,
    }, done
    assert "ended: the daemon stopped" in done["record"].stdout
    for name in ("status", "top", "update-model"):
        assert "shmserve-admin: the daemon of 't' closed the connection: " in done[name].stderr
    assert all("Traceback" not in one.stderr for one in done.values())


# 1: refused or failed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused is not None])
def test_a_refused_command_exits_with_1_and_says_why(
    name: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    file, refused = place.daemon.folder / "config.toml", CASES[name].refused
    assert refused is not None
    good = file.read_text()
    file.write_text("max_slotz = 4\n")
    try:
        status, said = ended(capsys, *where(place.daemon), name, *place.arguments(refused))
    finally:
        file.write_text(good)

    assert (status, said.startswith("shmserve-admin: "), said.count("\n")) == (1, True, 1), said
    assert "Errno" not in said


@needs_root
def test_every_command_exits_1_at_a_forbidden_socket_and_names_the_permitted_users(place: Place) -> None:
    let_in(place.daemon)
    place.daemon.service_dir.chmod(0o711)

    for name, case in CASES.items():
        if case.asks:
            # A package has to be readable before anybody is asked.
            words = ["/"] if name == "update-model" else place.arguments(asked_of_nobody(name))
            status, said = _of_another_user([*where(place.daemon), name, *words])
            assert (status, "may not be opened by uid" in said) == (1, True), (name, said)


def _of_another_user(arguments: list[str]) -> tuple[int, str]:
    """The command in a forked child that has become another user: one that was started might not read the program."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(write, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            become()
            admin_command(arguments, prog_name="shmserve-admin", standalone_mode=True)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(70)
    os.close(write)
    with os.fdopen(read) as told:
        said = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


# 0: done


def test_a_command_with_a_closed_output_ends_quietly(place: Place) -> None:
    for words in (
        ["status"],
        ["--json", "status"],
        ["config"],
        ["versions"],
        ["metrics"],
        ["completion", "bash"],
        ["top"],
    ):
        read, write = os.pipe()
        os.close(read)

        done = subprocess.run(
            [COMMAND, *where(place.daemon), *words],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )

        os.close(write)
        assert (done.returncode, done.stderr) == (141, ""), words


@pytest.mark.parametrize(
    "words", [["top", "--interval", "0.1"], ["status", "--watch"], ["--json", "status", "--watch"]]
)
def test_a_watch_through_a_pipe_prints_each_look_and_ends_with_control_c(words: list[str], place: Place) -> None:
    process = start_admin(place.daemon, *words)
    assert process.stdout is not None
    seen = 0
    while seen < 2:
        line = process.stdout.readline()
        assert line, end_admin(process)
        seen += "ready" in line

    process.send_signal(signal.SIGINT)

    done = end_admin(process)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.done is not None])
def test_a_successful_command_exits_with_0_and_writes_no_error(name: str, place: Place) -> None:
    first, words = served(place.daemon), CASES[name].done
    assert words is not None

    done = admin(place.daemon, name, *place.arguments(words))

    assert (done.returncode, done.stderr) == (0, "")
    if name == "update-model":
        assert served(place.daemon) != first
    elif name == "drain":
        assert place.daemon.wait_end() == 0
    else:
        assert done.stdout or name == "wait-ready" or (place.files["tmp"] / "metrics.prom").exists()


#: Their output is a text or a screen, whatever is asked for.
_WITHOUT_JSON = {"completion", "metrics", "top"}
#: What they do needs Ray, or a recording: their own tests read the JSON.
_ELSEWHERE = {"export", "remote", "replay", "sign"}


def test_every_command_prints_json_for_programs(
    start_daemon: Callable[..., Daemon], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = gain_package(tmp_path, 2)
    daemon = start_daemon(package)
    np.savez(tmp_path / "example.npz", x=np.arange(3), robot=np.array("r"))
    once = {  # the others do what CASES has
        "rollback": [daemon.status()["model"]["version"]],
        "record": ["--out", "{tmp}/{number}.rec", "--seconds", "0.1"],
        "generate-key": ["{tmp}/{number}.pem"],
        "wait-ready": [],
    }
    files = {"tmp": tmp_path, "example": tmp_path / "example.npz", "other": package}

    for name in CASES.keys() - _WITHOUT_JSON - _ELSEWHERE - {"drain"}:
        for number, place_of_json in enumerate(("before", "after")):
            words = [each.format_map({**files, "number": number}) for each in once.get(name, CASES[name].done or [])]
            before = ["--json"] if place_of_json == "before" else []
            after = ["--json"] if place_of_json == "after" else []
            with contextlib.suppress(SystemExit):
                admin_command([*where(daemon), *before, name, *words, *after], prog_name="shmserve-admin")
            printed, errors = capsys.readouterr()
            assert errors == "", (name, place_of_json)
            assert json.loads(printed) is not None, (name, place_of_json)
    assert json.loads(admin(daemon, "drain", "--json").stdout) == {"draining": True}
    assert daemon.wait_end() == 0
