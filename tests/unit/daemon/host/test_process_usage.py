"""Processor time and memory of a process, from texts of /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmserve.daemon.host.process_usage import ProcessUsage, process_usage

_FIELDS = "S 1 7 7 0 -1 4194304 9 0 0 0 {user} {system} 0 0 20 0 4 0 100 500000000 {pages} 18446744073709551615"


def stat(folder: Path, name: str, **fields: int) -> Path:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "stat").write_text(f"7 ({name}) " + _FIELDS.format(**fields))
    return folder


@pytest.mark.parametrize("name", ["python3", "a) S 1 (b"])
def test_the_name_of_a_process_is_not_taken_for_its_figures(tmp_path: Path, name: str) -> None:
    proc = stat(tmp_path, name, user=250, system=50, pages=1000)

    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert process_usage(7, proc) == ProcessUsage(300 / ticks, 1000 * page)


def test_a_process_that_has_ended_has_no_usage(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert process_usage(7, tmp_path) is None
    (tmp_path / "7" / "stat").write_text("")
    assert process_usage(7, tmp_path) is None


def test_this_process_has_used_time_and_memory() -> None:
    usage = process_usage(os.getpid())

    assert usage is not None and usage.cpu_s > 0 and usage.resident_bytes > 1 << 20
