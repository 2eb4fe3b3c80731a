"""Modules of a package that bear the name of a module that is loaded already, or is the standard library's."""

from __future__ import annotations

import importlib
import logging
import queue
import sys
from pathlib import Path
from typing import Any

import pytest

from shmserve.errors import ModelPackageError
from tests.support.packages.saving import loaded

_POLICY = """
class Kept:
    value = 41

class Policy:
    def __init__(self, path, device): pass
    def infer(self, observation): return {"kept": Kept()}
"""


def package(directory: Path, entry: str, **files: str) -> Any:
    """The policy of a package with these modules."""
    for name, code in files.items():
        file = directory / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    (directory / "model.toml").write_text(f'[model]\nentry = "{entry}"\n')
    return loaded(directory)[0]


def test_a_packages_code_finds_its_neighbours_and_all_other_code_the_standard_library(tmp_path: Path) -> None:
    model = package(
        tmp_path,
        "mine:Policy",
        mine="""
import queue, logging.handlers, tabnanny as tabs
from queue import VALUE
from logging import handlers as also, config
class Policy:
    def __init__(self, path, device): pass
    def infer(self, observation):
        import statistics, json
        return [queue.VALUE, VALUE, logging.handlers.VALUE, also.VALUE, config.VALUE, tabs.VALUE, statistics.VALUE,
                json.loads("8")]
""",
        **{
            "queue": "VALUE = 1",
            "logging/__init__": "VALUE = 0",
            "logging/handlers": "from . import VALUE as less; import queue; VALUE = less + queue.VALUE + 1",
            "logging/config": "VALUE = 3",
            "tabnanny": "VALUE = 5",
            "statistics": "VALUE = 6",
        },
    )

    assert model.infer([{}]) == [[1, 1, 2, 2, 3, 5, 6, 8]]
    assert (queue.__name__, logging.__name__) == ("queue", "logging")
    assert not hasattr(queue, "VALUE")
    for name in ("tabnanny", "statistics"):
        assert str(importlib.import_module(name).__file__).startswith(sys.base_prefix)


def test_a_package_without_such_names_is_imported_as_a_script_imports_its_neighbours(tmp_path: Path) -> None:
    finders = [*sys.meta_path]

    model = package(tmp_path, "unlike_any:Policy", unlike_any="from beside_it import Policy", beside_it=_POLICY)

    assert type(model.infer([{}])[0]["kept"]).__module__ == "beside_it"
    assert sys.meta_path == finders and sys.argv == [str(tmp_path / "unlike_any.py")]


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("class MyPolicy:\n def infer(self, o): pass", 'did you mean MyPolicy? Then write entry = "policy:MyPolicy"'),
        ("class Reach:\n def infer(self, o): pass", "did you mean Reach?"),
        ("class A:\n infer = id\nclass B:\n get_action = id", "(policies in it are A, B)"),
        ("from decimal import Decimal", "policy:Policy: policy has no Policy"),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_the_one_that_may_be_meant(
    tmp_path: Path, code: str, hint: str
) -> None:
    with pytest.raises(ModelPackageError) as refused:
        package(tmp_path, "policy:Policy", policy=code)

    assert hint in str(refused.value)
