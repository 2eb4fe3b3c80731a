"""The numbers as OpenMetrics: a foreign parser reads them, and they say what happened."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as older_families

from shmserve.client import ShmClient
from shmserve.errors import InferenceFailed
from tests.support.daemon_process import SHMSERVED, Daemon, wait_until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with Daemon("obedient") as daemon:
        yield daemon


@pytest.fixture
def daemon(own: Daemon) -> Daemon:
    """Not that of all tests: it has no clients but a test's, and one test ends its engine."""
    wait_until("the clients of other tests are gone", lambda: not own.status()["clients"])
    return own


def admin(daemon: Daemon, *arguments: object) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        SHMSERVED.with_name("shmserve-admin"),
        "--name",
        daemon.name,
        "--runtime-dir",
        daemon.runtime_dir,
    ]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def samples(text: str) -> Samples:
    """Every sample by its name and its labels but the service, as the reference parser of OpenMetrics reads it."""
    return {
        (sample.name, tuple(sorted(pair for pair in sample.labels.items() if pair[0] != "service"))): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def since(before: Samples, after: Samples) -> Samples:
    """By how much each sample has grown."""
    return {key: value - before.get(key, 0) for key, value in after.items()}


def test_the_counters_match_the_requests(daemon: Daemon) -> None:
    before = samples(admin(daemon, "metrics").stdout)
    counted = daemon.status()["requests"]
    with daemon.client() as client:
        for _ in range(7):
            client.infer({"do": "count"})
        with pytest.raises(InferenceFailed):
            client.infer({"do": "raise", "text": "no"})
        client.reset()
        daemon.wait_counted(served=counted["served"] + 8, failed=counted["failed"] + 1)
        found = samples(admin(daemon, "metrics").stdout)

    grown = since(before, found)
    assert grown["shmserve_requests_total", (("result", "served"),)] == 8, "the reset is one of them"
    assert grown["shmserve_requests_total", (("result", "failed"),)] == 1
    assert grown["shmserve_resets_total", ()] == 1
    assert found["shmserve_clients", ()] == 1
    assert found["shmserve_state", (("shmserve_state", "ready"),)] == 1
    assert found["shmserve_state", (("shmserve_state", "loading"),)] == 0
    assert grown["shmserve_stage_seconds_count", (("stage", "total"),)] == 7
    assert grown["shmserve_stage_seconds_count", (("stage", "infer"),)] == 7
    (served,) = (value for (name, _), value in found.items() if name == "shmserve_client_requests_total")
    assert served == 8
    assert ("shmserve_model_info", (("device", "cpu"), ("name", "obedient"))) in {
        (name, tuple(pair for pair in labels if pair[0] != "version")) for name, labels in found
    }


def test_the_histograms_add_up(daemon: Daemon) -> None:
    before = samples(admin(daemon, "metrics").stdout)
    counted = daemon.status()["requests"]["served"]
    with daemon.client() as client:
        for _ in range(50):
            client.infer({"do": "count"})
    daemon.wait_counted(served=counted + 50)

    found = since(before, samples(admin(daemon, "metrics").stdout))

    for stage in ("queued", "staged", "infer", "copied", "total"):
        buckets = sorted(
            (float(dict(labels)["le"]), value)
            for (name, labels), value in found.items()
            if name == "shmserve_stage_seconds_bucket" and dict(labels)["stage"] == stage
        )
        counts = [count for _, count in buckets]
        assert counts == sorted(counts) and counts[-1] == 50
        assert buckets[-1][0] == float("inf")
        total_s = found["shmserve_stage_seconds_sum", (("stage", stage),)]
        assert 0 < total_s < 50 * max(bound for bound, _ in buckets[:-1])


def test_counts_outlive_the_engine_that_counted(daemon: Daemon) -> None:
    before = samples(admin(daemon, "metrics").stdout)
    counted = daemon.status()["requests"]
    with daemon.client() as client:
        client.infer({"do": "count"})
        with pytest.raises(Exception, match="engine"):
            client.infer({"do": "exit"})
        daemon.wait_ready()
        client.infer({"do": "count"})
        daemon.wait_counted(served=counted["served"] + 2, lost=counted["lost"] + 1)

        found = since(before, samples(admin(daemon, "metrics").stdout))

    assert found["shmserve_requests_total", (("result", "served"),)] == 2
    assert found["shmserve_requests_total", (("result", "lost"),)] == 1
    assert found["shmserve_engine_restarts_total", ()] == 2
    assert found["shmserve_stage_seconds_count", (("stage", "infer"),)] == 2, "as the total"


def test_a_client_s_name_cannot_break_the_format(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ['evil"} 1\n\\# EOF'])
    counted = daemon.status()["requests"]["served"]
    with ShmClient(daemon.name, runtime_dir=daemon.runtime_dir, timeout=60.0) as client:
        client.infer({"do": "count"})
        daemon.wait_counted(served=counted + 1)

        found = samples(admin(daemon, "metrics").stdout)

    programs = {dict(labels)["program"] for name, labels in found if name == "shmserve_client_requests_total"}
    assert programs == {'evil"} 1\\# EOF'}, "what cannot be printed is left out"


def test_the_daemon_replaces_the_text_file_atomically_and_readable_for_the_collector(
    obedient: Daemon, tmp_path: Path
) -> None:
    target = tmp_path / "shmserve.prom"
    target.write_text("what was there\n")
    before = target.stat().st_ino

    result = admin(obedient, "metrics", "--textfile", target)

    assert (result.returncode, result.stdout) == (0, "")
    assert target.stat().st_ino != before, "another file under the same name"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["shmserve.prom"]
    families = {family.name: family for family in older_families(target.read_text())}  # node_exporter's format
    assert families["shmserve_requests"].type == "counter" and families["shmserve_stage_seconds"].type == "histogram"
    (up,) = families["shmserve_up"].samples
    assert (up.labels, up.value) == ({"service": obedient.name}, 1)


def test_a_text_file_that_cannot_be_written_is_an_error_and_leaves_nothing(obedient: Daemon, tmp_path: Path) -> None:
    result = admin(obedient, "metrics", "--textfile", tmp_path / "no" / "shmserve.prom")

    assert result.returncode == 1
    assert "No such file" in result.stderr


def test_without_a_daemon_there_are_no_metrics(tmp_path: Path) -> None:
    command: list[str | Path] = [SHMSERVED.with_name("shmserve-admin"), "--runtime-dir", tmp_path, "metrics"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (result.returncode, result.stdout) == (3, "")


def test_without_a_daemon_the_text_file_says_so_and_has_no_older_figures(tmp_path: Path) -> None:
    target = tmp_path / "shmserve.prom"
    target.write_text("shmserve_requests_total 7\n")
    command: list[str | Path] = [SHMSERVED.with_name("shmserve-admin"), "--runtime-dir", tmp_path, "--name", "arm"]

    result = subprocess.run([*command, "metrics", "--textfile", target], timeout=60, capture_output=True, check=False)

    assert result.returncode == 3
    (family,) = older_families(target.read_text())
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == [
        ("shmserve_up", {"service": "arm"}, 0)
    ]
