"""docs/development/memory-order.md: its controls, its rules and its numbers of states are those of the models."""

from __future__ import annotations

import re

import pytest

from tests.support.folders import REPOSITORY
from tests.support.memory_model.models import CONTROLS, MODELS, SURPLUS, run

PAGE = (REPOSITORY / "docs/development/memory-order.md").read_text("utf-8")
#: A row of the table: the model, and its states with native and with pure ends.
ROWS = {
    name: (native, pure)
    for name, native, pure in re.findall(
        r"^\| ([a-z][\w -]*(?:, [a-z ]+)?) \| ([\w: ]+) \| (\d+) \|$", PAGE, re.MULTILINE
    )
}


def columns(name: str) -> list[tuple[str, str]]:
    """The models that a row is about, each with its figure."""
    native, pure = ROWS[name]
    if name == "cut-through":
        return [(name, native), (f"{name}, pure engine", pure)]
    if name == "record ring":
        return [(f"{name}, pure engine, pure recorder", pure)]
    return [(f"{name}, {end} client, {end} engine", figure) for end, figure in (("native", native), ("pure", pure))]


FIGURES = [model for name in ROWS for model in columns(name)]


def test_the_page_names_every_control() -> None:
    assert {change for change in {**CONTROLS, **SURPLUS} if f"`{change}`" not in PAGE} == set()


def test_the_page_has_every_model() -> None:
    native = {name for name in MODELS if name.endswith(("native client, native engine", "cut-through"))}

    assert {name for name, _ in FIGURES} >= native
    assert {name for name, _ in FIGURES} <= MODELS.keys()


@pytest.mark.parametrize(("name", "states"), [each for each in FIGURES if not MODELS[each[0]].long])
def test_a_small_model_has_as_many_states_as_the_page_says(name: str, states: str) -> None:
    assert run(name).states == int(states)


@pytest.mark.long
@pytest.mark.parametrize(("name", "states"), [each for each in FIGURES if MODELS[each[0]].long])
def test_a_large_model_has_as_many_states_as_the_page_says(name: str, states: str) -> None:
    assert run(name).states == int(states)
