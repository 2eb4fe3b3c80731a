"""docs/development/reading-the-code.md: the classes and functions that it names are in the files that it names."""

from __future__ import annotations

import importlib
import re
from operator import attrgetter

import pytest

from tests.support.folders import REPOSITORY

_PAGE = (REPOSITORY / "docs" / "development" / "reading-the-code.md").read_text()


def _rows() -> list[tuple[list[str], list[str]]]:
    """Names and files of each row of the table; a row with a bold name gives the folder of the rows below it."""
    rows, folder = [], ""
    for line in _PAGE.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]]
        if line.startswith("| **"):
            (folder,) = cells[2]
        elif len(cells) == 3 and cells[1] and cells[2]:
            files = [
                file if (REPOSITORY / file).exists() else folder + file for file in cells[2] if file.endswith(".py")
            ]
            rows.append((cells[1], files))
    return rows


@pytest.mark.parametrize(("names", "files"), _rows(), ids=lambda each: each[0])
def test_the_names_of_a_row_are_defined_in_its_files(names: list[str], files: list[str]) -> None:
    paths = [file.removesuffix(".py").replace("/", ".") for file in files]
    modules = [importlib.import_module(path if path.startswith("shmserve.") else f"shmserve.{path}") for path in paths]

    for name in names:
        found = [module for module in modules if hasattr(module, name.partition(".")[0])]
        assert found, f"{name} is not in {files}"
        assert attrgetter(name)(found[0]) is not None


def test_the_table_has_a_row_for_each_step_of_a_request() -> None:
    assert len(_rows()) >= 15
