"""The modules of a package in a process that its policy starts."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    "entry", ["queue", "profile", "logging", "time", "torch", "shmserve", "tests", "policy", "json.decoder", "data.mod"]
)
def test_an_entry_is_the_module_of_the_package_despite_another_module_of_that_name(tmp_path: Path, entry: str) -> None:
    before = {name: sys.modules.get(name) for name in (entry, entry.partition(".")[0])}

    model = package(tmp_path, f"{entry}:Policy", **{entry.replace(".", "/"): _POLICY})
    (action,) = model.infer([{}])

    assert action["kept"].value == 41
    kept = pickle.dumps(action["kept"])
    assert type(pickle.loads(kept)) is type(action["kept"])
    for name, module in before.items():
        assert module is None or sys.modules[name] is module
    # As in a process that the policy spawns, which gets its path.
    program = f"import pickle, sys; sys.path[:] = {sys.path!r}; print(pickle.loads({kept!r}).value)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "41\n", done.stderr
