"""Doorbells on real semaphores: tokens, timeouts, signals, and names that are taken or gone."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Iterator

import posix_ipc
import pytest

from shmserve.doorbell import NamedDoorbell, create_doorbell, unlink_doorbell
from shmserve.errors import ServiceUnavailable

_SECOND = 1_000_000_000


@pytest.fixture
def name() -> Iterator[str]:
    name = f"/shmserve-test.{secrets.token_hex(8)}"
    yield name
    unlink_doorbell(name)


@pytest.fixture
def bells(name: str) -> Iterator[tuple[NamedDoorbell, NamedDoorbell]]:
    """Two ends of one doorbell."""
    create_doorbell(name)
    one, other = NamedDoorbell(name), NamedDoorbell(name)
    yield one, other
    one.close()
    other.close()


Bells = tuple[NamedDoorbell, NamedDoorbell]


def test_a_token_waits_for_a_later_waiter(bells: Bells) -> None:
    one, other = bells
    for _ in range(3):
        one.ring()

    assert other.count() == 3
    assert [other.wait(0), other.try_take(), other.wait(_SECOND), other.try_take(), other.wait(0)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_ring_wakes_the_sleeper(bells: Bells) -> None:
    one, other = bells
    woken: list[bool] = []
    sleeper = threading.Thread(target=lambda: woken.append(other.wait(30 * _SECOND)))
    sleeper.start()
    time.sleep(0.05)
    one.ring()
    sleeper.join(20)

    assert woken == [True]


def test_a_wait_ends_without_a_ring(bells: Bells) -> None:
    began = time.monotonic()

    assert not bells[0].wait(_SECOND // 20)
    assert time.monotonic() - began >= 0.05
    assert not bells[0].wait(0)


@pytest.mark.fault("T25")
def test_a_signal_ends_a_wait_early_and_its_handler_runs(bells: Bells) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    main = threading.main_thread().ident
    assert main is not None
    alarm = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGUSR1))
    alarm.start()
    try:
        taken = bells[0].wait(60 * _SECOND)
    finally:
        signal.signal(signal.SIGUSR1, before)
        alarm.join()

    assert not taken
    assert heard == [signal.SIGUSR1]


@pytest.mark.fault("T23")
def test_a_step_of_the_clock_that_people_read_does_not_lengthen_a_wait(bells: Bells) -> None:
    # Stepping the clock would harm the machine; that the wait does not read it is what counts.
    assert bells[0].semaphore.is_monotonic()


@pytest.mark.fault("T21")
def test_more_tokens_than_a_semaphore_holds_are_let_go(name: str) -> None:
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=posix_ipc.SEMAPHORE_VALUE_MAX)
    bell = NamedDoorbell(name)

    bell.ring()

    assert bell.count() == posix_ipc.SEMAPHORE_VALUE_MAX
    assert bell.try_take()
    bell.close()
    semaphore.close()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_mode_is_exact_whatever_the_umask(name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        create_doorbell(name, 0o660)
    finally:
        os.umask(before)

    assert stat.S_IMODE(os.stat(f"/dev/shm/sem.{name.removeprefix('/')}").st_mode) == 0o660


@pytest.mark.fault("T08")
def test_a_name_that_is_taken_is_refused_and_keeps_its_tokens(name: str) -> None:
    create_doorbell(name)
    bell = NamedDoorbell(name)
    bell.ring()

    with pytest.raises(FileExistsError, match=name):
        create_doorbell(name)

    assert bell.count() == 1
    bell.close()


def test_a_removed_name_is_not_a_service(name: str) -> None:
    with pytest.raises(ServiceUnavailable, match=f"semaphore {name} is gone: the daemon stopped"):
        NamedDoorbell(name)


def test_a_process_that_has_it_open_keeps_it_when_its_name_goes(bells: Bells, name: str) -> None:
    unlink_doorbell(name)
    unlink_doorbell(name)

    bells[0].ring()

    assert bells[1].wait(0)


def test_closing_twice_is_not_an_error(name: str) -> None:
    create_doorbell(name)
    bell = NamedDoorbell(name)
    bell.close()
    bell.close()
