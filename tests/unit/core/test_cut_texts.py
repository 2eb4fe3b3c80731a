"""A text that is cut to a length says so, and keeps its end."""

from __future__ import annotations

import re
from pathlib import Path

from shmserve.daemon.engine.error_text import client_message
from shmserve.shortened import shortened
from tests.support.folders import REPOSITORY


def test_both_ends_of_a_long_text_are_kept_and_its_length_is_said() -> None:
    text = "the beginning " + "middle " * 500 + "the cause"

    for limit in (60, 300, 500, 4000):
        cut = shortened(text, limit)
        assert len(cut) <= limit
        assert cut == text or ("characters in all" in cut and cut.startswith("the ") and cut.endswith(" cause"))
    assert shortened(text, 10) == text[:10]


def test_a_client_is_told_both_ends_of_a_long_exception() -> None:
    _, text = client_message(
        ValueError("weights of /srv/models/arm: " + "a layer, " * 5000 + "and 7 joints were expected")
    )

    assert len(text) <= 400 and text.startswith("weights of <path>") and text.endswith("and 7 joints were expected")
    assert "characters in all" in text


def test_no_text_of_an_error_is_cut_in_silence() -> None:
    silent = re.compile(r"(?:str\((?:error|failure)\)|reason|message|\")\[: ?(?:\d{3,}|_?[A-Z_]*TEXT|_?[A-Z_]*LIMIT)\]")
    files = [file for folder in ("daemon", "client", "shmserve") for file in (REPOSITORY / folder).rglob("*.py")]

    found = {f"{Path(file).name}: {cut[0]}" for file in files for cut in silent.finditer(file.read_text())}
    assert len(files) > 150 and found == set()
