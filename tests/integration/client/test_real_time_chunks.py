"""Real-time chunking with a real daemon: a policy gets what it declares, through updates too, and no other policy does."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.action_chunks import ActionChunks, ActionStep
from tests.support.admin_command import rollback, update
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.example_program import output_of
from tests.support.folders import REPOSITORY

pytestmark = [pytest.mark.sealed_too, pytest.mark.pure_too]

EXAMPLE = REPOSITORY / "examples" / "real_time_chunks"
#: What a policy that got no entry says of delay, rows and first row.
NOTHING = (-1.0, -1.0, -1.0)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Other versions of the policy: one that declares nothing, and a third that declares it again."""
    found = {}
    for mark, declares in (("2.0", False), ("3.0", True)):
        package = tmp_path_factory.mktemp("packages") / "continued"
        shutil.copytree(POLICIES / "continued", package, ignore=shutil.ignore_patterns("__pycache__"))
        source = (package / "policy.py").read_text()
        (package / "policy.py").write_text(source.replace("MARK = 1.0", f"MARK = {mark}"))
        if not declares:
            manifest = (package / "model.toml").read_text()
            (package / "model.toml").write_text(manifest.replace("real_time_chunking = true\n", ""))
            source = (package / "policy.py").read_text()
            plain = re.sub(r'return \{"step": 0,.*', 'return {"step": 0}', source)
            (package / "policy.py").write_text(plain)
        found[mark] = package
    return found


@pytest.fixture(scope="module")
def continued() -> Iterator[Daemon]:
    with Daemon("continued") as daemon:
        yield daemon


def settle(chunks: ActionChunks) -> None:
    wait_until("the model is described", lambda: chunks._connecting is None or chunks._connecting.ended)


def run(chunks: ActionChunks, first: int, count: int) -> list[ActionStep]:
    found = []
    for number in range(first, first + count):
        settle(chunks)
        found.append(chunks.step({"step": number}))
    return found


def facts(steps: list[ActionStep]) -> dict[int, tuple[int, float, tuple[float, ...]]]:
    """Of each observation that was sent: the first row executed of its chunk, the model, and what came with it."""
    found: dict[int, tuple[int, float, tuple[float, ...]]] = {}
    for step in steps:
        asked, row, mark, *entries = step.action.tolist()
        assert row == step.index
        found.setdefault(int(asked), (int(row), mark, tuple(entries)))
    return found


def test_a_policy_is_told_what_is_executed_and_no_other_policy_is(continued: Daemon, packages: dict[str, Path]) -> None:
    with continued.client() as client:
        model = client.describe()
        assert model["real_time_chunking"] is True
        # The example has the entries, but a robot need not send them, nor in that number.
        assert model["contract"]["observation"].keys() == {"step"}
        client.check({"step": 1})
        with ActionChunks(client, steps=8, period=None, prefetch=4, max_wait=60.0, fallback="raise") as chunks:
            steps = run(chunks, 0, 17)
            # Eight of twelve rows are left in the step that asks; four of them are executed, as the policy was told.
            assert facts(steps) == {
                0: (0, 1.0, NOTHING),
                4: (4, 1.0, (4.0, 8.0, 4.0)),
                8: (4, 1.0, (4.0, 8.0, 4.0)),
                12: (4, 1.0, (4.0, 8.0, 4.0)),
            }

            update(continued, packages["2.0"])
            steps = run(chunks, 17, 17)
            # Step 16 has asked the old model; the request of step 20 is answered by a model that declares nothing. It was
            # sent with the entries, and without them it arrived.
            found = {asked: entries for asked, (_, mark, entries) in facts(steps).items() if mark == 2.0}
            assert found and set(found.values()) == {NOTHING}
            assert chunks.stats().version_changes == 1

            update(continued, packages["3.0"])
            steps = run(chunks, 34, 25)
            found = {asked: entries for asked, (_, mark, entries) in facts(steps).items() if mark == 3.0}
            # Its first chunk continues nothing: what the robot executed was another model's.
            first, *later = found.values()
            assert first == NOTHING
            # Its description is asked for beside a step, after which its second request may come a step later.
            assert len(later) > 2 and set(later[1:]) == {(4.0, 8.0, 4.0)}
            assert all(delay == 8 - row and rows == 12 - row for delay, rows, row in later)


def test_entries_of_the_callers_own_are_the_callers(continued: Daemon, packages: dict[str, Path]) -> None:
    update(continued, packages["2.0"])
    own = {"step": 1, "inference_delay": 3, "prev_chunk_left_over": np.zeros((2, 6), np.float32)}
    with continued.client() as client:
        for _ in range(3):
            assert tuple(client.infer(own)["actions"][0, 3:5]) == (3.0, 2.0)
            # As ActionChunks sends it.
            pending = client._submit_continued(own, timeout=None, capture_time=None, max_age=None)
            assert tuple(pending.result()["actions"][0, 3:6]) == NOTHING
    rollback(continued)


@pytest.mark.parametrize("declares", [True, False])
def test_the_examples_robot_stays_with_its_plan(tmp_path: Path, declares: bool) -> None:
    package = tmp_path / "passing"
    shutil.copytree(EXAMPLE / "model", package, ignore=shutil.ignore_patterns("__pycache__"))
    if not declares:
        manifest = (package / "model.toml").read_text()
        (package / "model.toml").write_text(re.sub("real_time_chunking.*\n", "", manifest))
    daemon = Daemon(package)
    try:
        daemon.start()
        output = output_of(sys.executable, EXAMPLE / "robot.py", "--name", daemon.name, "--rate", 0, daemon=daemon)
        in_time = output_of(sys.executable, EXAMPLE / "robot.py", "--name", daemon.name, "--steps", 20, daemon=daemon)
    finally:
        daemon.dismiss()

    assert f"continues chunks: {declares}\n" in output
    assert "each requested 4 steps ahead, 0 steps without a fresh action" in output
    found: Any = re.search(r"largest move sideways (\d\.\d\d)", output)
    # Each plan for itself takes either side of the obstacle, 0.6 to the left or to the right of it.
    assert (float(found[1]) < 0.2) == declares
    assert f"continues chunks: {declares}\n" in in_time and "passed the obstacle at" in in_time
