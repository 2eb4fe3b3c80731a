"""Benchmark at the rate of a robot: its beats, its ways and its floors; none of this asserts a time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import shmserve.client
from bench import cold_work, rates, report, results
from bench.floors.asleep_python import AsleepPython
from bench.floors.floor import CFloor, floors
from bench.peers import asking
from bench.peers.asking import LEAD_IN_BEATS, Asking
from bench.peers.in_process import InProcess
from bench.peers.peer import Infer
from bench.peers.policy import Policy
from bench.peers.shmserve_at_rate import ShmserveAtRate, ShmserveExpect, ShmserveNoWakeAhead
from bench.policies import marked
from bench.scale import regular_service, spin_settings
from bench.scale.figure import NotMeasured
from bench.workloads import WrongReply, workload
from shmserve.daemon.config.config import Config

MS = 1_000_000


class Clock:
    """Replacement for the module `time` in which only a sleep and a request take time."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now

    process_time_ns = monotonic_ns

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    replacement = Clock()
    monkeypatch.setattr(asking, "time", replacement)
    return replacement


def asked_at(clock: Clock, took_ms: Callable[[int], int], log: list[int]) -> Infer:
    """An `infer` that takes this long for its n-th request, and logs in ms when each began."""
    policy = Policy()

    def infer(observation: dict[str, Any]) -> dict[str, Any]:
        log.append(clock.now // MS)
        clock.now += took_ms(len(log)) * MS
        return policy.infer(observation)

    return infer


def test_every_request_begins_at_its_beat_however_long_the_replies_take(clock: Clock) -> None:
    began: list[int] = []

    sample = Asking(asked_at(clock, lambda n: n % 19, began), workload("tiny")).paced(1.0, 50.0)

    assert {later - earlier for earlier, later in pairwise(began)} == {20}
    assert len(sample.latency_ns) == 50 == len(began) - LEAD_IN_BEATS
    assert sample.missed == 0


def test_a_beat_that_passes_during_a_request_is_missed_and_the_next_one_is_kept(clock: Clock) -> None:
    began: list[int] = []
    slow = LEAD_IN_BEATS + 3

    sample = Asking(asked_at(clock, lambda n: 45 if n == slow else 1, began), workload("tiny")).paced(1.0, 50.0)

    assert sample.missed == 2 and len(sample.latency_ns) == 48
    assert began[slow] - began[slow - 1] == 60
    assert max(sample.latency_ns) == 45 * MS


@pytest.mark.parametrize("slow", [LEAD_IN_BEATS, LEAD_IN_BEATS + 50], ids=["in the lead-in", "at the end"])
def test_each_measured_beat_has_a_request_or_is_missed_and_no_other_beat_counts(clock: Clock, slow: int) -> None:
    infer = asked_at(clock, lambda n: 45 if n == slow else 1, [])

    sample = Asking(infer, workload("tiny")).paced(1.0, 50.0)

    assert len(sample.latency_ns) + sample.missed == 50


@pytest.mark.parametrize(("rate_hz", "ahead_ms"), [(50.0, 3), (250.0, 2)])
def test_an_announcement_is_made_before_each_beat(clock: Clock, rate_hz: float, ahead_ms: int) -> None:
    began: list[int] = []
    announced: list[int] = []
    infer = asked_at(clock, lambda _: 1, began)

    Asking(infer, workload("tiny"), lambda: announced.append(clock.now // MS), 3 * MS).paced(0.2, rate_hz)

    assert [beat - ahead_ms for beat in began] == announced != []


@pytest.mark.parametrize("name", ["tiny", "vga"])
def test_the_sleeping_floor_in_python_answers_each_request(name: str) -> None:
    asked = workload(name)
    infer = AsleepPython().connect()

    for count in range(1, 5):
        asked.stamp(count)
        asked.verify(infer(asked.observation), count)

    asked.stamp(9)
    with pytest.raises(WrongReply):
        asked.verify(infer(asked.observation), 8)


def test_the_floor_in_c_runs_at_a_rate() -> None:
    with floors() as found:
        in_c = [floor for floor in found if isinstance(floor, CFloor)]
        samples = [floor.paced(workload("tiny"), 0.2, 100.0) for floor in in_c if not floor.spin]

    if not samples:
        pytest.skip("needs a C compiler and two processors")
    for sample in samples:
        assert 1 <= len(sample.latency_ns) + sample.missed < 200, "ten times what the rate gives: it does not wait"


class Broken(InProcess):
    """Has no reply."""

    name = "broken"

    def connect(self) -> Infer:
        return lambda observation: {}


def test_a_run_measures_the_ways_at_each_rate_and_keeps_the_failure_of_one(tmp_path: Path) -> None:
    found = rates.measure([InProcess(), AsleepPython(), Broken()], [], "tiny", [200.0, 500.0], 0.1, 2)

    assert list(found) == ["200", "500"]
    for rate, part in found.items():
        in_process, py2, broken = part["rows"]
        assert in_process["requests"] + in_process["missed"] >= 2 * round(0.05 * float(rate))
        assert rates.to(part["rows"], "in-process", rates.PY2) is not None
        assert "failed" in broken and rates.cells(part["rows"], broken)[0] == "failed"
        assert rates.table("tiny", rate, part["rows"]).row_count == 3
        assert py2["name"] == rates.PY2


def test_the_command_measures_shmserve_beside_a_floor_and_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)

    status = rates.main(
        ["--rates", "100", "--workloads", "tiny", "--seconds", "0.2", "--rounds", "1", "--only", "shmserve", "py2"]
    )

    document = results.read(tmp_path / "latest-rates.json")
    shmserve, _ = document["rates"]["tiny"]["100"]["rows"]
    assert status == 0
    assert shmserve["requests"] > 0 and shmserve["engine_cpu_share"] > 0
    assert "tiny at 100 Hz" in capsys.readouterr().out
    section = "\n".join(report.at_rates(document))
    assert "| shmserve |" in section and "100 Hz" in section and "bench.rates --rates 100" in section
    assert json.dumps(document["machine"]) and os.listdir(tmp_path) == ["latest-rates.json"]


def test_a_rate_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-1", "fast"):
        with pytest.raises(SystemExit):
            rates.main([f"--rates={wrong}"])
        assert "rates" in capsys.readouterr().err


class Told:
    """Client that has every way of a later version, and keeps what it was told."""

    def __init__(self, *, runtime_dir: str, timeout: float, spin_us: object, rate: float | None = None) -> None:
        self.rate = rate
        self.expected: list[float] = []

    def connect(self) -> Told:
        return self

    def infer(self, observation: object) -> object:
        return observation

    def expect(self, *, within: float) -> None:
        self.expected.append(within)


class Untold:
    """Client that has none of them."""

    def __init__(self, *, runtime_dir: str) -> None:
        """Take no rate."""


def test_a_way_that_the_client_does_not_have_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (ShmserveAtRate(), ShmserveExpect())
    monkeypatch.setattr(shmserve.client, "ShmClient", Untold)
    left_out = [peer.available() for peer in ways]
    monkeypatch.setattr(shmserve.client, "ShmClient", Told)

    assert left_out == ["this shmserve has no ShmClient(rate=...)", "this shmserve has no ShmClient.expect"]
    assert [peer.available() for peer in ways] == [None, None]


def test_the_client_is_told_its_rate_or_what_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shmserve.client, "ShmClient", Told)
    at_rate = ShmserveAtRate()
    at_rate.rate_hz = 200.0
    told: Any = at_rate.client()
    infer, announce = ShmserveExpect().connect_with_announcement()

    announce()

    client: Any = getattr(infer, "__self__")  # noqa: B009  a bound method, for mypy a function
    assert told.rate == 200.0
    assert client.rate is None and client.expected == [0.0015]


def test_the_setting_of_the_engine_is_known_by_its_name() -> None:
    known = "wake_ahead" in {field.name for field in dataclasses.fields(Config)}

    assert (ShmserveNoWakeAhead().available() is None) == known
    assert ShmserveNoWakeAhead().settings == {"wake_ahead": "off"}


@pytest.mark.long
def test_every_length_of_spinning_is_measured_on_each_side_and_each_pinning() -> None:
    where = spin_settings.pinnings(pinned=True)

    found = spin_settings.measure("tiny", [0, 300], spin_settings.SIDES, where, 0.1, 1)

    assert len(found) == 2 * 3 * len(where)
    assert all(len(turns.samples) == 1 and len(turns.samples[0].latency_ns) for turns in found.values())
    assert spin_settings.table("tiny", where[-1], found).row_count == 2


@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
def test_replies_that_are_due_at_a_known_time_are_measured_in_turns(transport: str) -> None:
    ways = regular_service.measure("tiny", 2000, 0.1, transport, 0.1, 1)

    assert [way.name for way in ways] == ["the default", "spin_us=0"]
    for way in ways:
        assert len(way.rest_ns) == len(way.client_ns) == len(way.thread_ns) == 5
        assert all(0 < client_ns <= rest_ns for client_ns, rest_ns in zip(way.client_ns, way.rest_ns, strict=True))


def test_a_pinned_process_runs_with_every_thread_where_it_was_told() -> None:
    allowed = frozenset(os.sched_getaffinity(0))
    one = frozenset([min(allowed)])
    thread_began, may_end = threading.Event(), threading.Event()
    tasks: list[int] = []

    def work() -> None:
        tasks.append(threading.get_native_id())
        thread_began.set()
        may_end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    thread_began.wait(60)
    try:
        spin_settings.pin(os.getpid(), one)
        pinned = [os.sched_getaffinity(task) for task in (os.getpid(), *tasks)]
    finally:
        spin_settings.pin(os.getpid(), allowed)
        may_end.set()
        thread.join()

    assert pinned == [one, one]


def test_a_length_of_spinning_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("-1", "1000001", "adaptive"):
        with pytest.raises(SystemExit):
            spin_settings.main([f"--spin-us={wrong}"])
        assert "--spin-us" in capsys.readouterr().err


#: A process that works a little or more between two marks, with a sleep in the middle, on each line of its input.
MARKED = """
import os, sys, time
print("begins", flush=True)
for line in sys.stdin:
    os.getppid()
    sum(range(int(line)))
    time.sleep(1)
    os.getppid()
    print("done", flush=True)
"""


def test_the_instructions_of_a_stretch_are_counted_and_are_the_same_each_time() -> None:
    with ExitStack() as cleanup:
        try:
            counter = cold_work.compiled(cleanup)
        except NotMeasured as reason:
            pytest.skip(str(reason))
        process = cleanup.enter_context(
            subprocess.Popen([sys.executable, "-c", MARKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        cleanup.callback(process.kill)
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        lengths = iter([10, 500, 10])

        def request() -> None:
            assert process.stdin is not None and process.stdout is not None
            print(next(lengths), file=process.stdin, flush=True)
            process.stdout.readline()

        try:
            works = cold_work.stepped(counter, process.pid, 4, request)[::2]
        except NotMeasured as reason:
            pytest.skip(str(reason))

    short, long = works
    assert long.first - short.first > 490
    assert abs(long.second - short.second) < 500 < short.second
    assert long.lines > long.code_pages > 0


def killed(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(60)


def test_a_process_that_ends_while_it_is_counted_is_said() -> None:
    with ExitStack() as cleanup:
        try:
            counter = cold_work.compiled(cleanup)
        except NotMeasured as reason:
            pytest.skip(str(reason))
        process = cleanup.enter_context(subprocess.Popen(["sleep", "60"]))

        with pytest.raises(NotMeasured, match=r"ended|may not trace"):
            cold_work.stepped(counter, process.pid, 2, lambda: killed(process))


def test_the_cold_work_of_a_request_is_not_measured_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)

    assert cold_work.main([]) == 1
    assert "not measured: instructions are counted on x86-64 only" in capsys.readouterr().out


def test_the_calls_of_the_engine_since_the_last_request_are_in_the_reply() -> None:
    policy = marked.Policy()
    asked: dict[str, Any] = {"sleep_s": 0.0, "count_calls": True}

    nothing = policy.infer(asked)["calls"]
    sorted(range(len([1, 2, 3])))
    functions, built_in = policy.infer({**asked, "count_calls": False})["calls"]
    after = policy.infer(asked)["calls"]
    sys.setprofile(None)

    assert nothing == after == [0, 0]
    assert (functions, built_in) == (0, 2)


@pytest.mark.long
def test_the_cold_work_of_both_sides_is_counted() -> None:
    try:
        found = cold_work.measure("tiny", 1)
    except NotMeasured as reason:  # No compiler, no ptrace, or a machine that is too busy.
        pytest.skip(str(reason))

    for side in ("client", "engine"):
        assert all(count > 0 for what, count in found[side].items() if what != "instructions between two sleeps")
    assert cold_work.table("tiny", found).row_count == len(found["client"]) == len(found["engine"])
