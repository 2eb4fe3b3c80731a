"""Waiting for a service: what it does meanwhile, how long that took, and why it failed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.cli import update, wait_ready
from shmserve.client.cli.connection import AdminConnection
from shmserve.daemon.store.ingest_progress import IngestProgress
from shmserve.errors import ServiceUnavailable
from tests.support.admin_command import admin, end_admin, served, staged, start_admin
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.gain_packages import gain_package
from tests.support.gate import Gate

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

    assert done.returncode == 4  # not ready yet, and not failed
    assert re.search(r"service 't' is starting: copied [0-9]+ of 80 MB after 0\.[0-9] s", done.stderr), done.stderr
    shown = admin(daemon, "status").stdout
    assert "package" in shown and "copied 80 of 80 MB" in shown
    daemon.wait_ready()
    assert daemon.status()["ingest"] is None
    assert f"ingesting {tmp_path}/large: 80 MB" in daemon.log

    daemon.stop()
    daemon.package = None
    daemon.start()

    assert f"no --model-path: version {served(daemon)} of {daemon.state_dir}" in daemon.log
    # The check of the version that it serves again.
    assert f"checking {tmp_path}/large: 80 MB" in daemon.log


def test_without_a_timeout_it_waits_while_bytes_come_and_while_the_model_loads(
    make_daemon: Callable[..., Daemon], gate: Gate, tmp_path: Path
) -> None:
    package = gain_package(tmp_path, 2, loads_behind=str(gate.path))
    for number in range(4):
        (package / f"{number}.bin").write_bytes(b"weights")
    daemon = make_daemon(package)
    # One file takes less than the time without progress, and all of them take more; so does the disk.
    daemon.environment["SHMSERVE_FAILPOINTS"] = "ingest.before_file=sleep:1,ingest.before_sync=sleep:5"
    seen = list[tuple[str, int]]()
    daemon.spawn()

    def report(found: dict[str, Any]) -> None:
        seen.append((found["state"], (found["ingest"] or {}).get("bytes", 0)))
        if [state for state, _ in seen].count("loading") == 4:
            gate.open()

    found = wait_ready.wait_until_ready(_connection(daemon), None, report, stall_s=3.0)

    assert found["state"] == "ready"
    assert len({count for state, count in seen if state == "starting"}) > 2, seen


def test_without_a_timeout_it_ends_when_nothing_moves(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(_large(tmp_path))
    daemon.environment["SHMSERVE_FAILPOINTS"] = "ingest.in_file=sleep:600"
    daemon.spawn()

    found = wait_ready.wait_until_ready(_connection(daemon), None, stall_s=3.0)

    assert (found["state"], found["settled"]) == ("starting", False)
    daemon.stop()


def test_without_a_timeout_it_waits_for_a_daemon_that_was_killed_but_not_for_one_after_the_other(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(_large(tmp_path))
    daemon.environment["SHMSERVE_FAILPOINTS"] = "ingest.before_sync=sleep:20"
    killed = 0

    def report(found: dict[str, Any]) -> None:
        nonlocal killed
        killed += 1
        daemon.kill9()
        daemon.spawn()

    daemon.spawn()
    with pytest.raises(ServiceUnavailable):
        wait_ready.wait_until_ready(_connection(daemon), None, report, stall_s=30.0)

    assert killed == 3
    daemon.kill9()


def _connection(daemon: Daemon) -> Callable[[], AdminConnection]:
    return lambda: AdminConnection(daemon.name, daemon.runtime_dir)


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
    async def run() -> None:
        ingest = IngestProgress(report_interval_s=0.02)
        with ingest.of("models/big", "receive") as report:
            report(0, 1_500_000_000)
            report(400_000_000, 1_500_000_000)
            assert ingest.to_json() == {
                "step": "receive",
                "source": "models/big",
                "bytes": 400_000_000,
                "of": 1_500_000_000,
            }
            # Nothing more is reported: the disk writes, or the source hangs.
            while len(caplog.records) < 3:
                await asyncio.sleep(0.01)
        with ingest.of("models/small", "receive") as report:
            report(400, 1500)
            await asyncio.sleep(0.1)
        assert ingest.to_json() is None

    with caplog.at_level(logging.INFO):
        asyncio.run(run())

    lines = [record.getMessage() for record in caplog.records]
    assert lines[:3] == ["ingesting models/big: 1.5 GB", *2 * ["ingesting models/big: 0.4 of 1.5 GB (26 %)"]]
    assert set(lines[3:-1]) <= {lines[1]} and lines[-1].startswith("ingesting models/big: done after ")


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
