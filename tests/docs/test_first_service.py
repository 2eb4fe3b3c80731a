"""docs/tutorials/first-service.md: what can be tried without root and without systemd is run, in the order of the page."""

from __future__ import annotations

import re

import pytest

from tests.support.folders import REPOSITORY
from tests.support.followed_page import Snippet, empty_folder, run, snippets

pytestmark = pytest.mark.long


def _typed(page: list[Snippet], command: str) -> str:
    """The commands of the console in which `command` stands, without root and in this environment."""
    [console] = [snippet.text for snippet in page if snippet.language == "console" and command in snippet.text]
    lines = [line.removeprefix("$ ").replace("sudo /opt/shmserve/bin/", "") for line in console.splitlines()]
    return "\n".join([*lines, ""])


def _started(script: str) -> str:
    """The part of the script that starts the service and waits for it."""
    return script[: script.index("cat > ask.py")]


def test_a_reader_of_the_page_serves_a_model_and_sees_what_the_service_would_be() -> None:
    page = snippets(REPOSITORY / "docs/tutorials/first-service.md")
    make, try_it, dry_run = [snippet.text for snippet in page if snippet.language == "sh"]

    with empty_folder() as folder:
        run(make, folder)
        tried = run(try_it, folder)
        shown = run(dry_run, folder)
        replaced = run(_started(try_it) + _typed(page, "update-model") + "kill %1\nwait\n", folder)
        log = (folder / "arm.log").read_text()

    assert re.search(r"^\[.*\] median round trip \d+ us$", tried, re.MULTILINE), tried
    assert "WARNING" not in log
    first, new, back = re.findall(r"^\[(.*)\] median", tried + replaced, re.MULTILINE)
    assert first == back != new
    assert replaced.count("serving version") == 2 and "new weights" in replaced
    assert "served" in tried
    # The sandbox of the service reads the package from where it is, and nothing is started.
    assert f'model_path = "{folder}/models/arm"' in shown
    assert "systemctl enable --now shmserved@arm.socket shmserved-admin@arm.socket shmserved@arm.service" in shown
