"""The breaker of a link: when requests go to the remote model."""

from __future__ import annotations

from shmserve.daemon.engine.models.link_breaker import LinkBreaker


def breaker() -> LinkBreaker:
    return LinkBreaker(open_after=3, recover_after=2)


def test_it_opens_after_bad_answers_in_a_row() -> None:
    link = breaker()

    for _ in range(2):
        link.missed("late")
    link.answered()
    for _ in range(2):
        link.missed("late")
    assert not link.is_open

    link.missed("late")
    assert link.is_open and link.reason == "late" and link.opened.is_set()


def test_a_lost_connection_opens_it_at_once() -> None:
    link = breaker()

    link.open("gone")

    assert link.reason == "gone" and link.opened.is_set()


def test_only_probes_in_a_row_close_it() -> None:
    link = breaker()
    link.open("gone")

    link.answered()  # of a request that was on its way
    assert link.is_open
    assert not link.probed(True)
    assert not link.probed(False)
    assert not link.probed(True)
    assert link.probed(True)
    assert not link.is_open and not link.opened.is_set()


def test_bad_answers_before_it_closed_count_no_longer() -> None:
    link = breaker()
    link.open("gone")
    link.missed("late")  # of a request that was on its way
    link.probed(True)
    link.probed(True)

    for _ in range(2):
        link.missed("late")
    assert not link.is_open


def test_an_open_link_tells_the_latest_reason_and_keeps_its_good_probes() -> None:
    link = breaker()
    link.open("gone")
    link.probed(True)

    link.open("other version")

    assert link.reason == "other version"
    assert link.probed(True)


def test_a_probe_of_a_closed_link_changes_nothing() -> None:
    link = breaker()

    assert not link.probed(True)
    link.missed("late")
    assert not link.probed(False)
    assert not link.is_open
