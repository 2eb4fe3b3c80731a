"""A C program states what its robot's numbers mean: compared by the daemon, in the words of the Python client, at every change."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ContractMismatch, InvalidArgument
from tests.support import c_client
from tests.support.admin_command import rollback, update
from tests.support.c_client import CClient, CError
from tests.support.c_library import library
from tests.support.daemon_process import Daemon
from tests.support.joint_packages import STATED, joint_package
from tests.support.lying_daemon import lying

pytestmark = pytest.mark.sealed_too

DEGREES, RADIANS = (STATED.replace("UNITS", units) for units in ("deg", "rad"))
NAMES = ["pan", "lift", "grip"]
#: What the robot of these tests states of its own numbers.
ROBOT: dict[str, Any] = {
    "rate_hz": 50,
    "observation": {"state": {"units": "deg", "names": NAMES}, "camera": {"colour_order": "rgb"}},
    "action": {"actions": {"units": "deg"}},
}
SEEN = {
    "state": np.arange(3, dtype=np.float32),
    "points": np.zeros((5, 3), np.float32),
    "camera": np.zeros((4, 6, 3), np.uint8),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    library()
    folder = tmp_path_factory.mktemp("packages")
    contracts = {
        "degrees": DEGREES,
        "radians": RADIANS,
        **{name: f"{DEGREES}\n[metadata]\n{name} = 1\n" for name in ("finer", "coarser")},
    }
    return {name: joint_package(folder, name, contract) for name, contract in contracts.items()}


@pytest.fixture(scope="module")
def daemon(packages: dict[str, Path]) -> Iterator[Daemon]:
    with Daemon(packages["degrees"]) as daemon:
        yield daemon


def stating(daemon: Daemon, robot: Any, **settings: Any) -> CClient:
    text = robot if isinstance(robot, str) else json.dumps(robot)
    return CClient.of(daemon, robot=text.encode(), **settings)


def refusal(call: Callable[[], object]) -> CError:
    with pytest.raises(CError) as caught:
        call()
    return caught.value


def test_a_robot_that_agrees_is_served(daemon: Daemon) -> None:
    with stating(daemon, ROBOT) as client:
        assert [client.infer(SEEN)["points"] for _ in range(3)] == [5, 5, 5]
        client.check(client.calls.reset(client.handle, 0))


_STATEMENTS: dict[str, Any] = {
    "agrees": ROBOT,
    "nothing": {},
    "units": {"observation": {"state": {"units": ["deg", "deg", "rad"]}}, "action": {"actions": {"units": "rad"}}},
    "rate": {"rate_hz": 30.5, "action_horizon": 8},
    "order": {"action": {"actions": {"names": ["lift", "pan", "grip"]}}},
    "an entry that is missing": {"action": {"joints": {"units": "°C", "names": NAMES}}},
    "shapes": {"observation": {"points": [-1, 4], "state": [4], "camera": {"frame_size": [6, 4]}}},
    "a whole arm": {
        "action": {f"joint {n} of the ärm": {"names": [f"axis {k}" for k in range(29)]} for n in range(40)}
    },
    "hundreds of entries": {"action": {f"joint {number}": {"units": "m"} for number in range(900)}},
    "an unknown key": {"rate": 50},
    "a spelling": {"action": {"actions": {"units": "degrees"}}},
    "an entry of nothing": {"action": {"actions": {}}},
    "too many entries": {"action": {str(number): [1] for number in range(2000)}},
    "a side that is text": {"action": "deg"},
}


@pytest.mark.parametrize("robot", _STATEMENTS.values(), ids=_STATEMENTS)
def test_the_verdict_and_its_words_are_those_of_python(daemon: Daemon, robot: Any) -> None:
    status, text = c_client.OK, ""
    try:
        with daemon.client(robot=robot) as python:
            python.infer(SEEN)
    except ContractMismatch as error:
        status, text = c_client.MISMATCH, str(error)
    except InvalidArgument as error:
        status, text = c_client.ARGUMENT, str(error)

    if status == c_client.OK:
        with stating(daemon, robot) as client:
            assert client.infer(SEEN)["points"] == 5
        return
    said = refusal(lambda: stating(daemon, robot))
    assert (said.status, said.text) == (status, text)
    assert c_client.functions().last_error(None).decode() == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "deg",
            "[]",
            "{}}",
            '{"rate_hz":50',
            '{"a":1,"a":2}',
            "[" * 40,
            "\ud800",
            '{}},"oneway":true,"x":{"y":{}',
        ),
        *('{"action":' * 31 + "{}" + "}" * 31, json.dumps({"action": {"x" * 65_500: [1]}})),
    ],
)
def test_what_is_no_json_object_is_refused_without_a_daemon(text: str) -> None:
    error = refusal(lambda: CClient("nobody-serves-this", robot=text.encode(errors="surrogatepass")))

    assert error.status == c_client.ARGUMENT
    assert error.text.startswith("robot is not one JSON object in UTF-8, of 65") and "[contract]" in error.text


def test_a_large_statement_is_sent_in_whole(daemon: Daemon) -> None:
    robot = {"observation": {"x" * 65_000: [1]}}

    with stating(daemon, robot) as client:
        assert client.infer(SEEN)["points"] == 5


def until_accepted(client: CClient) -> Any:
    """A refusal stands for 0.1 s; then the daemon is asked again, while this goes on."""
    while True:
        try:
            return client.infer(SEEN)
        except CError as error:
            assert error.status == c_client.MISMATCH and "units: rad -> deg" in error.text


def test_no_action_of_a_model_that_means_something_else_is_given(
    make_daemon: Callable[..., Daemon], packages: dict[str, Path]
) -> None:
    """One test, because each new model takes seconds to load."""
    daemon = make_daemon(packages["degrees"]).start()
    with stating(daemon, ROBOT) as client, CClient.of(daemon) as silent:
        assert client.infer(SEEN)["points"] == 5
        _an_update_of_the_same_meaning_loses_nothing(daemon, client, packages["finer"])
        update(daemon, packages["radians"], allow_contract_change=True)
        _a_reply_stays_withheld_while_the_daemon_does_not_answer(daemon, client)
        _its_replies_are_withheld_and_then_nothing_is_sent(client)
        assert silent.infer(SEEN)["points"] == 5, "a program that states nothing is served"
        other = stating(daemon, {**ROBOT, "rate_hz": 50, **json.loads(json.dumps(ROBOT).replace("deg", "rad"))})
        with other:
            assert other.infer(SEEN)["points"] == 5

        rollback(daemon)
        assert until_accepted(client)["points"] == 5
        assert [client.infer(SEEN)["points"] for _ in range(5)] == [5] * 5, "more than there are slots"

        update(daemon, packages["radians"], allow_contract_change=True)
        _a_program_that_only_looks_gets_no_action(client)
        rollback(daemon)
        client.recover()  # asks at once
        assert client.infer(SEEN)["points"] == 5
        _a_model_that_was_replaced_before_it_was_compared_is_refused(daemon, client, silent, packages)
        _a_restarted_daemon_is_asked_again(daemon, client, packages)


def _an_update_of_the_same_meaning_loses_nothing(daemon: Daemon, client: CClient, package: Path) -> None:
    before = [client.submit(SEEN) for _ in range(2)]
    assert client.result(before[0])["points"] == 5
    update(daemon, package)
    after = client.submit(SEEN)
    assert client.result(after)["points"] == 5
    assert client.result(before[1])["points"] == 5, "of the version before, which agreed"


def _a_reply_stays_withheld_while_the_daemon_does_not_answer(daemon: Daemon, client: CClient) -> None:
    """The engine answers meanwhile. What the daemon says late is no answer to the next call."""
    sequence = client.submit(SEEN)
    daemon.signal(signal.SIGSTOP)
    try:
        for timeout in (0.3, 0):
            error = refusal(partial(client.head, sequence, timeout))
        assert (error.status, "is withheld until" in error.text) == (c_client.TIMEOUT, True)
    finally:
        daemon.signal(signal.SIGCONT)
    room, text = ctypes.c_size_t(65536), ctypes.create_string_buffer(65536)
    client.check(client.calls.describe(client.handle, text, ctypes.byref(room), int(60e9)))
    assert json.loads(text.value)["service"] == daemon.name
    client.check(client.calls.abandon(client.handle, sequence))


def _its_replies_are_withheld_and_then_nothing_is_sent(client: CClient) -> None:
    sent = [client.submit(SEEN) for _ in range(2)]
    for sequence in sent:
        error = refusal(partial(client.result, sequence))
        assert error.status == c_client.MISMATCH
        assert "observation.state.units: rad -> deg\n  action.actions.units: rad -> deg" in error.text
        assert refusal(partial(client.result, sequence)).status == c_client.ENDED
    published = client.stats().published
    for call in (
        lambda: client.infer(SEEN),
        lambda: client.check(client.calls.reset(client.handle, 0)),
        client.recover,
    ):
        error = refusal(call)
        assert (error.status, "units: rad -> deg" in error.text) == (c_client.MISMATCH, True)
    assert client.stats().published == published


def _a_program_that_only_looks_gets_no_action(client: CClient) -> None:
    sequence = client.submit(SEEN)
    while True:
        error = refusal(lambda: client.head(sequence, timeout=0))
        if error.status != c_client.TIMEOUT:
            break
    assert error.status == c_client.MISMATCH and "units: rad -> deg" in error.text


def _a_model_that_was_replaced_before_it_was_compared_is_refused(
    daemon: Daemon, client: CClient, silent: CClient, packages: dict[str, Path]
) -> None:
    update(daemon, packages["coarser"])
    sequence = client.submit(SEEN)
    assert silent.infer(SEEN)["points"] == 5  # and so the other is answered, too
    update(daemon, packages["degrees"])

    error = refusal(lambda: client.head(sequence))

    assert (error.status, "answered, and is served no more" in error.text) == (c_client.MISMATCH, True)
    assert client.infer(SEEN)["points"] == 5


def _a_restarted_daemon_is_asked_again(daemon: Daemon, client: CClient, packages: dict[str, Path]) -> None:
    update(daemon, packages["coarser"])
    sequence = client.submit(SEEN)
    daemon.signal(signal.SIGSTOP)
    assert refusal(lambda: client.head(sequence, timeout=0.3)).status == c_client.TIMEOUT
    daemon.kill9()
    daemon.start()
    error = refusal(lambda: client.head(sequence))
    assert (error.status, "so its action is discarded" in error.text) == (c_client.RESTARTED, True)
    client.recover()
    assert [client.infer(SEEN)["points"] for _ in range(5)] == [5] * 5


def test_a_program_that_starts_before_the_model_is_compared_by_its_first_reply(
    make_daemon: Callable[..., Daemon], packages: dict[str, Path]
) -> None:
    daemon = make_daemon(packages["radians"])
    daemon.spawn()
    client = stating(daemon, ROBOT, timeout=60.0, max_retries=1000, retry_delay_ns=20_000_000, check_contract=0)
    with client:
        try:
            error = refusal(lambda: client.infer(SEEN))
        finally:
            daemon.wait_ready()

    assert (error.status, "units: rad -> deg" in error.text) == (c_client.MISMATCH, True)


_OLD = {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "io.shmserve.Client.CheckRobot"}}
_LIES: dict[str, tuple[Any, int, str]] = {
    "an older daemon": (_OLD, c_client.PROTOCOL, "older than this library. No action .* same shmserve on both sides"),
    "no versions": ({"parameters": {}}, c_client.PROTOCOL, "names no versions"),
    "no list": ({"parameters": {"versions": "8"}}, c_client.PROTOCOL, "names no versions"),
    "no number": ({"parameters": {"versions": ["8", "x"]}}, c_client.PROTOCOL, "names no versions"),
    "a number": ({"parameters": {"versions": [8]}}, c_client.PROTOCOL, "names no versions"),
    "too long": ({"parameters": {"versions": ["0" * 17]}}, c_client.PROTOCOL, "names no versions"),
    "too many": ({"parameters": {"versions": ["8"] * 3000}}, c_client.PROTOCOL, "cannot be read"),
    "no reason": ({"error": "io.shmserve.Client.ContractMismatch"}, c_client.UNAVAILABLE, "refused: io.shmserve"),
    "no text": (
        {"error": "io.shmserve.Client.ContractMismatch", "parameters": {"message": 7}},
        c_client.UNAVAILABLE,
        "refused: io.shmserve",
    ),
    "another error": ({"error": "x"}, c_client.UNAVAILABLE, "refused: x"),
    "evicted": (
        {"error": "io.shmserve.Client.Evicted", "parameters": {"message": "it broke its channel"}},
        c_client.EVICTED,
        "serves this process no more: it broke its channel",
    ),
}


@pytest.mark.parametrize(("answer", "status", "text"), _LIES.values(), ids=_LIES)
def test_a_daemon_that_cannot_compare_gives_no_client(answer: Any, status: int, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="shmserve-") as folder, lying(Path(folder), "t", lies=0.0) as daemon:
        daemon.checked = answer

        error = refusal(lambda: CClient("t", Path(folder), robot=b"{}", max_retries=0))

        assert error.status == status and re.search(text, error.text)
        CClient("t", Path(folder), max_retries=0).close()


def test_a_text_that_is_too_long_for_the_client_is_cut() -> None:
    with tempfile.TemporaryDirectory(prefix="shmserve-") as folder, lying(Path(folder), "t", lies=0.0) as daemon:
        message = "\u00e4" * 20_000
        daemon.checked = {"error": "io.shmserve.Client.ContractMismatch", "parameters": {"message": message}}

        error = refusal(lambda: CClient("t", Path(folder), robot=b"{}", max_retries=0))

        assert error.status == c_client.MISMATCH and len(error.text) > 8000 and set(error.text) == {"\u00e4"}
