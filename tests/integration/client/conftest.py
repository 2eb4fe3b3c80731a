"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmserve.client import (
    ShmClient,
)
from tests.support.daemon_process import Daemon


@pytest.fixture
def robot(echo: Daemon) -> Iterator[ShmClient]:
    with echo.client() as client:
        yield client
