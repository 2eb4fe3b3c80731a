"""Models of the shared memory's protocols: nothing is violated, and each weaker order or wrong step is found."""

from __future__ import annotations

import pytest

from tests.support.memory_model.models import (
    CONTROLS,
    MODELS,
    SURPLUS,
    asked,
    ordered_sites,
    run,
)

#: Explored in `make test`: each of them takes less than a second.
QUICK = [name for name, model in MODELS.items() if not model.long]


@pytest.mark.parametrize("name", QUICK)
def test_the_model_violates_no_property(name: str) -> None:
    result = run(name)

    assert result.violations == {}
    assert result.finals > 0


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MODELS if name not in QUICK])
def test_the_large_model_violates_no_property(name: str) -> None:
    result = run(name)

    assert result.violations == {}
    assert result.finals > 0


@pytest.mark.parametrize("change", [change for change, control in CONTROLS.items() if control.model in QUICK])
def test_the_control_is_found(change: str) -> None:
    control = CONTROLS[change]

    assert control.violates in run(control.model, change).violations


@pytest.mark.long
@pytest.mark.parametrize("change", [change for change, control in CONTROLS.items() if control.model not in QUICK])
def test_the_control_is_found_in_a_large_model(change: str) -> None:
    control = CONTROLS[change]

    assert control.violates in run(control.model, change).violations


def test_every_order_and_every_step_has_a_control() -> None:
    steps = {step for name in MODELS for step in asked(name).steps}

    assert ordered_sites() | steps == {*CONTROLS, *SURPLUS}
    assert CONTROLS.keys() & SURPLUS.keys() == set()


def test_a_control_changes_its_model() -> None:
    for change, control in CONTROLS.items():
        given = asked(control.model)

        assert change in given.sites | given.steps, f"{control.model} has no {change!r}"


@pytest.mark.long
@pytest.mark.parametrize("site", SURPLUS)
def test_no_small_model_needs_a_surplus_order(site: str) -> None:
    for name in QUICK:
        if site in asked(name).sites:
            assert run(name, site).violations == {}, name
