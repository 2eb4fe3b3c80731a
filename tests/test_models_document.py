"""docs/model-packages.md: its snippets are run in the order of the page, as a reader would, and its tables are complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shmserve.daemon import manifest
from shmserve.daemon.engine.models.installed_class import GROUP
from shmserve.daemon.engine.warmup import warm_up
from shmserve.daemon.formats import FORMATS
from tests import watchdog
from tests.daemon_process import environment
from tests.packages.saving import CPU, loaded

PAGE = Path(__file__).resolve().parent.parent / "docs" / "model-packages.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LIMIT_S = 120.0


class Snippet(NamedTuple):
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the first line says it is."""
        first = re.match(r"# ([\w./]+\.(?:py|toml))$", self.text.partition("\n")[0])
        return first[1] if first else None


SNIPPETS = [Snippet(*found) for found in _BLOCK.findall(PAGE.read_text("utf-8"))]


@pytest.fixture(scope="module")
def reader() -> Iterator[tuple[Path, list[str]]]:
    """A folder in which everything on the page was written and run, and what each run printed."""
    folder = Path(tempfile.mkdtemp(prefix="shmserve-page-"))
    outputs = []
    try:
        for snippet in SNIPPETS:
            if snippet.file is not None:
                (folder / snippet.file).parent.mkdir(exist_ok=True)
                (folder / snippet.file).write_text(snippet.text)
            elif snippet.language == "sh":
                outputs.append(run(snippet.text, folder))
        yield folder, outputs
    finally:
        shutil.rmtree(folder)


def run(script: str, folder: Path) -> str:
    """What a shell prints that runs the script and stops at its first error."""
    settings = {
        **environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHMSERVE_RUNTIME_DIR": str(folder / "r"),
        "SHMSERVE_STATE_DIR": str(folder / "s"),
        "COLUMNS": "200",
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
        output, _ = shell.communicate(timeout=_LIMIT_S)
    finally:
        watchdog.reap(shell)
    assert shell.returncode == 0, f"{script}\n{output}"
    return output


def printed(output: str) -> list[str]:
    """The lines that are arrays, among what the daemon logs."""
    return [line for line in output.splitlines() if line.startswith("[")]


def test_every_snippet_that_is_run_answers_as_the_page_says(reader: tuple[Path, list[str]]) -> None:
    _, (brighten, exported, scripted, checked) = reader

    assert printed(brighten) == ["[2. 2. 2. 2. 2. 2.]"]
    # The same network as an exported program, as a Python package and as TorchScript.
    first, second = printed(exported)
    assert first == second
    assert printed(scripted) == printed(checked) == [first]


def test_the_contract_on_the_page_is_that_of_its_example(reader: tuple[Path, list[str]]) -> None:
    folder, _ = reader
    (shown,) = [json.loads(snippet.text) for snippet in SNIPPETS if snippet.language == "json"]
    model, package = loaded(folder / "reach_exported")

    assert warm_up(model, CPU, package).contract == shown
    assert model.metadata() == {"control_rate_hz": 50}


def test_the_installed_policy_on_the_page_is_found_under_its_name(
    reader: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = reader
    project = (folder / "scale_policies" / "pyproject.toml").read_text()
    ((name, target),) = re.findall(rf'"{re.escape(GROUP)}"\]\n(\w+) = "(.+)"', project)
    info = folder / "scale_policies" / "scale_policies-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
    shutil.copyfile(folder / "reach" / "weights.safetensors", folder / "scale" / "weights.safetensors")
    monkeypatch.syspath_prepend(folder / "scale_policies")
    monkeypatch.delitem(sys.modules, "scale_policies", raising=False)

    with pytest.raises(KeyError, match="gain"):  # its constructor ran, on weights that are another policy's
        loaded(folder / "scale")


@pytest.mark.parametrize("keys", [manifest._MODEL, manifest._WARMUP], ids=["model", "warmup"])
def test_every_key_of_the_manifest_is_in_a_table_on_the_page(keys: dict[str, Any]) -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert set(keys) <= named


def test_every_format_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")

    for name, form in FORMATS.items():
        assert f"| `{name}` |" in text
        assert form.file is None or f"`{form.file}`" in text
