"""Programs that are started with standard input, output or error closed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.admin_command import COMMAND
from tests.support.daemon_process import Daemon, environment

_CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


def _closing(how: str, *command: str) -> list[str]:
    return ["sh", "-c", f'exec "$0" "$@" {_CLOSED[how]}', *command]


_LOOK = """
import os, sys
report = os.open(sys.argv[1], os.O_WRONLY) if len(sys.argv) > 2 else None
from shmserve.standard_streams import open_standard_streams
open_standard_streams()
print("out"); print("err", file=sys.stderr); sys.stdin.read()
found = [os.readlink(f"/proc/self/fd/{number}") == "/dev/null" and os.get_inheritable(number) for number in range(3)]
with open(sys.argv[1], "w") as report:
    report.write(" ".join(map(str, found)))
"""


@pytest.mark.parametrize("how", _CLOSED)
def test_closed_streams_lead_nowhere_and_children_inherit_that(how: str, tmp_path: Path) -> None:
    report = f"{tmp_path}/report"
    done = subprocess.run(
        _closing(how, sys.executable, "-c", _LOOK, report),
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(),
    )

    closed = {"all": (0, 1, 2), "stdin": (0,), "stdout": (1,), "stderr": (2,)}[how]
    with open(report, encoding="utf-8") as file:
        assert [number for number, found in enumerate(file.read().split()) if found == "True"] == list(closed)
    assert done.stdout == ("" if 1 in closed else "out\n") and done.stderr == ("" if 2 in closed else "err\n")


_PRINTING = """
import os, sys

class Policy:
    def __init__(self, path, device):
        os.write(1, b"out"), os.write(2, b"err")

    def infer(self, observation):
        print("asked")
        print("asked", file=sys.stderr)
        return observation
"""


@pytest.mark.parametrize("how", _CLOSED)
def test_the_admin_command_works_with_closed_streams(how: str, echo: Daemon) -> None:
    command = [str(COMMAND), "--name", echo.name, "--runtime-dir", str(echo.runtime_dir), "status"]
    done = subprocess.run(
        _closing(how, *command), capture_output=True, text=True, timeout=60, check=True, env=environment()
    )

    assert done.stderr == ""
    assert ("service" in done.stdout) == (how in ("stdin", "stderr"))


@pytest.mark.parametrize(
    "how", ["all", *(pytest.param(how, marks=pytest.mark.long) for how in ("stdin", "stdout", "stderr"))]
)
def test_a_daemon_started_with_closed_streams_serves_a_policy_that_prints(
    how: str, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "policy.py").write_text(_PRINTING)
    daemon = make_daemon(tmp_path)
    daemon.redirections = _CLOSED[how]

    daemon.start()

    with daemon.client() as client:
        assert client.infer({"a": 1}) == {"a": 1}
