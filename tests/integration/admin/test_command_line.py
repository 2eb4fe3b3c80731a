"""What every command of shmserve-admin has: examples that work, a man page, completion, quiet colours."""

from __future__ import annotations

import inspect
import json
import os
import pty
import pwd
import re
import shlex
import subprocess
import sys

import click
import pytest

from shmserve.client.cli.main import main as admin_command
from shmserve.daemon.main import main as daemon_command
from tests.support.admin_command import COMMAND
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY

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


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["shmserve-admin", "udpate-model"], "No such command 'udpate-model'. Did you mean 'update-model'?"),
        (["shmserve-admin", "--nmae", "arm", "status"], "No such option '--nmae'. Did you mean '--name'?"),
        (["shmserve-admin", "status", "--jsno"], "No such option '--jsno'. Did you mean '--json'?"),
        (["shmserved", "--modell-path", "arm"], "No such option '--modell-path'. Did you mean '--model-path'?"),
        (["shmserved", "--model_path", "m"], "No such option '--model_path'. Did you mean '--model-path'?"),
        (["shmserved", "--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning', 'error'."),
        (["shmserved", "my_policy"], "shmserved takes options only. Give the package as --model-path DIR"),
    ],
)
def test_a_near_miss_gets_a_hint(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        COMMANDS[words[0]](words[1:], prog_name=words[0])

    assert raised.value.code == 2
    assert hint in capsys.readouterr().err


def test_the_man_pages_match_the_help_output() -> None:
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
    assert completions("shmserve-admin re") == ["record", "reload", "remote", "replay"]
    assert "--buffer-mib" in completions("shmserve-admin record --b")
    assert completions("shmserve-admin --name ", SHMSERVE_RUNTIME_DIR=str(echo.runtime_dir)) == [echo.name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_is_printed(shell: str) -> None:
    printed = run("completion", shell)

    assert printed.returncode == 0, printed.stderr
    assert "_SHMSERVE_ADMIN_COMPLETE" in printed.stdout


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


def test_a_status_names_the_user_of_the_daemon(echo: Daemon) -> None:
    where = ("--name", echo.name, "--runtime-dir", echo.runtime_dir)
    uid, owner = os.getuid(), echo.runtime_dir.stat().st_uid

    found = json.loads(run(*where, "status", "--json").stdout)

    assert (found["uid"], found["runtime_dir_uid"]) == (uid, owner)
    assert found["user"] == pwd.getpwuid(uid).pw_name
    assert f"pid {echo.pid} of uid {uid} ({found['user']}), up " in run(*where, "status").stdout


def test_a_command_starts_without_modules_that_it_does_not_need() -> None:
    script = (
        "import sys; from shmserve.client.cli.main import main\n"
        "try: main(['update-model', '/absent'])\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert said[0] == "1" and "shmserve.client.cli.update" in said
    assert {"asyncio", "hashlib", "numpy", "rich", "tempfile", "shmserve.package_signature"}.isdisjoint(said)
