"""Models that cannot be served: the update is refused with the model's own words, and the old model serves on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.admin_command import engines_of, refused, rollback, served, staged, update
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gain_packages import gain_package
from tests.support.packages_bad.models import HANGING, MEMORY_BYTES, MODELS, MORE_MODELS, BadModel, children

#: Enough to start an engine on a loaded machine.
_LOAD_S = 20
_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    package = gain_package(tmp_path_factory.mktemp("packages"), 2)
    daemon = Daemon(package, config=f"engine_memory_bytes = {MEMORY_BYTES}\n")
    daemon.expected_in_log |= {"Fatal Python error: Segmentation fault", "Fatal Python error: Aborted"}
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def _check_refused(daemon: Daemon, package: Path, *said: str) -> None:
    """The update is refused; the old version serves from its old engine, and nothing else runs or was left."""
    version, engine = served(daemon), daemon.engine_pid
    with daemon.client() as client:
        before = client.infer(_X)["k"]

        with refused("engine", *said):
            update(daemon, package)

        assert client.infer(_X)["k"] == before
    assert (served(daemon), engines_of(daemon.pid)) == (version, [engine])
    assert daemon.status()["state"] == "ready"

    def known() -> bool:
        (kept,) = [kept for kept in daemon.admin("Versions")["versions"] if kept["source"] == package.name]
        assert (kept["serving"], kept["served"]) == (False, 0)
        return said[0] in (kept["refused"] or "")

    wait_until("the reason is kept with the version", known)
    wait_until("nothing is on its way", lambda: not staged(daemon))


@pytest.mark.fault("T80")
@pytest.mark.parametrize(
    "model", [*MODELS, *(pytest.param(model, marks=pytest.mark.long) for model in MORE_MODELS)], ids=str
)
def test_a_model_that_cannot_be_served_is_refused(model: BadModel, daemon: Daemon, tmp_path: Path) -> None:
    _check_refused(daemon, model.write(tmp_path), *model.said)


def test_processes_of_a_refused_model_end_with_it(daemon: Daemon, tmp_path: Path) -> None:
    model = children(tmp_path)

    _check_refused(daemon, model.write(tmp_path), *model.said)

    wait_until("its child is gone", lambda: not is_running(int((tmp_path / "child").read_text())))


@pytest.mark.long
def test_models_that_hang_are_given_up_after_load_s(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    def hang(model: BadModel) -> None:
        folder = tmp_path / model.name
        folder.mkdir()
        daemon = make_daemon(gain_package(folder, 2), config=f"load_s = {_LOAD_S}\n").start()
        _check_refused(daemon, model.write(folder), model.said[0] + f"{_LOAD_S} s; if it needs longer, raise load_s")

    with ThreadPoolExecutor(len(HANGING)) as pool:
        list(pool.map(hang, HANGING))


@pytest.mark.fault("T44")
@pytest.mark.long
def test_another_contract_needs_the_operators_word(daemon: Daemon, tmp_path: Path) -> None:
    """A k that is no integer makes every action float."""
    package = gain_package(tmp_path, 2.5)
    before = served(daemon)
    with refused("contract", "y: int64[3] -> float", "--allow-contract-change"):
        update(daemon, package)
    assert served(daemon) == before

    # The engine was not kept: it may have been a mistake, and memory is dear.
    wait_until("one engine is left", lambda: len(engines_of(daemon.pid)) == 1)
    assert update(daemon, package, allow_contract_change=True)["changed"]
    with daemon.client() as client:
        assert client.infer(_X)["k"] == 2.5
    (kept,) = [kept for kept in daemon.admin("Versions")["versions"] if kept["source"] == package.name]
    assert kept["refused"] is None and kept["serving"]
    # A rollback asks nothing: what served before is no surprise.
    assert rollback(daemon)["version"] == before
