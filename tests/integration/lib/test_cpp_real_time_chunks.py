"""Real-time chunking in C++: what a policy is told by ActionChunks is what Python's tells it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.support.cpp_library import compile_cpp
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import SUPPORT

pytestmark = [pytest.mark.sealed_too]
#: What the policy says of delay, rows and first row if it got none.
NOTHING = (-1.0, -1.0, -1.0)


@pytest.mark.parametrize("checks", ["", pytest.param("addresses", marks=pytest.mark.long)])
def test_a_policy_is_told_what_is_executed(start_daemon: Callable[..., Daemon], checks: str) -> None:
    program = compile_cpp(SUPPORT / "cpp_programs/continuing.cpp", checks=checks)
    daemon = start_daemon("continued")
    ended = subprocess.run(
        [program, daemon.runtime_dir, daemon.name, "20"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")

    found: dict[int, tuple[int, tuple[float, ...]]] = {}
    for line in ended.stdout.splitlines():
        asked, row, _, *entries, index = map(float, line.split())
        assert row == index
        found.setdefault(int(asked), (int(row), tuple(entries)))
    # The first request has the entries too, with no rows, and the engine removes them.
    told = (4.0, 8.0, 4.0)
    assert found == {0: (0, NOTHING), 4: (4, told), 8: (4, told), 12: (4, told)}
