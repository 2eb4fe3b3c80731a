"""One request passes through few files of the package, so that a reader can follow it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmserve
from shmserve.client import ShmClient, shm_client
from tests.support.daemon_process import Daemon
from tests.support.native import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

_FOLDERS = tuple(str(Path(str(module.__file__)).resolve().parent) for module in (shmserve, shm_client))
_OBSERVATION = {"state": np.zeros(16, np.float32)}


def files_entered(call: Callable[[], object]) -> list[str]:
    """The files of the package in which `call` calls functions, in order; a file again when it is entered again."""
    files: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = str(Path(frame.f_code.co_filename).resolve()) if event == "call" else ""
        if file.startswith(_FOLDERS) and files[-1:] != [file]:
            files.append(file)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [Path(file).name for file in files]


@pytest.mark.parametrize("spin_us", [0, 1_000_000])
@pytest.mark.parametrize("options", [{}, {"max_age": 60.0}])
def test_a_request_enters_at_most_six_files_and_returns_to_none_of_them(
    echo: Daemon, options: dict[str, float], spin_us: int
) -> None:
    with ShmClient(echo.name, runtime_dir=echo.runtime_dir, spin_us=spin_us) as client:
        for _ in range(20):
            client.infer(_OBSERVATION, **options)  # type: ignore[arg-type]
        walks = Counter(
            tuple(files_entered(lambda: client.infer(_OBSERVATION, **options)))  # type: ignore[arg-type]
            for _ in range(50)
        )

    # The most frequent one: a wait that ends without a reply also checks whether the daemon lives.
    ((files, _),) = walks.most_common(1)
    assert files[:2] == ("shm_client.py", "request_pipeline.py")
    assert len(files) <= 6, files
    assert len(files) == len(set(files)), files
