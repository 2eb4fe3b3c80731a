"""Waiting for a service: what it does meanwhile, how long that took, and why it failed."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.cli import update, wait_ready
from shmserve.daemon.store.ingest_progress import IngestProgress
from tests.support.admin_command import admin, end_admin, served, staged, start_admin
from tests.support.daemon_process import POLICIES, Daemon, wait_until

_NO_ARM = """
import time

class Policy:
    def __init__(self, path, device):
        time.sleep(4)  # somebody waits by then
        raise ValueError("no arm")
"""


def _large(folder: Path) -> Path:
    package = folder / "large"
    shutil.copytree(POLICIES / "echo", package)
    with open(package / "weights.bin", "wb") as weights:
        weights.truncate(80_000_000)
    return package


@pytest.mark.parametrize("fault", ["at load", "at ingest"])
def test_wait_ready_reports_a_failed_service_at_once_with_reason_and_elapsed_time(
    fault: str, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "policy.py").write_text(_NO_ARM)
    daemon = make_daemon(package)
    if fault == "at ingest":
        daemon.environment["SHMSERVE_FAILPOINTS"] = "store.received=sleep:4,store.examined=raise:ENOSPC"
    waits = start_admin(daemon, "wait-ready", "--timeout", "3000")

    assert daemon.run_to_end() == 1
    done = end_admin(waits)

    assert done.returncode == 1, done.stderr
    said = re.search(r"service 't' is failed after ([0-9.]+) s: (.*)", done.stderr)
    assert said is not None and float(said[1]) < 3000
    assert ("no arm" if fault == "at load" else "No space left") in said[2]


def test_the_progress_of_an_upload_is_in_the_reply_the_status_and_the_log(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(_large(tmp_path))
    daemon.environment["SHMSERVE_FAILPOINTS"] = "ingest.before_sync=sleep:6"
    daemon.spawn()
    wait_until("it listens", (daemon.service_dir / "admin.sock").exists)
    wait_until("it takes in", lambda: (daemon.status()["ingest"] or {}).get("bytes", 0) > 0)

    done = admin(daemon, "wait-ready", "--timeout", "0.5")

    assert done.returncode == 1
    assert re.search(r"service 't' is starting: copied [0-9]+ of 80 MB after 0\.[0-9] s", done.stderr), done.stderr
    shown = admin(daemon, "status").stdout
    assert "ingesting" in shown and " of 80 MB" in shown
    daemon.wait_ready()
    assert daemon.status()["ingest"] is None
    assert f"ingesting {tmp_path}/large: 80 MB" in daemon.log

    daemon.stop()
    daemon.package = None
    daemon.start()

    assert f"no --model-path: version {served(daemon)} of {daemon.state_dir}" in daemon.log


def test_a_service_that_is_stopped_while_it_takes_its_model_in_ends_and_leaves_nothing(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(_large(tmp_path))
    daemon.environment["SHMSERVE_FAILPOINTS"] = "ingest.before_sync=sleep:600"
    daemon.spawn()
    wait_until("it listens", (daemon.service_dir / "admin.sock").exists)
    wait_until("it takes in", lambda: daemon.status()["ingest"] is not None)

    daemon.stop()

    assert staged(daemon) == []


def test_the_log_says_how_far_a_large_package_is_and_nothing_of_a_small_one(caplog: pytest.LogCaptureFixture) -> None:
    ingest = IngestProgress(report_interval_s=0.0)
    with caplog.at_level(logging.INFO), ingest.of("models/big", "receive") as report:
        report(0, 1_500_000_000)
        report(400_000_000, 1_500_000_000)
        assert ingest.to_json() == {
            "step": "receive",
            "source": "models/big",
            "bytes": 400_000_000,
            "of": 1_500_000_000,
        }
    with caplog.at_level(logging.INFO), ingest.of("models/small", "receive") as report:
        report(400, 1500)

    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["ingesting models/big: 1.5 GB", "ingesting models/big: 0.4 of 1.5 GB (26 %)"]
    assert len(lines) == 3 and lines[2].startswith("ingesting models/big: done after ")
    assert ingest.to_json() is None


def _receiving() -> Iterator[dict[str, Any]]:
    for done in (0, 400_000_000, 1_500_000_000):
        yield {"step": "receive", "elapsed_s": 0.1, "detail": {"bytes": done, "of": 1_500_000_000}, "result": None}
    yield {"step": "done", "elapsed_s": 1.5, "detail": {}, "result": {"changed": True}}


def test_an_update_says_how_much_of_the_package_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update.follow(_receiving(), quiet=False, report_interval_s=0.0)
    plain = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    update.follow(_receiving(), quiet=False, report_interval_s=0.0)
    on_terminal = capsys.readouterr().out

    assert plain == "  receive    26 % 100 %   1.400 s\n"
    assert "0.4 of 1.5 GB 26 %" in on_terminal and "1.5 of 1.5 GB 100 %" in on_terminal


def test_a_service_that_stopped_its_old_model_for_an_update_does_not_answer() -> None:
    assert wait_ready.answers({"state": "updating", "settled": True})
    assert not wait_ready.answers({"state": "updating", "settled": False})
    assert wait_ready.answers(json.loads('{"state": "ready", "settled": true}'))
