"""shmserve-admin doctor on this machine: beside a daemon, and where /dev/shm is too small."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.support.admin_command import COMMAND, admin
from tests.support.daemon_process import Daemon, environment
from tests.support.own_mounts import needs_mounts


def levels(found: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in found["findings"]}


def test_the_machine_and_a_running_daemon_are_examined_and_nothing_changes(echo: Daemon) -> None:
    before = echo.status()

    done = admin(echo, "doctor", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["problems"] else 0), done.stderr
    assert found["service"] == echo.name
    assert levels(found)["service"] == "ok"
    assert {
        "kernel",
        "processors",
        "clock",
        "shared memory",
        "open files",
        "memory limit",
        "PyTorch",
        "core",
    } <= levels(found).keys()
    for finding in found["findings"]:
        assert finding["found"]
        assert bool(finding["remedy"]) == (finding["level"] != "ok"), finding
    (service,) = (each["found"] for each in found["findings"] if each["check"] == "service")
    assert service.startswith(f"pid {echo.pid} of uid ") and "is ready, serves echo" in service
    after = echo.status()
    assert (after["pid"], after["engine"]["pid"]) == (before["pid"], before["engine"]["pid"])
    text = admin(echo, "doctor").stdout
    assert text.splitlines()[-1] == f"{len(found['findings'])} checks: " + text.splitlines()[-1].partition(": ")[2]


@needs_mounts
def test_a_tiny_shared_memory_is_a_problem_with_the_remedy() -> None:
    mounted = f"mount -t tmpfs -o size=4m tmpfs /dev/shm; exec {COMMAND} --name no-such-service doctor --json"

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", mounted],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )

    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["problems"] >= 1
    (memory,) = (finding for finding in found["findings"] if finding["check"] == "shared memory")
    assert memory["level"] == "problem"
    assert "4 MiB free of 4 MiB" in memory["found"]
    assert "mount -o remount,size=1G /dev/shm" in memory["remedy"]
    assert levels(found)["service"] == "ok"
