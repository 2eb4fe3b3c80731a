"""A text that is cut to a length says so, and keeps its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shmserve.daemon.api.admin import MESSAGE_TEXT, NOTE_LIMIT
from shmserve.daemon.engine.error_text import client_message
from shmserve.shortened import shortened


def test_both_ends_of_a_long_text_are_kept_and_its_length_is_said() -> None:
    text = "the beginning " + "middle " * 500 + "the cause"

    for limit in (60, 300, 500, 4000):
        cut = shortened(text, limit)
        assert len(cut) <= limit
        assert cut == text or ("characters in all" in cut and cut.startswith("the ") and cut.endswith(" cause"))
    assert shortened(text, 10) == text[:10]


def test_a_client_gets_both_ends_of_a_long_exception() -> None:
    _, text = client_message(
        ValueError("weights of /srv/models/arm: " + "a layer, " * 5000 + "and 7 joints were expected")
    )

    assert len(text) <= 400 and text.startswith("weights of <path>") and text.endswith("and 7 joints were expected")
    assert "characters in all" in text


_LONG = "weights of the arm: " + "a layer, " * 5000 + "and 7 joints were expected"


@pytest.mark.parametrize(
    ("cut", "limit"),
    [
        (lambda: client_message(ValueError(_LONG))[1], 400),
        (lambda: shortened(_LONG, MESSAGE_TEXT), MESSAGE_TEXT),
        (lambda: shortened(_LONG, NOTE_LIMIT), NOTE_LIMIT),
    ],
    ids=["failure of a request", "refusal of an update", "note of a version"],
)
def test_a_text_that_is_cut_says_so_and_keeps_both_ends(cut: Callable[[], str], limit: int) -> None:
    text = cut()

    assert len(text) <= limit and "characters in all" in text
    assert text.startswith("weights of the arm") and text.endswith("and 7 joints were expected")
