"""The faults of `make chaos` in the form that every run of the tests can afford."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.forks import fork_clients
from chaos.kills import kill_clients, kill_supervisors
from chaos.service import Service
from chaos.shortages import no_descriptors
from chaos.stalls import never_read, stop_and_go
from chaos.storms import signal_storm
from chaos.tally import Account, Tally, Word
from chaos.updates import kill_during_updates


@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
def test_every_request_is_accounted_for_whoever_is_killed_or_stopped(transport: str) -> None:
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
        ):
            print(said)

    print(service.account)


def _tally(path: Path, **words: int) -> Tally:
    tally = Tally(path)
    for name, value in words.items():
        tally.words[Word[name]] = value
    return tally


def test_a_request_without_an_end_is_found(tmp_path: Path) -> None:
    account = Account()

    with pytest.raises(AssertionError, match="1 requests have neither a result nor an error"):
        account.close(_tally(tmp_path / "t", SUBMITTED=3, RESULTS=1, ERRORS=1), killed=False, window=2)


@pytest.mark.parametrize("word", ["WRONG", "UNTYPED", "LATE"])
def test_a_wrong_a_late_and_an_untyped_end_are_found(tmp_path: Path, word: str) -> None:
    account = Account()
    account.close(_tally(tmp_path / "t", SUBMITTED=1, RESULTS=1, **{word: 1}), killed=False, window=1)

    with pytest.raises(AssertionError, match="1 requests ended"):
        account.check()


def test_what_was_out_when_its_robot_was_killed_is_part_of_the_account(tmp_path: Path) -> None:
    account = Account()
    account.close(_tally(tmp_path / "t", SUBMITTED=5, RESULTS=2, ERRORS=1), killed=True, window=3)

    account.check()
    assert str(account).startswith("submitted 5 = results 2 + typed errors 1 + out when their robot was killed 2")
