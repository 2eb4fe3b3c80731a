"""docs/migrating.md: its snippets are run in the order of the page, as a reader would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import watchdog
from tests.daemon_process import environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "migrating.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+\.(?:py|toml))\n")


def run(script: str, folder: Path) -> str:
    """What a shell prints that runs the script and stops at its first error."""
    settings = {
        **environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHMSERVE_RUNTIME_DIR": str(folder / "r"),
        "SHMSERVE_STATE_DIR": str(folder / "s"),
    }
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    watchdog.watch(shell)
    try:
        output, _ = shell.communicate(timeout=100)
    finally:
        watchdog.reap(shell)
    assert shell.returncode == 0, f"{script}\n{output}"
    return output


def test_every_snippet_of_the_page_does_what_it_says() -> None:
    snippets = _BLOCK.findall(PAGE.read_text("utf-8"))
    folder = Path(tempfile.mkdtemp(prefix="shmserve-page-"))
    try:
        named = [(_FILE.match(text), language, text) for language, text in snippets]
        for found, _, text in named:
            if found is not None:
                (folder / found[1]).parent.mkdir(exist_ok=True)
                (folder / found[1]).write_text(text)
        http, lerobot, both = [run(text, folder) for _, language, text in named if language == "sh"]
    finally:
        shutil.rmtree(folder)

    assert "ok [0.5 0.5 0.5 0.5 0.5 0.5]" in http
    assert "0 missed, 0 other models" in lerobot
    assert "[0.0, -1.2, 1.2]\n['Error in inference server:']\n(10, 7) ['infer_ms'] float" in both
    assert "(7,) True chunk None" in both
    assert "True ['single_arm']\n(1, 16, 5) {'options': {'gain': 2.0}, 'episode': 3}" in both
    assert {language for found, language, _ in named if found is None} == {"sh", "diff"}
