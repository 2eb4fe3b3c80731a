"""Fails each unit test that starts a process: such a test belongs to tests/integration."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

#: Audit events (sys.audit) of the ways in which Python starts a process.
_STARTS = frozenset(
    {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen"}
)


class _Guard:
    """Notes what is started while a unit test runs; an audit hook cannot be removed, so it is switched."""

    def __init__(self) -> None:
        self.watches = False
        self.started: list[str] = []

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.watches and event in _STARTS:
            self.started.append(f"{event}{arguments[:2]}")
            raise AssertionError(f"a unit test starts no process; move it to tests/integration: {self.started[-1]}")


_guard = _Guard()
sys.addaudithook(_guard.hook)


@pytest.fixture(autouse=True)
def no_process_is_started() -> Iterator[None]:
    """Fail the test that starts a process, also where the code under test handles the error."""
    _guard.started.clear()
    _guard.watches = True
    yield
    _guard.watches = False
    assert not _guard.started
