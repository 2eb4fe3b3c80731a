"""docs/how-to/model-packages.md: its snippets are run in the order of the page, as a reader would; tables of model.toml are complete."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.engine.models.installed_class import GROUP
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.daemon.packages import lerobot_options, manifest
from shmserve.daemon.packages.formats import FORMATS
from tests.support.folders import REPOSITORY
from tests.support.followed_page import empty_folder, follow, snippets
from tests.support.packages.saving import CPU, loaded

PAGE = REPOSITORY / "docs/how-to/model-packages.md"
SNIPPETS = snippets(PAGE)
REFERENCE = REPOSITORY / "docs/reference/model-toml.md"


@pytest.fixture(scope="module")
def reader() -> Iterator[tuple[Path, list[str]]]:
    """A folder in which everything on the page was written and run, and what each run printed."""
    with empty_folder() as folder:
        yield folder, follow(SNIPPETS, folder)


def printed(output: str) -> list[str]:
    """The lines that are arrays, among what the daemon logs."""
    return [line for line in output.splitlines() if line.startswith("[")]


@pytest.mark.long
def test_every_snippet_that_is_run_answers_as_the_page_says(reader: tuple[Path, list[str]]) -> None:
    _, (brighten, exported, scripted, checked, smooth, steady) = reader

    assert printed(brighten) == ["[2. 2. 2. 2. 2. 2.]"]
    # The same network as an exported program, as a Python package and as TorchScript.
    first, second = printed(exported)
    assert first == second
    assert printed(scripted) == printed(checked) == [first]
    # Each robot's own state; the one that was reset begins anew.
    assert printed(smooth) == ["[0. 0.] [0. 0.]", "[0.5 0.5] [0.5 0.5]", "[3. 3.] [1.75 1.75]"]
    # Planned from its observation, which is always the same, each chunk would begin with a jump.
    assert "largest jump: 0.1\n" in steady


@pytest.mark.long
def test_the_contract_on_the_page_is_that_of_its_example(reader: tuple[Path, list[str]]) -> None:
    folder, _ = reader
    (shown,) = [json.loads(snippet.text) for snippet in SNIPPETS if snippet.language == "json"]
    model, package = loaded(folder / "reach_exported")

    assert warm_up(model, CPU, package).contract == shown
    assert model.metadata() == {"control_rate_hz": 50}


@pytest.mark.long
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
def test_every_key_of_the_manifest_is_in_a_table_of_the_reference(keys: dict[str, Any]) -> None:
    rows = [line for line in REFERENCE.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert set(keys) <= named


def test_every_option_of_a_lerobot_package_is_in_a_table_on_its_page() -> None:
    rows = [line for line in (PAGE.parent / "lerobot.md").read_text("utf-8").splitlines() if line.startswith("| `")]

    assert set(lerobot_options._KEYS) == {name for row in rows for name in re.findall(r"^\| `(\w+)` \|", row)}


def test_every_format_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")

    for name, form in FORMATS.items():
        assert f"| `{name}` |" in text
        assert form.file is None or f"`{form.file}`" in text
