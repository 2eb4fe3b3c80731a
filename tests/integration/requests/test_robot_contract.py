"""A robot's own statement of its numbers, against a real daemon: refused before motion, also after an update."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ActionChunks, AsyncShmClient, ContractMismatch, NoFreshAction, ShmClient
from shmserve.client.pending import Pending
from tests.support.admin_command import admin, refused, rollback, update
from tests.support.client_parts import in_loop
from tests.support.daemon_process import Daemon
from tests.support.joint_packages import STATED, joint_package

pytestmark = pytest.mark.sealed_too

DEGREES, RADIANS = (STATED.replace("UNITS", units) for units in ("deg", "rad"))
#: What the robot of these tests states of its own numbers.
ROBOT: dict[str, Any] = {
    "rate_hz": 50,
    "observation": {"state": {"units": "deg", "names": ["pan", "lift", "grip"]}, "camera": {"colour_order": "rgb"}},
    "action": {"actions": {"units": "deg"}},
}


def seen(points: int = 5, **entries: Any) -> dict[str, Any]:
    """An observation with this number of points."""
    return {
        "state": np.arange(3, dtype=np.float32),
        "points": np.zeros((points, 3), np.float32),
        "camera": np.zeros((4, 6, 3), np.uint8),
        **entries,
    }


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    contracts = {
        "degrees": DEGREES,
        "radians": RADIANS,
        "finer": DEGREES + "\n[metadata]\nfiner = 1\n",
        "silent": "[contract.observation]\npoints = [-1, 3]\n",
    }
    return {name: joint_package(folder, name, contract) for name, contract in contracts.items()}


@pytest.fixture(scope="module")
def daemon(packages: dict[str, Path]) -> Iterator[Daemon]:
    with Daemon(packages["degrees"]) as daemon:
        yield daemon


@pytest.fixture
def robot(daemon: Daemon) -> Iterator[ShmClient]:
    """A robot that the model agrees with."""
    with daemon.client(robot=ROBOT) as client:
        yield client


def test_a_robot_that_means_something_else_is_refused_as_it_connects(robot: ShmClient, daemon: Daemon) -> None:
    runs = robot.infer(seen())["runs"]
    other = daemon.client(robot={"rate_hz": 30, "observation": {"state": {"units": "rad"}}})

    for call in (other.connect, lambda: other.infer(seen()), lambda: other.submit(seen()), lambda: other.loan(seen())):
        with pytest.raises(ContractMismatch) as caught:
            call()
        assert caught.value.differences == ("rate_hz: 50 -> 30", "observation.state.units: deg -> rad")
    with pytest.raises(ContractMismatch, match="rate_hz: 50 -> 30"):
        other.check(seen())
    with pytest.raises(ContractMismatch):
        other.__enter__()
    with pytest.raises(ContractMismatch, match="rate_hz: 50 -> 30"):
        asyncio.run(_entered(daemon, {"rate_hz": 30}))

    assert robot.infer(seen())["runs"] == runs + 1
    asyncio.run(_entered(daemon, ROBOT))


async def _entered(daemon: Daemon, robot: dict[str, Any]) -> None:
    async with AsyncShmClient(daemon.name, runtime_dir=daemon.runtime_dir, timeout=60.0, robot=robot) as client:
        assert (await client.infer(seen()))["points"] == 5


def test_steps_at_another_rate_are_no_actions(daemon: Daemon) -> None:
    with daemon.client() as silent:
        with (
            ActionChunks(silent, steps=2, period=0.04, max_wait=30.0, fallback="raise") as chunks,
            pytest.raises((NoFreshAction, ContractMismatch)) as caught,
        ):
            chunks.step(seen())
        assert "rate_hz: 50 -> 25" in str(caught.value.__cause__ or caught.value)
        assert silent.infer(seen())["points"] == 5  # the client itself may ask


def test_every_length_of_a_free_dimension_is_served_and_no_other_shape(robot: ShmClient) -> None:
    for points in (5, 1, 700, 5, 40_000):
        assert robot.infer(seen(points))["points"] == points
    with pytest.raises(ContractMismatch, match=r"observation.points: float32\[-1, 3\] -> float32\[7, 4\]"):
        robot.infer(seen(points=1) | {"points": np.zeros((7, 4), np.float32)})


def test_the_contract_is_described_and_shown(robot: ShmClient, daemon: Daemon) -> None:
    meaning = robot.describe()["contract"]["meaning"]

    assert meaning["rate_hz"] == 50 and meaning["observation"]["state"]["names"] == ["pan", "lift", "grip"]
    assert daemon.status()["model"]["contract"]["meaning"] == meaning
    shown = admin(daemon, "status").stdout
    assert "rate_hz 50" in shown and "observation.state.units deg" in shown


def _by_future(client: ShmClient) -> Any:
    found: Future[Any] = Future()

    def ended(pending: Pending) -> None:
        error = pending.exception()
        found.set_result(pending.result()) if error is None else found.set_exception(error)

    client.submit(seen()).add_done_callback(ended)
    return found.result(60)


def _by_loan(client: ShmClient) -> Any:
    with client.loan(seen()) as observation:
        pending = observation.send()
    return pending.result()


def _loaned(client: ShmClient) -> Any:
    with client.infer_loaned(seen()) as action:
        return {"points": action["points"]}


def _by_reset(client: ShmClient) -> Any:
    client.reset()
    return client.infer(seen())


async def _awaited(client: ShmClient) -> Any:
    return await client.submit(seen())


_WAYS: dict[str, Callable[[ShmClient], Any]] = {
    "infer": lambda client: client.infer(seen()),
    "request": lambda client: client.request(seen()).action,
    "result": lambda client: client.submit(seen()).result(),
    "reset": _by_reset,
    "callback": _by_future,
    "loan": _by_loan,
    "loaned reply": _loaned,
    "awaited": lambda client: asyncio.run(_awaited(client)),
    "event loop": lambda client: asyncio.run(in_loop(client).infer(seen())),
}


def test_no_way_of_asking_gives_an_action_of_a_model_that_means_something_else(
    make_daemon: Callable[..., Daemon], packages: dict[str, Path]
) -> None:
    """One test, because each new model takes seconds to load."""
    daemon = make_daemon(packages["degrees"]).start()
    changes: list[tuple[str, str]] = []
    robot = daemon.client(robot=ROBOT)
    robot.on_model_change(lambda before, after: changes.append((before, after)))
    robot.infer(seen())

    _an_update_of_another_meaning_is_refused(daemon, packages["radians"])
    _an_update_of_the_same_meaning_loses_nothing(daemon, robot, packages["finer"])
    assert len(changes) == 1
    for way, ask in _WAYS.items():
        update(daemon, packages["radians"], allow_contract_change=True)
        for _ in range(2):  # the first is refused by its reply, the second before it is sent
            with pytest.raises(ContractMismatch, match="units: rad -> deg") as caught:
                ask(robot)
            assert "observation.state.units: rad -> deg" in caught.value.differences, way
        rollback(daemon)
        assert _until_accepted(partial(ask, robot))["points"] == 5, way
    update(daemon, packages["radians"], allow_contract_change=True)
    _chunks_of_another_meaning_are_no_actions(robot)
    update(daemon, packages["silent"], allow_contract_change=True)
    _a_model_that_begins_to_state_its_numbers_is_compared(daemon, robot, packages["radians"])


def _an_update_of_another_meaning_is_refused(daemon: Daemon, package: Path) -> None:
    with refused("contract", "observation.state.units: 'deg' -> 'rad'; action.actions.units: 'deg' -> 'rad'"):
        update(daemon, package)


def _an_update_of_the_same_meaning_loses_nothing(daemon: Daemon, robot: ShmClient, package: Path) -> None:
    in_flight = robot.submit(seen())
    update(daemon, package)
    assert in_flight.result()["points"] == 5
    assert [robot.infer(seen())["points"] for _ in range(3)] == [5, 5, 5]


def _until_accepted(call: Callable[[], Any]) -> Any:
    """A refusal stands for 0.1 s; then the daemon is asked again."""
    while True:
        try:
            return call()
        except ContractMismatch:
            continue


def _chunks_of_another_meaning_are_no_actions(robot: ShmClient) -> None:
    for _ in range(2):
        with (
            ActionChunks(robot, steps=8, period=0.02, max_wait=30.0, fallback="raise") as chunks,
            pytest.raises((NoFreshAction, ContractMismatch)) as caught,
        ):
            chunks.step(seen())
        assert isinstance(caught.value.__cause__ or caught.value, ContractMismatch)


def _a_model_that_begins_to_state_its_numbers_is_compared(daemon: Daemon, robot: ShmClient, package: Path) -> None:
    with daemon.client() as silent:
        assert _until_accepted(lambda: robot.infer(seen()))["points"] == silent.infer(seen())["points"] == 5

        update(daemon, package)

        with pytest.raises(ContractMismatch, match="units: rad -> deg"):
            robot.infer(seen())
        assert silent.infer(seen())["points"] == 5
