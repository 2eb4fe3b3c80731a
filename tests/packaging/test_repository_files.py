"""Files for the hosts of repositories and indexes: what they repeat of pyproject.toml."""

from __future__ import annotations

import re
import sys
from typing import Any

from tests.support.folders import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return found


def test_the_citation_names_the_version_and_the_license_of_the_package() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text()

    assert f"\nversion: {project()['version']}\n" in citation
    assert f"\nlicense: {project()['license']}\n" in citation


def test_the_workflow_tests_every_python_that_the_package_names() -> None:
    workflow = (REPOSITORY / ".github/workflows/test.yml").read_text()
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix is not None
    named = [
        classifier.rpartition(" ")[2]
        for classifier in project()["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", classifier)
    ]

    assert re.findall(r"3\.\d+", matrix[1]) == named
    assert project()["requires-python"] == f">={named[0]}"
