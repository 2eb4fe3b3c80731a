"""A policy of GR00T's style, asked from C and C++: nested observations with a batch and a time, within a call or bare."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ContractMismatch
from tests.support.c_client import MISMATCH
from tests.support.c_library import compile_program
from tests.support.cpp_library import compile_cpp
from tests.support.daemon_process import POLICIES, Daemon
from tests.support.example_program import output_of
from tests.support.folders import SUPPORT

pytestmark = [pytest.mark.sealed_too]

_KEY = "annotation.human.task_description"
#: Batch, time, height, width and joints.
_DECLARED = (1, 1, 4, 6, 5)
_OTHERS = [(2, 1, 4, 6, 5), (1, 3, 4, 6, 5), (1, 1, 8, 6, 5), (1, 1, 4, 6, 7), (2, 2, 2, 2, 2)]


def observation(sizes: tuple[int, ...]) -> dict[str, Any]:
    batch, time, height, width, joints = sizes
    return {
        "video": {"front": np.zeros((batch, time, height, width, 3), np.uint8)},
        "state": {"single_arm": np.zeros((batch, time, joints), np.float32)},
        "language": {_KEY: [["fold"]]},
    }


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The style's policy with an example, which makes its contract."""
    model = tmp_path_factory.mktemp("gr00t") / "model"
    shutil.copytree(POLICIES / "gr00t_style", model)
    with (model / "policy.py").open("a") as policy:
        policy.write(
            "\n\nimport pickle\n\n"
            f"Policy.example_observation = lambda self: pickle.loads({pickle.dumps(observation(_DECLARED))!r})\n"
        )
    with Daemon(model) as daemon:
        yield daemon


@pytest.fixture(scope="module", params=["c", "cpp"])
def program(request: pytest.FixtureRequest) -> Path:
    if request.param == "c":
        return compile_program(SUPPORT / "c_programs/gr00t.c")
    return compile_cpp(SUPPORT / "cpp_programs/gr00t.cpp")


def asked(program: Path, daemon: Daemon, check: int, *requests: str) -> list[str]:
    return output_of(program, daemon.runtime_dir, daemon.name, check, *requests).splitlines()


def words(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def differences(daemon: Daemon, sizes: tuple[int, ...]) -> list[str]:
    """What the Python client says of such an observation."""
    with daemon.client() as python, pytest.raises(ContractMismatch) as raised:
        python.check({"endpoint": "get_action", "data": {"observation": observation(sizes), "options": None}})
    return [f"  {line}" for line in raised.value.differences]


def test_observations_of_the_declared_sizes_pass_in_a_call_and_bare(program: Path, daemon: Daemon) -> None:
    lines = asked(program, daemon, 1, words(_DECLARED), "bare", "reset", words(_DECLARED))

    assert lines == ["0 1 16 5", "0 1 16 5", "0", "0 1 16 5"]


def test_other_sizes_are_refused_in_python_s_words(program: Path, daemon: Daemon) -> None:
    lines = asked(program, daemon, 1, *map(words, _OTHERS), words(_DECLARED))

    expected = [line for sizes in _OTHERS for line in [str(MISMATCH), *differences(daemon, sizes)]]
    assert lines == [*expected, "0 1 16 5"]


def test_unchecked_the_policy_gets_every_batch_and_time(program: Path, daemon: Daemon) -> None:
    lines = asked(program, daemon, 0, *map(words, _OTHERS))

    assert lines == [f"0 {batch} {16 * time} {joints}" for batch, time, _, _, joints in _OTHERS]
