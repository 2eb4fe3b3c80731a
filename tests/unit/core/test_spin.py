"""How long to look before sleeping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.spin import DEFAULT_CAP_NS, SpinBudget


@given(st.lists(st.integers(0, 10**12), max_size=50))
def test_a_budget_is_never_more_than_its_cap(waits: list[int]) -> None:
    budget = SpinBudget("adaptive")
    for wait in waits:
        budget.waited(wait)

        assert 0 <= budget.ns <= DEFAULT_CAP_NS


@pytest.mark.parametrize("wait_ns", [0, 10_000, 100_000, 400_000])
def test_news_that_comes_soon_is_waited_for_awake(wait_ns: int) -> None:
    budget = SpinBudget("adaptive")
    for _ in range(30):
        budget.waited(wait_ns)

    assert budget.ns > wait_ns


def test_an_idle_side_sleeps() -> None:
    budget = SpinBudget("adaptive")
    assert budget.ns == 0
    for _ in range(30):
        budget.waited(50_000_000)

    assert budget.ns == 0


def test_one_pause_does_not_end_the_spinning_of_a_busy_side_for_long() -> None:
    budget = SpinBudget("adaptive")
    for _ in range(30):
        budget.waited(20_000)
    budget.waited(10**10)
    for _ in range(3):
        budget.waited(20_000)

    assert budget.ns > 0


@pytest.mark.parametrize(("setting", "ns"), [(0, 0), (40, 40_000), (1_000_000, 1_000_000_000)])
def test_a_fixed_setting_learns_nothing(setting: int, ns: int) -> None:
    budget = SpinBudget(setting)
    for wait in (0, 10, 10**10):
        budget.waited(wait)

    assert budget.ns == ns
