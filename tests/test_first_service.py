"""docs/first-service.md: what can be tried without root and without systemd is run, in the order of the page."""

from __future__ import annotations

import re

import pytest

from tests.followed_page import REPOSITORY, empty_folder, run, snippets

pytestmark = pytest.mark.long


def test_a_reader_of_the_page_serves_a_model_and_sees_what_the_service_would_be() -> None:
    page = snippets(REPOSITORY / "docs" / "first-service.md")
    make, try_it, dry_run = [snippet.text for snippet in page if snippet.language == "sh"]

    with empty_folder() as folder:
        run(make, folder)
        tried = run(try_it, folder)
        shown = run(dry_run, folder)

    assert re.search(r"^\[.*\] \d+\.\d+ us$", tried, re.MULTILINE), tried
    assert "served" in tried
    # The sandbox of the service reads the package from where it is, and nothing is started.
    assert f'model_path = "{folder}/models/arm"' in shown
    assert "systemctl enable --now shmserved@arm.socket shmserved-admin@arm.socket shmserved@arm.service" in shown
