"""What every command of shmserve-admin has: examples that work, a man page, completion, exit statuses, quiet colours."""

from __future__ import annotations

import inspect
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from shmserve.client.admin.cli import main as admin_command
from shmserve.daemon.main import main as daemon_command
from tests.admin_command import COMMAND
from tests.daemon_process import POLICIES, Daemon, environment

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = {"shmserve-admin": admin_command, **{f"shmserve-admin {n}": c for n, c in admin_command.commands.items()}}
COMMANDS["shmserved"] = daemon_command


def examples(command: click.Command) -> list[str]:
    _, _, shown = inspect.cleandoc(command.help or "").partition("\b\n")
    return [line for line in shown.splitlines() if line]


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **variables},
        check=False,
    )


def parsed(command: click.Command, name: str, words: list[str], parent: click.Context | None = None) -> None:
    """As click does before it runs a command; raises UsageError."""
    context = command.make_context(name, words, parent=parent)
    if isinstance(command, click.Group):
        found, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None and child is not None
        parsed(child, found, rest, context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_it_takes(name: str) -> None:
    shown = examples(COMMANDS[name])

    assert shown, f"{name} --help has no example"
    for line in shown:
        words = shlex.split(line.partition(">")[0].removeprefix("sudo "))
        parsed(COMMANDS[words[0]], words[0], words[1:])


def test_the_man_pages_are_what_the_help_says() -> None:
    checked = subprocess.run(
        [sys.executable, REPOSITORY / "man/generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert checked.returncode == 0, checked.stderr
    pages = {path.stem for path in (REPOSITORY / "man").glob("*.1")}
    assert pages == {name.replace(" ", "-") for name in COMMANDS}


def completions(words: str, **variables: str) -> list[str]:
    asked = {"_SHMSERVE_ADMIN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return [line.partition(",")[2] for line in run(**asked, **variables).stdout.splitlines()]


def test_a_shell_completes_commands_options_and_names_of_services(echo: Daemon) -> None:
    assert completions("shmserve-admin re") == ["record", "reload", "replay"]
    assert "--buffer-mib" in completions("shmserve-admin record --b")
    assert completions("shmserve-admin --name ", SHMSERVE_RUNTIME_DIR=str(echo.runtime_dir)) == [echo.name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_is_printed(shell: str) -> None:
    printed = run("completion", shell)

    assert printed.returncode == 0, printed.stderr
    assert "_SHMSERVE_ADMIN_COMPLETE" in printed.stdout


# Exit statuses


def exit_status(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """In this process: starting one for each case takes longer than all of them."""
    with pytest.raises(SystemExit) as raised:
        admin_command([*map(str, arguments)], prog_name="shmserve-admin")
    code = raised.value.code
    return code if isinstance(code, int) else int(bool(code)), capsys.readouterr().err


_ASKS_A_DAEMON: dict[str, list[Any]] = {
    "bench": [],
    "clients": [],
    "config": [],
    "drain": [],
    "metrics": [],
    "record": ["--out", "never-made.rec"],
    "reload": [],
    "rollback": [],
    "status": [],
    "top": [],
    "update-model": [POLICIES / "echo"],
    "versions": [],
    "wait-ready": ["--timeout", 0.1],
}
#: Work without a daemon; their own tests have what they refuse.
_ALONE = {"completion", "generate-key", "install-service", "replay", "sign"}


def test_every_command_is_in_one_of_these_tables() -> None:
    assert set(admin_command.commands) == _ASKS_A_DAEMON.keys() | _ALONE


@pytest.mark.parametrize("name", _ASKS_A_DAEMON)
def test_without_a_daemon_every_command_exits_with_3(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = exit_status(capsys, "--runtime-dir", tmp_path, name, *_ASKS_A_DAEMON[name])

    assert status == 3
    assert "no daemon serves 'default'" in said and "shmserved --model-path" in said
    assert not Path("never-made.rec").exists()


@pytest.mark.parametrize("name", sorted(admin_command.commands))
def test_what_is_no_option_exits_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = exit_status(capsys, name, "--no-such-option")

    assert status == 2
    assert "no-such-option" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--clients", 0],
        ["bench", "--rate", -1],
        ["top", "--interval", 0],
        ["record"],
        ["record", "--out", "f", "--count", 0],
        ["record", "--out", "f", "--seconds", 0],
        ["replay"],
        ["replay", "f", "--device", "cpu"],
        ["replay", "f", "--atol", -1],
        ["update-model"],
        ["completion", "tcsh"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(capsys, *arguments)[0] == 2


def _refused(tmp_path: Path) -> Iterator[list[Any]]:
    yield ["update-model", tmp_path / "absent"]
    yield ["update-model", tmp_path]  # no model in it
    yield ["rollback"]
    yield ["rollback", "ffff"]
    yield ["record", "--out", tmp_path / "a.rec", "--client", 99]
    yield ["replay", tmp_path / "absent.rec"]
    yield ["sign", tmp_path / "absent", "--key", tmp_path / "absent.pem"]
    yield ["install-service", "--user", "--model-path", tmp_path / "absent", "--dry-run"]


def test_what_is_refused_exits_with_1_and_says_why(
    echo: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in _refused(tmp_path):
        status, said = exit_status(capsys, "--name", echo.name, "--runtime-dir", echo.runtime_dir, *arguments)

        assert (status, said.startswith("shmserve-admin: ")) == (1, True), (arguments, said)
        assert "Traceback" not in said


def test_what_is_done_exits_with_0(echo: Daemon) -> None:
    where = ("--name", echo.name, "--runtime-dir", echo.runtime_dir)

    for arguments in (["status"], ["clients"], ["wait-ready"], ["--json", "versions"]):
        done = run(*where, *arguments)
        assert (done.returncode, done.stderr) == (0, "")


# Colours

_COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]")


def on_a_terminal(*arguments: object, **variables: str) -> bytes:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "120", **variables},
    )
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:  # EIO: it has ended
        pass
    os.close(ours)
    assert process.wait(60) == 0, drawn
    return drawn


def test_colours_are_for_a_terminal_that_wants_them(echo: Daemon) -> None:
    status = ("--name", echo.name, "--runtime-dir", echo.runtime_dir, "status")

    assert _COLOUR.search(on_a_terminal(*status))
    assert not _COLOUR.search(on_a_terminal(*status, NO_COLOR="1"))
    assert b"\x1b" not in run(*status).stdout.encode()
