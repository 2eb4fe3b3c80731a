"""openpi's client by name, and a policy written for openpi's server, with a real daemon between them."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import InferenceFailed, RequestTimeout, ServiceUnavailable, ShmClient, UnsupportedType
from shmserve.client.compat.drop_in import address_of
from shmserve.client.compat.openpi import WebsocketClientPolicy
from tests.support.daemon_process import Daemon, environment
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def droid() -> Iterator[Daemon]:
    """One daemon of the policy in openpi's style, for the tests that do not harm it."""
    daemon = Daemon("openpi_style", name="droid")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def policy(droid: Daemon) -> Iterator[WebsocketClientPolicy]:
    with WebsocketClientPolicy("shm://droid", runtime_dir=droid.runtime_dir) as policy:
        yield policy


def observation(**more: Any) -> dict[str, Any]:
    return {
        "observation/exterior_image_1_left": np.full((224, 224, 3), 7, np.uint8),
        "observation/wrist_image_left": np.zeros((224, 224, 3), np.uint8),
        "observation/joint_position": np.arange(7, dtype=np.float32),
        "observation/gripper_position": np.zeros(1),
        "prompt": "pick up the cup",
        **more,
    }


def broker(policy: Any, horizon: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What openpi's chunk brokers ask of a reply: one row of every array in it, the rest as it is."""
    held: list[dict[str, Any]] = []
    step = [0]

    def row(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: row(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [row(inner) for inner in value]
        return value[step[0], ...] if isinstance(value, np.ndarray) else value

    def infer(obs: dict[str, Any]) -> dict[str, Any]:
        if not held:
            held.append(policy.infer(obs))
            step[0] = 0
        found: dict[str, Any] = row(held[0])
        step[0] += 1
        if step[0] >= horizon:
            held.clear()
        return found

    return infer


# The client


def test_the_constructor_is_openpis_with_more_by_keyword_only() -> None:
    parameters = inspect.signature(WebsocketClientPolicy).parameters
    assert [(name, one.default) for name, one in parameters.items()][:3] == [
        ("host", "0.0.0.0"),
        ("port", None),
        ("api_key", None),
    ]
    assert all(one.kind is one.KEYWORD_ONLY for one in list(parameters.values())[3:])


def test_a_reply_is_the_policys_with_openpis_timing_as_plain_floats(policy: WebsocketClientPolicy) -> None:
    first = policy.infer(observation())
    second = policy.infer(observation())

    np.testing.assert_allclose(first["actions"][:, 0], 0.5 * np.arange(10))
    assert first["actions"].shape == (10, 7)
    assert set(first["server_timing"]) == {"infer_ms"}
    assert set(second["server_timing"]) == {"infer_ms", "prev_total_ms"}
    for timing in (first["server_timing"], second["server_timing"], first["policy_timing"]):
        assert all(type(value) is float and value >= 0 for value in timing.values())
    assert first["shmserve"]["model_version"] == second["shmserve"]["model_version"]
    assert second["shmserve"]["number"] == first["shmserve"]["number"] + 1


def test_arrays_of_a_reply_are_owned_and_writable(policy: WebsocketClientPolicy) -> None:
    first = policy.infer(observation())["actions"]
    first += 100
    kept = first.copy()
    for _ in range(10):
        policy.infer(observation())

    np.testing.assert_array_equal(first, kept)


def test_a_broker_can_slice_one_row_from_every_array(policy: WebsocketClientPolicy) -> None:
    infer = broker(policy, 10)
    steps = [infer(observation()) for _ in range(25)]

    assert [float(step["actions"][0]) for step in steps[:11]] == [*(0.5 * np.arange(10)), 0.0]
    assert steps[0]["actions"].shape == (7,)
    calls = [step["seen"]["calls"] for step in steps]
    assert calls == [calls[0]] * 10 + [calls[0] + 1] * 10 + [calls[0] + 2] * 5


def test_the_metadata_is_the_policys_and_says_which_model_answers(policy: WebsocketClientPolicy) -> None:
    metadata = policy.get_server_metadata()

    assert metadata.get("reset_pose") == [0.0, -1.5, 1.5]
    assert metadata["shmserve"]["service"] == "droid"
    assert metadata["shmserve"]["model"] == "droid"
    assert metadata["shmserve"]["version"] == policy.infer(observation())["shmserve"]["model_version"]


def test_an_error_of_the_policy_is_a_runtime_error_and_the_next_call_works(policy: WebsocketClientPolicy) -> None:
    with pytest.raises(RuntimeError, match=r"\AError in inference server:\nthe model raised KeyError") as raised:
        policy.infer(observation(prompt="fail"))

    assert isinstance(raised.value.__cause__, InferenceFailed)
    assert policy.infer(observation())["actions"].shape == (10, 7)


def test_an_unsupported_value_is_a_runtime_error_that_names_it(policy: WebsocketClientPolicy) -> None:
    with pytest.raises(RuntimeError, match="Error in inference server") as raised:
        policy.infer(observation(camera=threading.Lock()))

    assert isinstance(raised.value.__cause__, UnsupportedType)
    assert policy.infer(observation())["actions"].shape == (10, 7)


def test_observations_arrive_as_users_have_them(policy: WebsocketClientPolicy) -> None:
    image = np.arange(3 * 8 * 6, dtype=np.uint8).reshape(3, 8, 6)
    frozen = np.arange(7, dtype=np.float32)
    frozen.flags.writeable = False
    given = observation(
        **{
            "observation/exterior_image_1_left": image.transpose(1, 2, 0)[::-1],
            "observation/joint_position": frozen,
            "state.depth": np.zeros((4, 4), np.uint16),
            "half": np.zeros(3, np.float16),
            "contact": np.array([True, False]),
            "scalar": np.float32(0.5),
            "zero_d": np.array(3),
            "nested": {"a/b": [1.0, 2.0], "none": None, "raw": b"\x00\x01", "names": ["left", "right"]},
        }
    )
    seen = policy.infer(given)["seen"]

    assert seen["image_shape"] == [8, 6, 3]
    assert seen["brightness"] == pytest.approx(image.mean())
    assert seen["kinds"]["state.depth"] == seen["kinds"]["zero_d"] == seen["kinds"]["half"] == "ndarray"
    assert (seen["kinds"]["scalar"], seen["kinds"]["nested"], seen["kinds"]["prompt"]) == ("float32", "dict", "str")


def test_reset_reaches_the_policy(policy: WebsocketClientPolicy) -> None:
    before = policy.infer(observation())["seen"]["resets"]
    policy.reset()

    assert policy.infer(observation())["seen"]["resets"] == before + 1


def test_reset_does_nothing_where_the_policy_has_none(tagged: Daemon) -> None:
    with WebsocketClientPolicy(f"unix:{tagged.service_dir}") as policy:
        policy.reset()
        assert policy.infer({"x": np.ones(2), "k": 3, "tag": 1})["tag"] == 1


def test_an_action_other_than_a_dict_is_refused_by_name(echo: Daemon) -> None:
    with (
        WebsocketClientPolicy("shm://t", runtime_dir=echo.runtime_dir) as policy,
        pytest.raises(RuntimeError, match="shm://t answered with ndarray"),
    ):
        policy.infer(np.zeros(3))  # type: ignore[arg-type]


def test_a_timeout_is_real_and_the_client_usable_afterwards(obedient: Daemon, gate: Gate) -> None:
    with WebsocketClientPolicy("shm://t", runtime_dir=obedient.runtime_dir, timeout=0.3) as policy:
        with pytest.raises(RuntimeError, match="Error in inference server") as raised:
            policy.infer(gate.observation)
        gate.open()

        assert isinstance(raised.value.__cause__, RequestTimeout)
        for _ in range(100):
            try:
                found = policy.infer({"do": "count"})
                break
            except RuntimeError:
                time.sleep(0.05)
        assert "runs" in found


# Waiting for the service


@pytest.mark.long
def test_it_waits_for_the_service_and_says_so_every_five_seconds(
    make_daemon: Callable[..., Daemon], caplog: pytest.LogCaptureFixture
) -> None:
    daemon = make_daemon("openpi_style", name="late")
    made: list[WebsocketClientPolicy] = []
    thread = threading.Thread(
        target=lambda: made.append(WebsocketClientPolicy("shm://late", 8000, runtime_dir=daemon.runtime_dir)),
        daemon=True,
    )
    with caplog.at_level(logging.INFO, "shmserve.client.compat.openpi"):
        thread.start()
        thread.join(6.5)
        assert thread.is_alive()
        daemon.spawn()
        thread.join(60)

    assert not thread.is_alive()
    daemon.wait_ready()
    assert "Waiting for server at shm://late..." in caplog.text
    assert "Still waiting for server at shm://late: no daemon serves 'late'" in caplog.text
    assert made[0].infer(observation())["actions"].shape == (10, 7)
    made[0].close()


def test_with_a_connect_timeout_it_gives_up_and_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="start one"):
        WebsocketClientPolicy("shm://nobody", connect_timeout=0.3, runtime_dir=tmp_path)


@pytest.mark.long
def test_it_outlives_a_restart_of_the_daemon(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("openpi_style", name="again")
    with WebsocketClientPolicy("shm://again", runtime_dir=daemon.runtime_dir) as policy:
        policy.infer(observation())
        daemon.kill9()
        daemon.start()

        assert policy.infer(observation())["seen"]["calls"] == 1


# Which service


@pytest.mark.parametrize(
    ("host", "port", "service", "runtime_dir"),
    [
        ("shm://arm", None, "arm", None),
        ("shm://arm/", 8000, "arm", None),
        ("unix:/run/shmserve/arm", None, "arm", Path("/run/shmserve")),
        ("unix:///run/shmserve/arm/client.sock", None, "arm", Path("/run/shmserve")),
        ("0.0.0.0", 8000, "default", None),
        ("localhost", None, "default", None),
        ("ws://127.0.0.1:8000", None, "default", None),
    ],
)
def test_a_host_means_a_service(
    host: str, port: int | None, service: str, runtime_dir: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert address_of(host, port) == (service, runtime_dir)
    assert not caplog.records


@pytest.mark.parametrize("host", ["10.0.0.7", "wss://gpu.example.org", "my-gpu-box"])
def test_another_machine_is_warned_of(host: str, caplog: pytest.LogCaptureFixture) -> None:
    assert address_of(host, 8000) == ("default", None)
    assert f"{host}:8000 is not asked" in caplog.text


@pytest.mark.parametrize("host", ["shm://", "shm://a/b", "unix:", "unix:arm"])
def test_an_address_that_names_nothing_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="host = "):
        address_of(host, None)


def test_compat_and_chunks_are_imported_only_when_asked_for() -> None:
    code = (
        "import sys, shmserve.client;"
        "names = ('shmserve.client.compat', 'shmserve.client.action_chunks', 'torch');"
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)

    assert found.stdout.strip() == "[]"


# The policy


def test_a_policy_for_openpis_server_is_served_unmodified(droid: Daemon) -> None:
    with ShmClient("droid", runtime_dir=droid.runtime_dir, timeout=60) as client:
        found = client.infer(observation())
        metadata = client.describe()["metadata"]

    seen = found["seen"]
    assert seen["kinds"] == {
        "observation/exterior_image_1_left": "ndarray",
        "observation/wrist_image_left": "ndarray",
        "observation/joint_position": "ndarray",
        "observation/gripper_position": "ndarray",
        "prompt": "str",
    }
    assert (seen["prompt"], seen["brightness"], seen["device"]) == ("pick up the cup", 7.0, "cpu")
    # The array is the staged memory itself, not a copy of it.
    assert seen["image_owns_its_memory"] is False
    assert metadata == {"reset_pose": [0.0, -1.5, 1.5]}
