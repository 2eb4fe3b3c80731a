"""What deaths of engines come to for their clients, by a clock that the test turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from shmserve.channel import ChannelInfo
from shmserve.daemon.clients.engine_deaths import CLEAR_S, WINDOW_S, Deaths
from shmserve.daemon.clients.leases import Lease, Wanted
from shmserve.daemon.config.config import Config
from shmserve.daemon.ipc.stats import SEVERAL, ChannelWord, Counter, Stats, create_stats_memory
from shmserve.daemon.supervisor import supervisor as supervisor_module
from shmserve.daemon.supervisor.supervisor import Supervisor
from shmserve.daemon.varlink.peer import Peer
from shmserve.segment import Identity

OWN = 50
STRANGERS = 60


class Process(NamedTuple):
    uid: int
    pid: int
    started: int = 1


A, B, C = (Process(STRANGERS, pid) for pid in (1, 2, 3))
OWN_A, OWN_B, OWN_C, OWN_D = (Process(OWN, pid) for pid in (1, 2, 3, 4))


@dataclass
class Case:
    """Deaths as (second, who had a request in hand, when that attached); what is found of `of` at `at`."""

    deaths: Sequence[tuple[float, tuple[Process, ...], float]]
    of: Process
    at: float
    evicted: str | None = None
    attached: float = 0.0
    suspect: bool = False
    blamed: bool = False


_SPREAD = [(100.0, (A,), 0.0), (300.0, (A,), 0.0)]
CASES = {
    "one death makes a suspect": Case([(100, (A,), 0)], A, 159, suspect=True, blamed=True),
    "who is clear is one no longer": Case([(100, (A,), 0)], A, 100 + CLEAR_S),
    "the second is not the third": Case(_SPREAD, A, 301, suspect=True, blamed=True),
    "the third sends away": Case([*_SPREAD, (500, (A,), 0)], A, 500, "process", suspect=True, blamed=True),
    "the first counts no more after the window": Case(
        [*_SPREAD, (100 + WINDOW_S, (A,), 0)], A, 100 + WINDOW_S, suspect=True, blamed=True
    ),
    "another process with its number is another one": Case([*_SPREAD, (500, (A,), 0)], A._replace(started=2), 1000),
    "it attached again and is the same process": Case(
        [*_SPREAD, (500, (A,), 400)], A, 500, "process", attached=400, suspect=True, blamed=True
    ),
    "three processes of another user are its user": Case(
        [(100, (A,), 0), (110, (B,), 0), (120, (C,), 0)], C, 120, "user", suspect=True, blamed=True
    ),
    "three robots of the daemon's own user are three robots": Case(
        [(100, (OWN_A,), 0), (110, (OWN_B,), 0), (120, (OWN_C,), 0)], OWN_C, 120, suspect=True, blamed=True
    ),
    "one program of the own user, started again and again": Case(
        [(100, (OWN_A,), 0), (110, (OWN_B,), 105), (120, (OWN_C,), 115), (130, (OWN_D,), 125)],
        OWN_D, 130, "user", suspect=True, blamed=True,
    ),
    "who was attached and had no part is no suspect": Case([(100, (A,), 0)], B, 110, attached=50),
    "who comes after a death of its user is one": Case([(100, (A,), 0)], B, 110, attached=105, suspect=True, blamed=True),
    "another user's is not": Case([(100, (A,), 0)], OWN_A, 110, attached=105),
    "of a batch all are suspects and nobody is blamed": Case([(100, (A, OWN_A), 0)], OWN_A, 110, suspect=True),
    "of a batch nobody is evicted": Case([(at, (A, OWN_A), 0) for at in (100, 110, 120)], A, 120, suspect=True),
    "who dies alone after a batch is to blame": Case(
        [(100, (A, OWN_A), 0), (105, (A,), 0)], A, 110, suspect=True, blamed=True
    ),
    "and the other one of the batch is clear": Case([(100, (A, OWN_A), 0), (105, (A,), 0)], OWN_A, 110),
    "a death of somebody else clears nobody": Case([(100, (A, OWN_A), 0), (105, (B,), 0)], OWN_A, 110, suspect=True),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_deaths_of_engines_lead_to_evictions(case: Case) -> None:
    deaths = Deaths(own_uids=(OWN,))
    for at_s, processes, attached_s in case.deaths:
        deaths.note([(process, attached_s) for process in processes], at_s)

    verdict = deaths.verdict(case.of, case.at)
    suspicion = deaths.suspicion(case.of, case.attached, case.at)

    assert (verdict and ("user" if verdict.whole_user else "process")) == case.evicted
    assert (suspicion is not None) == case.suspect
    assert (suspicion is not None and suspicion.blamed) == case.blamed


class Service:
    """A supervisor that was never opened, with clients and engines that are words in memory."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s, monotonic_ns=lambda: int(self.now_s * 1e9))
        monkeypatch.setattr(supervisor_module, "time", clock)
        self.evicted: list[tuple[int, str]] = []
        self.on_probation = False
        self.supervisor = Supervisor(
            Config(tmp_path, tmp_path, name="t", transport="sealed"),
            on_evict=lambda lease, reason: self.evicted.append((lease.channel, reason)),
            on_detach=lambda lease: None,
            on_crash=lambda engine: None,
            on_ended=lambda engine: None,
            is_on_probation=lambda engine: self.on_probation,
        )
        self._generation = 0

    def attach(self, channel: int, pid: int, uid: int = STRANGERS) -> Lease:
        self._generation += 1
        channel_info = ChannelInfo(Identity(1, channel, self._generation), None)
        peer = Peer(pid, uid, uid, frozenset(), started=1)
        lease = Lease(channel_info, peer, "robot", False, int(self.now_s * 1e9), Wanted(1))
        self.supervisor.leases._held[channel] = lease
        return lease

    def die(self, *in_hand: Lease, on_purpose: bool = False) -> None:
        stats = Stats(create_stats_memory())
        for lease in in_hand:
            line = stats.channel_index(lease.channel)
            stats.words[line + ChannelWord.GENERATION] = lease.channel_info.identity.generation
            stats.words[line + ChannelWord.IN_HAND] = len(in_hand) > 1
            stats.words[Counter.CHANNEL] = lease.channel + 1 if len(in_hand) == 1 else SEVERAL
        engine: Any = SimpleNamespace(pid=1, stats=stats, ended_on_purpose=on_purpose)
        self.supervisor._examine(engine, -9)
        stats.close()

    @property
    def restarts_at_once(self) -> bool:
        return self.supervisor._of_client


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(tmp_path, monkeypatch)


