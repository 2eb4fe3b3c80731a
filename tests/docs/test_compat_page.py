"""docs/how-to/migrating.md: its snippets are run in the order of the page, as a reader would."""

from __future__ import annotations

import pytest

from tests.support.folders import REPOSITORY
from tests.support.followed_page import empty_folder, follow, snippets, write

PAGE = REPOSITORY / "docs/how-to/migrating.md"


@pytest.mark.long
def test_every_snippet_of_the_page_does_what_it_says() -> None:
    page = snippets(PAGE)
    with empty_folder() as folder:
        for snippet in page:  # the policies stand at the end of the page
            write(snippet, folder)
        http, lerobot, both = follow(page, folder)

    assert "ok [0.5 0.5 0.5 0.5 0.5 0.5]" in http
    assert "0 missed, 0 other models" in lerobot
    assert "[0.0, -1.2, 1.2]\n['Error in inference server:']\n(10, 7) ['infer_ms'] float" in both
    assert "(7,) True chunk None" in both
    assert "True ['single_arm']\n(1, 16, 5) {'options': {'gain': 2.0}, 'episode': 3}" in both
    assert {snippet.language for snippet in page if snippet.file is None} == {"sh", "diff"}
