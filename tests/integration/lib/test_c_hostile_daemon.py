"""A daemon that lies cannot make a C client read outside its mapping, nor end it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.c_library import compile_program
from tests.support.daemon_process import environment
from tests.support.folders import SUPPORT
from tests.support.lying_daemon import lying


@pytest.fixture(scope="session")
def victim() -> Path:
    return compile_program(SUPPORT / "c_programs/victim.c", checks="addresses")


@pytest.mark.parametrize("lies", [0.0, 0.4], ids=["lies in memory", "lies everywhere"])
@pytest.mark.parametrize("seconds", [pytest.param(2, id="short"), pytest.param(60, id="long", marks=pytest.mark.long)])
def test_heads_metadata_and_sizes_of_any_value_are_survived(victim: Path, lies: float, seconds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="shmserve-") as folder, lying(Path(folder), "t", lies=lies):
        ended = subprocess.run(
            [victim, folder, "t", str(seconds)],
            check=False,
            capture_output=True,
            text=True,
            env={**environment(), "UBSAN_OPTIONS": "print_stacktrace=1"},
            timeout=140,
        )

    assert ended.returncode == 0, ended.stderr
    counts = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", ended.stdout)}
    assert all(counts[name] for name in ("attached", "asked", "answered", "refused"))
