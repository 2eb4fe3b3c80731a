"""A link behind a real daemon: what a robot gets in each way that the remote model can fail it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from shmserve.client import Reply, ShmClient
from shmserve.errors import InferenceFailed, ObservationStale, RequestRejected
from shmserve.message import REPLY_HEAD
from tests.support.c_client import CClient
from tests.support.c_library import library
from tests.support.daemon_process import SHMSERVED, Daemon, wait_until
from tests.support.stand_in_uplink import LOCAL, StandInUplink, link_package

VERSION = "3f9c2d17a0b14e55"
#: Long enough for a busy machine; every wait in these tests ends by an event.
BUDGET_S = 1.5
#: The fallback says how many objects the collector of its process sees.
_COUNTING = """
        if float(observation["state"][0]) == 17:
            import gc
            return {"action": observation["state"] * 0 + len(gc.get_objects())}
        return {"action": """


class Service:
    """A daemon that serves a link, the cluster that it links to, and a robot."""

    def __init__(self, uplink: StandInUplink, daemon: Daemon, client: ShmClient) -> None:
        self.uplink = uplink
        self.daemon = daemon
        self.client = client

    def ask(self, state: float = 1.0, **options: Any) -> Reply:
        return self.client.request({"state": np.full(3, state, np.float32)}, **options)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.daemon.status()["remote"]
        return found

    def counted(self, name: str, before: dict[str, int]) -> int:
        return self.counts()[name] - before[name]

    def link(self) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.status()["model"]["remote"]
        return found

    def recovered(self) -> None:
        """Wait until the remote is asked again."""
        wait_until("the remote answers again", lambda: self.ask().source == "remote")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("remote")
    with StandInUplink(folder / "uplink.sock", VERSION) as uplink:
        keys: dict[str, Any] = {"budget_s": BUDGET_S, "probe_s": 0.05, "open_after": 2, "recover_after": 2}
        checks = "[checks.action.action]\nmin = -1e6\nmax = 1e6\non_violation = 'clamp'"
        local = LOCAL.replace('\n        return {"action": ', _COUNTING)
        package = link_package(folder / "link", uplink.target, VERSION, local=local, checks=checks, **keys)
        with Daemon(package) as daemon, daemon.client() as client:
            yield Service(uplink, daemon, client)


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The shared one, with a link that is closed, and well again at the end."""
    shared.recovered()
    yield shared
    uplink = shared.uplink
    uplink.refuses = uplink.spoils = None
    uplink.version = int(VERSION, 16)
    uplink.answers.set()


def test_an_answer_in_time_is_the_robots(service: Service) -> None:
    before = service.counts()

    reply = service.ask()

    assert reply.source == "remote" and reply.model_version == VERSION
    np.testing.assert_array_equal(reply.action["action"], np.full(3, 2, np.float32), strict=True)
    assert service.counted("ok", before) == 1
    assert service.link()["source"] == "remote" and service.daemon.status()["problems"] == []


def test_the_remote_is_told_what_it_needs_to_drop_a_request(service: Service) -> None:
    reply = service.ask(capture_time=time.monotonic() - 0.5, max_age=20.0)

    told = service.uplink.requests[-1]
    assert reply.request_id == told.number and told.version == int(VERSION, 16)
    assert 0 < told.budget_ns <= BUDGET_S * 1e9
    assert told.age_ns >= 0.5e9 and told.max_age_ns == 20e9


def test_an_action_of_either_model_is_checked_on_the_robot(service: Service) -> None:
    remote = service.ask(state=7e5)
    service.uplink.refuses = grpc.StatusCode.UNAVAILABLE
    local = service.ask(state=2e6)

    assert (remote.source, remote.clamped, remote.action["action"][0]) == ("remote", True, 1e6)
    assert (local.source, local.clamped, local.action["action"][0]) == ("fallback", True, -1e6)


def test_a_late_answer_is_the_fallbacks_and_is_never_delivered(service: Service) -> None:
    before = service.counts()
    service.uplink.answers.clear()

    late = service.ask(state=5)
    service.uplink.answers.set()
    following = service.ask(state=7)

    assert late.source == "fallback" and late.model_version == service.link()["fallback_version"]
    np.testing.assert_array_equal(late.action["action"], np.full(3, -5, np.float32))
    np.testing.assert_array_equal(np.abs(following.action["action"]) % 7, np.zeros(3, np.float32))
    assert service.counted("late", before) == 1


def test_late_answers_in_a_row_open_the_link_and_probes_close_it(service: Service) -> None:
    before = service.counts()
    service.uplink.refuses = grpc.StatusCode.DEADLINE_EXCEEDED

    sources = [service.ask().source for _ in range(4)]

    assert sources == ["fallback"] * 4
    assert service.counted("late", before) == 2 and service.counted("open", before) == 2
    assert "late" in service.daemon.status()["problems"][0]
    service.uplink.refuses = None
    probes = service.uplink.probes
    service.recovered()
    assert service.uplink.probes >= probes + 2


def test_a_busy_remote_is_not_asked_twice_for_one_request(service: Service) -> None:
    before = service.counts()
    service.uplink.refuses = grpc.StatusCode.RESOURCE_EXHAUSTED

    reply = service.ask()

    assert reply.source == "fallback" and service.counted("busy", before) == 1


def test_a_lost_link_is_left_within_one_request(service: Service) -> None:
    before = service.counts()
    service.uplink.stop()

    sources = [service.ask().source for _ in range(3)]

    assert sources == ["fallback"] * 3
    assert service.counted("down", before) == 1 and service.counted("open", before) == 2
    wait_until("the status shows it", lambda: service.link()["source"] == "fallback")
    assert "UNAVAILABLE" in service.link()["reason"]
    service.uplink.start()
    service.recovered()
    assert service.counted("switches", before) == 2


def test_an_error_of_the_remote_model_is_an_answer(service: Service) -> None:
    before = service.counts()

    def fails(observation: Any) -> Any:
        raise KeyError("no such joint")

    model, service.uplink.model = service.uplink.model, fails
    try:
        with pytest.raises(InferenceFailed, match="no such joint") as caught:
            service.ask()
    finally:
        service.uplink.model = model

    assert caught.value.model_error_type == "KeyError"
    assert service.counted("failed", before) == 1 and service.link()["source"] == "remote"


@pytest.mark.parametrize("status", [6, 5], ids=["rejected", "stale"])
def test_a_refusal_of_the_remote_is_an_answer(service: Service, status: int) -> None:
    before = service.counts()

    def refused(reply: bytes) -> bytes:
        at = REPLY_HEAD.offset("status")
        nothing = reply[:at] + status.to_bytes(8, "little") + reply[at + 8 : REPLY_HEAD.offset("metadata_bytes")]
        return nothing.ljust(128, b"\0")

    service.uplink.spoils = refused
    with pytest.raises(ObservationStale if status == 5 else RequestRejected):
        service.ask()

    assert service.counted("stale" if status == 5 else "failed", before) == 1


def test_another_version_is_never_the_robots(service: Service) -> None:
    before = service.counts()
    service.uplink.version = 0xBAD

    replies = [service.ask() for _ in range(3)]

    assert {reply.source for reply in replies} == {"fallback"}
    assert VERSION not in {reply.model_version for reply in replies}
    assert service.counted("mismatch", before) == 1
    wait_until(
        "the status says it", lambda: any("0000000000000bad" in text for text in service.daemon.status()["problems"])
    )


@pytest.mark.parametrize(
    "spoiled",
    [b"", b"\0" * 200, b"x" * 200],
    ids=["nothing", "zeros", "garbage"],
)
def test_bytes_that_are_no_reply_are_not_read(service: Service, spoiled: bytes) -> None:
    before = service.counts()
    service.uplink.spoils = lambda reply: spoiled

    assert service.ask().source == "fallback"
    assert service.counted("down", before) == 1


def test_the_answer_to_another_request_is_not_taken(service: Service) -> None:
    at = REPLY_HEAD.offset("number")
    service.uplink.spoils = lambda reply: reply[:at] + (7_000_000).to_bytes(8, "little") + reply[at + 8 :]

    assert service.ask().source == "fallback"


def test_an_error_of_the_fallback_is_its_own(service: Service) -> None:
    service.uplink.refuses = grpc.StatusCode.UNAVAILABLE

    with pytest.raises(InferenceFailed, match="no such joint"):
        service.ask(state=13)
    assert service.ask().source == "fallback"


def test_the_collector_does_not_look_at_everything_that_was_loaded(service: Service) -> None:
    service.uplink.refuses = grpc.StatusCode.UNAVAILABLE

    seen = service.ask(state=17).action["action"][0]

    assert 0 < seen < 20_000  # torch alone brings more than a hundred thousand


def test_a_change_of_the_answering_model_is_noticed(service: Service) -> None:
    changes: list[tuple[str, str]] = []
    with service.daemon.client() as robot:
        robot.on_model_change(lambda before, after: changes.append((before, after)))
        observation = {"state": np.ones(3, np.float32)}
        assert robot.request(observation).source == "remote" and changes == []
        service.uplink.refuses = grpc.StatusCode.UNAVAILABLE
        assert robot.request(observation).source == "fallback"

    assert changes == [(VERSION, service.link()["fallback_version"])]


def test_several_robots_are_asked_for_at_once_and_a_late_one_delays_no_other(service: Service) -> None:
    service.uplink.answers.clear()
    number = len(service.uplink.requests)
    first = service.client.submit({"state": np.ones(3, np.float32)})
    wait_until("the first is on its way", lambda: len(service.uplink.requests) == number + 1)
    several = [service.client.submit({"state": np.full(3, state, np.float32)}) for state in (2.0, 3.0, 4.0)]
    service.uplink.answers.set()

    results = [each.result(20)["action"][0] for each in (first, *several)]

    assert results in ([2.0, 4.0, 6.0, 8.0], [-1.0, 4.0, 6.0, 8.0])
    assert len(service.uplink.requests) == number + 4


def test_a_c_client_is_told_which_model_answered(service: Service) -> None:
    library()
    with CClient.of(service.daemon) as robot:
        sources = []
        for refuses in (None, grpc.StatusCode.UNAVAILABLE):
            service.uplink.refuses = refuses
            sequence = robot.submit({"state": np.ones(3, np.float32)})
            sources.append(robot.head(sequence).source)
            robot.release(sequence)

    assert sources == [1, 2]


def test_a_robot_that_states_its_numbers_gets_the_remote_s_and_the_fallback_s_answers(service: Service) -> None:
    library()
    statement = {"action": {"action": {"shape": [3], "units": "rad"}}}
    seen, found = {"state": np.ones(3, np.float32)}, []
    with (
        service.daemon.client(robot=statement) as python,
        CClient.of(service.daemon, robot=json.dumps(statement).encode()) as robot,
    ):
        for refuses in (None, grpc.StatusCode.UNAVAILABLE):
            service.uplink.refuses = refuses
            found += [python.infer(seen)["action"][0], robot.infer(seen)["action"][0]]

    assert found == [2, 2, -1, -1]


def test_the_metrics_count_the_answers(service: Service) -> None:
    command: list[Any] = [SHMSERVED.with_name("shmserve-admin"), "--name", service.daemon.name]
    command += ["--runtime-dir", service.daemon.runtime_dir]

    text = subprocess.run([*command, "metrics"], capture_output=True, text=True, timeout=60, check=True).stdout
    shown = subprocess.run([*command, "status"], capture_output=True, text=True, timeout=60, check=True).stdout

    assert 'shmserve_remote_requests_total{result="ok",service="t"}' in text
    assert 'shmserve_remote_open{service="t"} 0.0' in text
    assert "shmserve_remote_switches_total" in text
    assert f"double {VERSION}, remote answers" in shown
