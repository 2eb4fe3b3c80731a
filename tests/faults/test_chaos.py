"""The faults of `make chaos` in the form that every run of the tests can afford."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from chaos.c_robots import kill_beside_c_clients
from chaos.forks import fork_clients
from chaos.kills import kill_clients, kill_supervisors
from chaos.process_state import describe, wait_dead
from chaos.service import Service, naming
from chaos.shortages import no_descriptors
from chaos.stalls import never_read, stop_and_go
from chaos.storms import signal_storm
from chaos.tally import Account, Tally, Word
from chaos.updates import kill_during_updates


@pytest.mark.fault("T17", "T22", "T25", "T28", "T47", "T49", "T51", "T52", "T53", "T55", "T63", "T81")
@pytest.mark.long
@pytest.mark.parametrize("transport", ["named", "sealed"])
def test_every_request_is_accounted_for_when_any_process_is_killed_or_stopped(transport: str) -> None:
    service = Service(transport, seed=7)
    with service:
        # Seed and order are fixed; the machine's own timing is not.
        for said in (
            kill_clients(service, 20),
            stop_and_go(service, 3, 0.3),
            never_read(service, 1),
            no_descriptors(service, 1),
            fork_clients(service, 2),
            signal_storm(service, 1),
            kill_during_updates(service, 1),  # of the engine that serves, or of the one that is to
            kill_supervisors(service, 1),
            kill_beside_c_clients(service, 10),
        ):
            print(said)

    print(service.account)


def _tally(**words: int) -> Tally:
    tally = Tally.create()
    for name, value in words.items():
        tally.words[Word[name]] = value
    return tally


def test_a_request_without_an_end_is_found() -> None:
    account = Account()

    with pytest.raises(AssertionError, match="1 requests have neither a result nor an error"):
        account.close(_tally(SUBMITTED=3, RESULTS=1, ERRORS=1), killed=False, window=2)


@pytest.mark.parametrize("word", ["WRONG", "UNTYPED", "LATE"])
def test_a_wrong_a_late_and_an_untyped_end_are_found(word: str) -> None:
    account = Account()
    account.close(_tally(SUBMITTED=1, RESULTS=1, **{word: 1}), killed=False, window=1)

    with pytest.raises(AssertionError, match="1 requests ended"):
        account.check()


def test_requests_in_flight_of_a_killed_robot_are_part_of_the_account() -> None:
    account = Account()
    account.close(_tally(SUBMITTED=5, RESULTS=2, ERRORS=1), killed=True, window=3)

    account.check()
    assert str(account).startswith("submitted 5 = results 2 + typed errors 1 + in flight when their robot was killed 2")


def test_a_tally_waits_for_no_disk() -> None:
    tally = _tally(RESULTS=7)
    other = Tally.open(tally.path)

    assert other[Word.RESULTS] == 7
    assert os.readlink(tally.path).startswith("/memfd:")
    for each in (other, tally):
        each.close()


def test_a_failure_says_in_which_state_the_process_is_that_it_names() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        sleeper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
        pidfd = os.pidfd_open(sleeper.pid)

        stopped = rf"^not served\nprocess {sleeper.pid}: State T \(stopped\);.* waits in "
        with pytest.raises(AssertionError, match=stopped), naming(sleeper.pid):
            raise AssertionError("not served")
        with pytest.raises(AssertionError, match=r"^SIGKILL has not ended it within 0 s: process .*State T"):
            wait_dead(sleeper.pid, pidfd, 0)
        sleeper.kill()
        wait_dead(sleeper.pid, pidfd, 60)
        os.close(pidfd)

    assert describe(sleeper.pid) == f"process {sleeper.pid} no longer exists"
