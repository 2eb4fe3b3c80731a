"""Real daemons and robots for the tests, each gone without a trace afterwards."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client import ShmClient
from shmserve.daemon.store import Store
from shmserve.daemon.store.ingest import ingest
from tests.support import surroundings, watchdog
from tests.support.archives.stores import Open
from tests.support.archives.taking import Take, ingest_here, taker
from tests.support.daemon_process import Daemon
from tests.support.fault_marks import note_marks
from tests.support.folders import REPOSITORY
from tests.support.gate import Gate
from tests.support.robot_process import Robot

surroundings.settle()
# Until all tests are collected: what is made by then stays.
gc.disable()

collect_ignore_glob = ["support/*"]

#: The longest test needs a quarter of it on two busy cores.
_TEST_LIMIT_S = 150.0
#: Where tests make folders.
_SCRATCH = tempfile.gettempdir() + "/"
_CHECKOUT = f"{REPOSITORY}/"


def pytest_unconfigure() -> None:
    saving = sys.modules.get("tests.support.packages.saving")
    if saving is not None:
        saving.remove_saved()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note the marks before any test is deselected; skip tests marked `gpu` where CUDA does not work."""
    note_marks(config, items)
    for item in items:
        # A doctest carries no mark in its file.
        if isinstance(item, pytest.DoctestItem) and item.path.parent.name == "shmserve":
            item.add_marker(pytest.mark.pure_too)
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not marked:
        return
    import torch  # only here: it takes two seconds of each worker

    if torch.cuda.is_available():
        return
    why = "is built without CUDA" if torch.version.cuda is None else "finds no GPU that it can use"
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=f"needs a GPU: torch {torch.__version__} {why}"))


def pytest_collection_finish() -> None:
    """Leave all that the modules made out of later collections: some tests collect, for 0.3 s each otherwise."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """No test hangs, and none leaves a process."""
    with watchdog.limit(_TEST_LIMIT_S):
        yield


@pytest.fixture(autouse=True)
def own_imports() -> Iterator[None]:
    """What a test imports from a folder of its own is gone after it: an engine serves one package, a worker many."""
    path, modules, no_bytecode, arguments = [*sys.path], {*sys.modules}, sys.dont_write_bytecode, sys.argv
    finders = [*sys.meta_path]
    yield
    sys.path[:] = path
    sys.argv = arguments
    sys.meta_path[:] = finders
    sys.dont_write_bytecode = no_bytecode
    for name in {*sys.modules} - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        # A checkout may lie there as well, with its environment.
        if file.startswith(_SCRATCH) and not file.startswith((sys.prefix, _CHECKOUT)):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """Leave all that a file's tests have imported out of later collections, too, and collect their garbage while it is known whose."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """For tests of what opens files in this process."""
    gc.collect()  # what earlier tests left to be collected is none of ours
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """Receives a package into tmp_path/staging, in this process."""
    return taker(tmp_path)


@pytest.fixture
def take_confined(tmp_path: Path) -> Take:
    """As `take`, through a process under limits, as the daemon does."""
    return taker(tmp_path, ingest)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Opens the store in tmp_path/models, which receives in this process; the one opened before is closed."""
    with contextlib.ExitStack() as stack:

        def open_(**settings: Any) -> Store:
            stack.close()
            store = Store(tmp_path / "models", **{"ingest": ingest_here, **settings})
            stack.callback(store.close)
            store.open()
            return store

        yield open_


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon of a policy in tests/support/policies (see Daemon)."""
    with contextlib.ExitStack() as stack:

        def start(policy: str | Path = "echo", **settings: Any) -> Daemon:
            daemon = Daemon(policy, **settings)
            stack.callback(daemon.dismiss)
            return daemon.start()

        yield start


@pytest.fixture
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    """As start_daemon, but the test starts it."""
    with contextlib.ExitStack() as stack:

        def make(policy: str | Path = "echo", **settings: Any) -> Daemon:
            daemon = Daemon(policy, **settings)
            stack.callback(daemon.dismiss)
            return daemon

        yield make


@pytest.fixture(scope="session")
def echo() -> Iterator[Daemon]:
    """One daemon of the echo policy for all tests that do not harm it."""
    with Daemon("echo") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def obedient() -> Iterator[Daemon]:
    """One daemon of the policy that does what it is asked, for all tests that do not harm it."""
    with Daemon("obedient") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def tagged() -> Iterator[Daemon]:
    """One daemon of the policy that says whose request it answers, for all tests that do not harm it."""
    with Daemon("tagged") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def described() -> Iterator[Daemon]:
    """One daemon of the policy that describes itself, for all tests that do not harm it."""
    with Daemon("described") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def minimal() -> Iterator[Daemon]:
    """One daemon of the minimal example, by the name that its robots ask."""
    with Daemon(REPOSITORY / "examples/minimal/model", name="default") as daemon:
        yield daemon


@pytest.fixture
def client(obedient: Daemon) -> Iterator[ShmClient]:
    """A client of the obedient policy."""
    with obedient.client() as client:
        yield client


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Holds the obedient policy up until it is opened, or the test ends."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def start_robot() -> Iterator[Callable[..., Robot]]:
    """Starts one of the programs in tests/support/robots (see Robot)."""
    with contextlib.ExitStack() as stack:

        def start(program: str, daemon: Daemon, *arguments: object) -> Robot:
            robot = Robot(program, daemon, *arguments)
            stack.callback(robot.dismiss)
            return robot

        yield start
