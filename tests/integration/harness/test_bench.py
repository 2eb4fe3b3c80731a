"""The benchmarks measure what they say, with what a developer has installed; none of this asserts a time."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import bench
from bench import (
    check,
    distances,
    plots,
    profile_request,
    rates,
    ratios,
    readme_table,
    report,
    results,
    run,
    stages,
    targets,
    varying,
)
from bench.floors.floor import floors
from bench.peers.all_peers import all_peers
from bench.peers.asking import Asking
from bench.peers.crowd import measure_crowd
from bench.peers.in_process import InProcess
from bench.peers.leftovers import PREFIX, sweep
from bench.peers.peer import HOW_TO_GET, Infer
from bench.peers.policy import Policy
from bench.peers.shmserve_peer import POLICY, ShmservePure
from bench.peers.side_by_side import measure
from bench.peers.unix_socket_pickle5 import UnixSocketPickle5
from bench.scale.all_scales import SCALES
from bench.scale.figure import NotMeasured
from bench.service import Service
from bench.states import STATES
from bench.workloads import BUILDERS, WrongReply, workload
from tests.support.daemon_process import is_running, wait_until

pytestmark = pytest.mark.long

BESIDE = UnixSocketPickle5.name
#: These belong to another program's environment.
FOREIGN = {"bench.peers.triton_model"}
MODULES = [found.name for found in pkgutil.walk_packages(bench.__path__, "bench.") if found.name not in FOREIGN]


@pytest.mark.parametrize("name", MODULES)
def test_the_example_in_the_docstring_of_a_benchmark_holds(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))

    assert found.failed == 0


def test_a_package_that_is_missing_is_said_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec

    def only_ours(name: str, package: str | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] in ("torch", "posix_ipc", "numpy"):
            return find_spec(name, package)
        if "." in name:  # as it does where the package around it is missing
            raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")
        return None

    monkeypatch.setattr(importlib.util, "find_spec", only_ours)
    said = {peer.name: peer.available() for peer in all_peers()}

    assert said["lerobot-grpc"] == f"not installed: grpc, google.protobuf ({HOW_TO_GET})"
    assert said["torchrl-slots"] == f"not installed: torchrl, tensordict ({HOW_TO_GET})"
    assert said["shmserve"] is None and all(
        HOW_TO_GET in str(said[name]) for name in ("openpi-websocket", "gr00t-zmq-tcp")
    )
    with pytest.raises(SystemExit) as refused:
        run.main(["--report"])
    assert refused.value.code == 2 and "matplotlib, which is not installed" in capsys.readouterr().err


# Requests and their answers


@pytest.mark.parametrize("name", BUILDERS)
def test_a_reply_to_another_request_does_not_pass(name: str) -> None:
    asked, policy = workload(name), Policy()
    asked.stamp(7)
    reply = policy.infer(asked.observation)

    asked.verify(reply, 7)
    with pytest.raises(WrongReply, match="request 8"):
        asked.verify(reply, 8)
    with pytest.raises(WrongReply, match="actions"):
        asked.verify({**reply, "actions": reply["actions"] + 1}, 7)


class Stale(InProcess):
    """Answers everything from the third request on with the answer to the first."""

    name = "stale"

    def connect(self) -> Infer:
        policy = Policy()
        answers: list[dict[str, Any]] = []

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            answers.append(policy.infer(observation))
            return answers[-1] if len(answers) < 3 else answers[0]

        return infer


class Dying(InProcess):
    """Its client ends in the middle of a request."""

    name = "dying"

    def connect(self) -> Infer:
        return lambda observation: os._exit(3)


def test_a_way_that_answers_wrongly_or_dies_fails_and_the_others_are_measured() -> None:
    rows = {row.name: row for row in measure([Stale(), Dying(), InProcess()], [], "tiny", 0.02, 2)}

    assert "WrongReply" in (rows["stale"].failed or "")
    assert "status 3" in (rows["dying"].failed or "")
    assert rows["in-process"].figures()["requests"] > 0
    assert "failed" in measure_crowd(Stale(), "tiny", [1], 0.02, 1, 100.0)


def test_the_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    asked, policy = workload("tiny"), Policy()

    def slow(observation: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        return policy.infer(observation)

    sample = Asking(slow, asked).open(seconds=0.3, rate_hz=1000.0, seed=1)

    # Ten times more requests are due than can be answered: each waits for those before it.
    assert sample.latency_ns.max() > 100_000_000
    assert sample.unsent > 100
    due = np.cumsum(np.random.default_rng(1).exponential(1e6, 1000).astype(np.int64))
    assert len(sample.latency_ns) == int(np.sum(due < 300_000_000))


def test_the_floors_do_the_exchange_that_they_say() -> None:
    asked = workload("w1")
    with floors() as beside:
        found = {floor.name: floor.turn(asked, 0.05) for floor in beside}

    if len(os.sched_getaffinity(0)) > 1:
        assert "Python, 2 copies, spin" in found
        assert ("C, 2 copies, sleep" in found) == bool(shutil.which("gcc") or shutil.which("cc"))
    assert all(len(sample.latency_ns) > 0 and sample.latency_ns.min() > 0 for sample in found.values())


class Configured(InProcess):
    """Its client answers only where a variable of this peer is set."""

    name = "configured"
    environment: Mapping[str, str] = MappingProxyType({"SHMSERVE_BENCH_TEST": "set"})

    def connect(self) -> Infer:
        if os.environ.get("SHMSERVE_BENCH_TEST") != "set":
            raise RuntimeError("the variable is not set")
        return super().connect()


def test_the_variables_of_a_way_are_those_of_its_clients_alone() -> None:
    (row,) = measure([Configured()], [], "tiny", 0.02, 1)

    assert row.failed is None
    assert "SHMSERVE_BENCH_TEST" not in os.environ
    assert ShmservePure().environment == {"SHMSERVE_PURE": "1"}


# Services


def test_the_variables_of_a_service_are_those_of_its_daemon() -> None:
    with Service(POLICY, environment={"SHMSERVE_PURE": "1"}) as service:
        (pid,) = service.pids()

        assert b"SHMSERVE_PURE=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_a_service_leaves_nothing_behind() -> None:
    service = Service(POLICY)
    service.start()
    pids, folder = service.pids(), service.folder
    with service.client() as client:
        assert client.infer({"x": np.arange(3, dtype=np.uint64)})["check"] == 3

    service.stop()
    service.stop()

    assert not folder.exists()
    assert not any(map(is_running, pids))


def test_the_bench_reports_a_daemon_that_cannot_start_with_its_log(tmp_path: Path) -> None:
    policy = tmp_path / "policy.py"
    policy.write_text("raise RuntimeError('this policy is broken on purpose')\n")

    with pytest.raises(ConnectionError, match="broken on purpose"):
        Service(policy).start()


def test_a_killed_benchmark_takes_its_daemon_with_it() -> None:
    program = (
        "import json, time\n"
        "from bench.peers.shmserve_peer import POLICY\n"
        "from bench.service import Service\n"
        "service = Service(POLICY)\n"
        "service.start()\n"
        "print(json.dumps([service.pids(), str(service.folder)]), flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(report.__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root) as benchmark:
        assert benchmark.stdout is not None
        pids, folder = json.loads(benchmark.stdout.readline())
        assert all(map(is_running, pids))

        benchmark.send_signal(signal.SIGKILL)

    wait_until("the daemon has ended", lambda: not any(map(is_running, pids)))
    sweep()
    assert not Path(folder).exists()


def test_a_sweep_removes_only_leftovers_of_ended_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.leftovers.PLACES", (tmp_path,))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"{PREFIX}{ended.pid}-folder").mkdir()
    (tmp_path / f"{PREFIX}{ended.pid}-file").touch()
    (tmp_path / f"{PREFIX}{os.getpid()}-file").touch()
    (tmp_path / "somebody-elses").touch()

    sweep()

    assert {left.name for left in tmp_path.iterdir()} == {f"{PREFIX}{os.getpid()}-file", "somebody-elses"}


# Whole runs


@pytest.fixture(scope="module")
def document() -> Iterator[results.Document]:
    """A run of what needs no further packages, without bench/scale, which has tests of its own."""
    plan = run.Plan(
        seconds=0.1,
        rounds=2,
        parts=("closed_loop", "varying", "clients"),
        states=("quiet", "busy"),
        loaded_workloads=("tiny",),
        varying_workloads=("fixed", "points"),
        peers=("in-process", "unix-socket-pickle5", "shmserve", "shmserve-in-place"),
        workloads=("tiny",),
        clients=(1, 2),
    )
    kept: list[results.Document] = []
    with open(os.devnull, "w") as nowhere:
        running = run.Run(plan, Console(file=nowhere), kept.append)
        found = running.run()
    assert running.failed == []
    assert len(kept) == 3
    yield results.rounded(found)


def test_a_run_measures_each_way_with_each_number_of_clients(document: results.Document) -> None:
    rows = {row["name"]: row for row in document["closed_loop"]["tiny"]["rows"]}
    assert {"in-process", "unix-socket-pickle5", "shmserve", "shmserve-in-place"} <= set(rows)
    for row in rows.values():
        assert row["requests"] > 0
        assert len(row["round_p50_us"]) == 2
        assert row["quantiles_us"] == sorted(row["quantiles_us"])
    for row in document["clients"]["rows"]:
        assert set(row["clients"]) == {"1", "2"}
        assert 0.5 <= row["clients"]["2"]["jain"] <= 1
        assert row["open_loop"]["requests"] > 0
    assert 0 <= document["closed_loop"]["tiny"]["other_cpu_share"] <= 1


def test_a_run_measures_each_state_and_the_share_of_its_busy_programs(document: results.Document) -> None:
    busy = document["states"]["busy"]["closed_loop"]["tiny"]

    assert {row["name"] for row in busy["rows"]} == {row["name"] for row in document["closed_loop"]["tiny"]["rows"]}
    assert document["closed_loop"]["tiny"]["loops_cpu_share"] == 0.0
    assert 0 < busy["loops_cpu_share"] <= 1
    assert "disturbed" not in document["states"]


def test_a_run_finds_the_distances_of_what_it_measured(document: results.Document) -> None:
    found = {(one.what, one.state): one.value for one in distances.distances(document)}

    ways = {row["name"] for row in document["closed_loop"]["tiny"]["rows"]}
    for state in ("quiet", "busy"):
        assert (found["tiny, p50: pickle-5 over a Unix socket to shmserve", state] or 0) > 0
        if distances.PY2 in ways:
            assert (found["tiny, p50: shmserve to Py2", state] or 0) > 0
    assert found["tiny, p50: shmserve to Py2", "disturbed"] is None
    assert found["vga, p50: shmserve to Py2", "quiet"] is None
    assert (found["varying points, p50: to the fixed observation", "quiet"] or 0) > 0


def test_results_are_read_as_they_were_written(document: results.Document, tmp_path: Path) -> None:
    results.write(tmp_path / "kept.json", document)

    assert results.read(tmp_path / "kept.json") == document
    (tmp_path / "old.json").write_text(json.dumps({**document, "format": 0}))
    with pytest.raises(ValueError, match="make bench"):
        results.read(tmp_path / "old.json")


def test_a_report_shows_every_way_and_draws_the_pictures(document: results.Document, tmp_path: Path) -> None:
    (tmp_path / report.PAGES).mkdir()
    (tmp_path / report.PAGES / "performance.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")

    report.write(document, tmp_path)

    page = (tmp_path / report.PAGES / "benchmarks.md").read_text()
    for row in document["closed_loop"]["tiny"]["rows"]:
        assert f"| {row['name']} |" in page
    assert "## Several clients" in page and "## Varying sizes" in page
    assert "### Busy" in page and "### Disturbed" not in page
    assert (tmp_path / "images" / "latency-by-payload.png").read_bytes().startswith(b"\x89PNG")
    performance = (tmp_path / report.PAGES / "performance.md").read_text()
    assert performance.startswith("before\n")
    assert performance.endswith("after\n")
    assert "old" not in performance


def test_the_stages_of_a_request_add_up_to_its_round_trip() -> None:
    found = stages.measure(["tiny"], 0.05)["tiny"]

    assert set(found) == {"staged", "in place"}
    for medians in found.values():
        assert all(medians[stage] >= 0 for stage in stages.STAGES)
        assert medians["round_trip"] > medians["infer"] > 0


def test_a_profile_has_every_step() -> None:
    found = profile_request.measure(["tiny"], 0.2)["tiny"]

    assert list(found["steps"]) == [key for key, _, _ in profile_request.STEPS]
    assert found["staged"]["steps"] <= sum(found["steps"].values()) + 1e-9
    assert found["staged"]["least"] <= found["staged"]["p50"]


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_benchmark_finds_its_figures(name: str) -> None:
    _, scale = SCALES[name]
    try:
        figures = scale(0.2)
    except NotMeasured:
        assert name == "kernel_entries"  # Neither strace nor perf, or they may not attach.
        return

    assert len({figure.name for figure in figures}) == len(figures) > 0
    for figure in figures:
        assert np.isfinite(figure.value)
        assert figure.value >= 0
    asked = {key for benchmark, key, *_ in targets.SCALES if benchmark == name}
    asked |= {key for benchmark, key in ratios.SCALES if benchmark == name}
    assert asked <= {figure.name for figure in figures}


# Comparing


def made_up(*, shmserve_us: float = 50.0, busy_us: float = 60.0, jain: float = 1.0) -> results.Document:
    """Results as far as the comparisons read them."""

    def loops(shmserve_us: float) -> dict[str, Any]:
        p50_us = {
            "shmserve": shmserve_us,
            "shmserve-in-place": 40.0,
            "unix-socket-pickle5": 200.0,
            "Python, 2 copies, spin": 45.0,
            "Python, 1 copy, spin": 35.0,
            "C, 2 copies, sleep": 40.0,
            "flask-pickle": 3000.0,
            "iceoryx2-event": 100.0,
        }
        rows = [
            {"name": name, "p50_us": us, "p99_us": 3 * us, "round_p50_us": [us, 2 * us]} for name, us in p50_us.items()
        ]
        return {name: {"rows": rows} for name in ratios.WORKLOADS}

    varied = {
        name: [{"name": way, "p50_us": us, "round_p50_us": [us, us]} for way, us in (("shmserve", us), (BESIDE, 180.0))]
        for name, us in (("fixed", 50.0), ("points", 60.0), ("detections", 200.0))
    }
    figure = {"what": "", "unit": "x", "floor": None, "floor_what": ""}
    return {
        "format": results.FORMAT,
        "machine": {"cpu": "x", "cpus": 2, "kernel": "y"},
        "closed_loop": loops(shmserve_us),
        "states": {"busy": {"closed_loop": loops(busy_us)}},
        "varying": {"workloads": varied},
        "scale": {"fairness": {"title": "", "figures": [{**figure, "name": "jain", "value": jain}]}},
    }


def compared(kept: results.Document, now: results.Document, folder: Path) -> int:
    results.write(folder / "kept.json", kept)
    results.write(folder / "now.json", now)
    return check.main(["--against", str(folder / "kept.json"), "--results", str(folder / "now.json")])


def test_a_check_accepts_equal_results_and_refuses_worse_ones(tmp_path: Path) -> None:
    assert compared(made_up(), made_up(), tmp_path) == 0
    assert compared(made_up(), made_up(shmserve_us=30.0), tmp_path) == 0
    assert compared(made_up(), made_up(shmserve_us=100.0), tmp_path) == 1
    assert compared(made_up(), made_up(busy_us=150.0), tmp_path) == 1
    assert compared(made_up(), made_up(jain=0.9), tmp_path) == 1


def test_a_check_refuses_a_run_that_lacks_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = made_up()
    del without["scale"]

    assert compared(made_up(), without, tmp_path) == 1
    assert "not measured" in capsys.readouterr().out


def test_a_check_compares_ratios_and_not_times(tmp_path: Path) -> None:
    slower = made_up()
    for found in slower["closed_loop"].values():
        for row in found["rows"]:
            row["round_p50_us"] = [3 * us for us in row["round_p50_us"]]
            row["p99_us"] *= 3

    assert compared(made_up(), slower, tmp_path) == 0


def test_a_check_without_reference_results_names_the_command_that_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check.main(["--against", str(tmp_path / "none.json")])

    assert "make bench" in capsys.readouterr().err


def test_a_target_is_met_missed_or_not_measured() -> None:
    found = {target.what: target for target in targets.targets(made_up())}

    assert found["Jain's index of three saturating clients"].met is True
    assert found["attach"].met is None


def test_a_distance_is_met_missed_or_not_measured() -> None:
    found = {(one.what, one.state): one for one in distances.distances(made_up())}

    assert found["tiny, p50: shmserve to Py2", "quiet"].value == pytest.approx(50 / 45)
    assert found["tiny, p50: shmserve to Py2", "quiet"].met is False
    assert found["tiny, p50: shmserve to Py2", "busy"].value == pytest.approx(60 / 45)
    assert found["tiny, p50: shmserve to Py2", "busy"].met is True
    assert found["tiny, p50: shmserve to Py2", "disturbed"].met is None
    assert found["vga, p50: Flask + pickle to shmserve", "quiet"].met is True
    assert found["vga, p50: openpi to shmserve", "quiet"].value is None
    # The better of the floors, and the best of the peers, which shmserve and the floors are not.
    assert found["vga, p99: shmserve to the better of Py2 and C asleep", "quiet"].value == pytest.approx(50 / 40)
    assert found["vga, p99: shmserve to the best peer", "busy"].value == pytest.approx(60 / 100)
    assert found["varying points, p50: to the fixed observation", "quiet"].value == pytest.approx(1.2)
    assert found["varying detections, p50: to the fixed observation", "quiet"].met is False
    socket = "varying detections, p50: pickle-5 over a Unix socket to shmserve"
    assert found[socket, "quiet"].value == pytest.approx(0.9) and found[socket, "quiet"].met is False


def test_a_check_compares_only_distances_that_it_measures() -> None:
    known = {*ratios.WAYS, distances.PY2, distances.PY1, distances.C_ASLEEP}
    compares = {one.name for one in ratios.ratios(made_up())}

    assert {"tiny, p50: shmserve to Py2", "tiny, p50: shmserve to Py2, busy"} <= compares
    assert not any("Flask" in name or "peer" in name for name in compares)
    assert set(check.plan(1.0).peers) <= known
    assert tuple(check.plan(1.0).states) == tuple(STATES)


def test_every_way_that_is_named_somewhere_exists() -> None:
    ways = {peer.name for peer in all_peers()}

    assert {other for other, _, _ in distances.PEERS} <= ways
    assert {*ratios.WAYS, *distances.FLOOR_OF, BESIDE} <= ways
    assert {peer.name for peer in varying.ways()} <= ways
    assert UnixSocketPickle5().available() is None


def test_every_line_of_a_picture_is_a_way_that_differs_from_the_others_without_colour() -> None:
    rows = results.read(results.path_of(results.REFERENCE))["closed_loop"][plots.DISTRIBUTION_OF]["rows"]

    assert set(plots.LINES) <= {row["name"] for row in rows}
    assert len({(line.dashes, line.marker) for line in plots.LINES.values()}) == len(plots.LINES)
    assert len({hatch or colour for colour, hatch in plots.STAGE_STYLES.values()}) == len(plots.STAGE_NAMES)


def test_the_documents_show_the_results_that_are_kept() -> None:
    kept = results.read(results.path_of(results.REFERENCE))

    assert (report.DOCS / report.PAGES / "benchmarks.md").read_text() == report.benchmarks(
        kept, report.kept(results.STATES_RUN), rates.kept_run(), report.kept(results.SCALES_RUN)
    )
    performance = (report.DOCS / report.PAGES / "performance.md").read_text()
    assert performance == report.with_block(performance, kept)
    assert all((report.DOCS / "images" / name).exists() for name in plots.PICTURES)
    for readme in ((report.DOCS.parent / name).read_text() for name in report.READMES):
        assert readme == readme_table.with_figures(readme, kept)