def test_the_client_whose_request_was_in_hand_is_evicted_at_the_third_death(service: Service) -> None:
    killer, other = service.attach(0, 7), service.attach(1, 8, OWN)
    for _ in range(3):
        assert service.evicted == []
        service.now_s += 150
        service.die(killer)
        assert service.restarts_at_once

    assert service.evicted == [(0, "its requests crashed the engine 3 times within 10 minutes")]
    assert service.supervisor.leases.bans.refusal(other.peer, 60, service.now_s) is None


def test_a_client_that_left_before_its_request_killed_the_engine_is_not_let_back_in(service: Service) -> None:
    for channel in (0, 1, 0):
        killer = service.attach(channel, 7)
        service.supervisor.leases.release(channel)
        newcomer = service.attach(channel, 9, OWN)  # the same channel, which the engine has not heard of yet
        service.die(killer)

    assert service.evicted == []
    refusal = service.supervisor.leases.bans.refusal
    assert "crashed the engine 3 times" in str(refusal(killer.peer, 60, service.now_s))
    assert refusal(newcomer.peer, 60, service.now_s) is None


def test_the_end_of_an_engine_by_itself_or_on_purpose_counts_against_no_client(service: Service) -> None:
    lease = service.attach(0, 7)
    service.die()
    service.die(lease, on_purpose=True)
    service.on_probation = True
    service.die(lease)

    assert not service.restarts_at_once
    assert len(service.supervisor.leases.deaths) == 0


def test_no_client_is_evicted_where_the_operator_turned_that_off(service: Service) -> None:
    service.supervisor.config.change_live({"ban_s": 0.0})
    killer = service.attach(0, 7)
    for _ in range(5):
        service.die(killer)

    assert service.evicted == []
    assert service.supervisor.leases.deaths.suspicion(killer.peer, time.monotonic(), service.now_s) is not None
