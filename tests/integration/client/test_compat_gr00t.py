"""GR00T's client by name, and a policy written for GR00T's server, with a real daemon between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import InferenceFailed, RequestTimeout, ServiceUnavailable, ShmClient
from shmserve.client.compat.gr00t import ExternalRobotInferenceClient, ModalityConfig, PolicyClient
from tests.support.daemon_process import Daemon
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def so101() -> Iterator[Daemon]:
    """One daemon of the policy in GR00T's style, for the tests that do not harm it."""
    daemon = Daemon("gr00t_style", name="so101")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def policy(so101: Daemon) -> Iterator[PolicyClient]:
    with PolicyClient("shm://so101", timeout_ms=60_000, runtime_dir=so101.runtime_dir) as policy:
        yield policy


def observation() -> dict[str, Any]:
    return {
        "video": {"front": np.zeros((1, 1, 48, 64, 3), np.uint8)},
        "state": {"single_arm": np.full((1, 1, 5), 0.25, np.float32), "gripper": np.zeros((1, 1, 1), np.float32)},
        "language": {"annotation.human.task_description": [["pick the orange"]]},
    }


def test_the_constructor_is_gr00ts_with_more_by_keyword_only() -> None:
    parameters = inspect.signature(PolicyClient).parameters
    assert [(name, one.default) for name, one in parameters.items()][:5] == [
        ("host", "localhost"),
        ("port", 5555),
        ("timeout_ms", 15000),
        ("api_token", None),
        ("strict", False),
    ]
    assert all(one.kind is one.KEYWORD_ONLY for one in list(parameters.values())[5:])


def test_an_action_and_its_info_come_back(policy: PolicyClient) -> None:
    action, info = policy.get_action(observation())

    assert action["single_arm"].shape == (1, 16, 5) and action["single_arm"].dtype == np.float32
    action["single_arm"] += 1  # owned and writable
    assert info["types"] == ["ndarray", "ndarray"]
    assert (info["frame"], info["text"]) == ([1, 1, 48, 64, 3], [["pick the orange"]])
    assert (info["options"], info["embodiment"]) == (None, "new_embodiment")


def test_options_reach_the_policy(policy: PolicyClient) -> None:
    action, info = policy.get_action(observation(), {"gain": 4.0, "seed": 3})

    assert info["options"] == {"gain": 4.0, "seed": 3}
    np.testing.assert_array_equal(action["single_arm"], np.ones((1, 16, 5)))


def test_reset_reaches_the_policy_with_its_options_and_brings_its_answer_back(policy: PolicyClient) -> None:
    assert policy.reset({"episode_index": 7}) == {"episode_index": 7}
    assert policy.reset() == {"episode_index": 8}
    assert policy.get_action(observation())[1]["episode"] == 8


def test_shmserves_own_reset_reaches_it_too(so101: Daemon, policy: PolicyClient) -> None:
    policy.reset({"episode_index": 20})
    with ShmClient("so101", runtime_dir=so101.runtime_dir) as client:
        client.reset()

        assert client.infer(observation())[1]["episode"] == 21


def test_the_modality_config_has_gr00ts_attributes(policy: PolicyClient) -> None:
    config = policy.get_modality_config()

    assert set(config) == {"video", "state", "language", "action"}
    assert isinstance(config["action"], ModalityConfig)
    assert config["action"].delta_indices == list(range(16))
    assert config["state"].modality_keys == ["single_arm", "gripper"]
    assert config["action"].action_configs == [{"rep": "ABSOLUTE"}]
    assert config["video"].action_configs is None


def test_endpoints_are_called_by_name(policy: PolicyClient) -> None:
    policy.get_action(observation())
    calls = policy.call_endpoint("count_calls", requires_input=False)["calls"]
    policy.get_action(observation())

    assert policy.call_endpoint("count_calls", {"since": calls}) == {"calls": 1}
    assert policy.call_endpoint("ping", requires_input=False) == {"status": "ok", "message": "Server is running"}
    answer = policy.call_endpoint("get_action", {"observation": observation(), "options": None})
    assert answer[0]["single_arm"].shape == (1, 16, 5)


def test_an_unknown_endpoint_is_an_error_that_lists_the_known_ones(policy: PolicyClient) -> None:
    with pytest.raises(RuntimeError, match=r"Server error: .*Unknown endpoint: fly \(there are get_action, reset"):
        policy.call_endpoint("fly", {})


def test_a_policys_error_is_a_runtime_error_and_the_next_call_works(policy: PolicyClient) -> None:
    with pytest.raises(RuntimeError, match=r"Server error: .*ValueError: Language batch item") as raised:
        policy.get_action(observation(), {"fail": True})

    assert isinstance(raised.value.__cause__, InferenceFailed)
    assert policy.get_action(observation())[0]["single_arm"].shape == (1, 16, 5)


def test_kill_is_refused_with_the_remedy(policy: PolicyClient) -> None:
    for kill in (policy.kill_server, lambda: policy.call_endpoint("kill", requires_input=False)):
        with pytest.raises(RuntimeError, match="systemctl stop, or SIGTERM to shmserved"):
            kill()

    assert policy.ping()


def test_ping_says_whether_a_model_is_ready(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("gr00t_style", name="later")
    with PolicyClient("shm://later", timeout_ms=300, runtime_dir=daemon.runtime_dir) as policy:
        assert policy.ping() is False
        daemon.start()
        assert policy.ping() is True
        daemon.stop()
        assert policy.ping() is False


def test_timeout_ms_is_real_and_a_timeout_error(obedient: Daemon, gate: Gate) -> None:
    with PolicyClient("shm://t", timeout_ms=200, runtime_dir=obedient.runtime_dir) as policy:
        with pytest.raises(TimeoutError) as raised:
            policy.get_action(gate.observation)

        assert isinstance(raised.value, RequestTimeout)
        gate.open()
    with PolicyClient("shm://t", timeout_ms=60_000, runtime_dir=obedient.runtime_dir) as policy:
        assert policy.get_action({"do": "count"})[0]["runs"] >= 1


def test_an_absent_service_is_an_error_within_timeout_ms(tmp_path: Path) -> None:
    with PolicyClient("shm://nobody", timeout_ms=300, runtime_dir=tmp_path) as policy:
        for call in (policy.get_modality_config, policy.reset, lambda: policy.get_action({})):
            with pytest.raises(RuntimeError, match="Server error: no daemon serves 'nobody'") as raised:
                call()
            assert isinstance(raised.value.__cause__, ServiceUnavailable)


# strict


def test_strict_lists_every_difference_of_an_observation(so101: Daemon) -> None:
    with PolicyClient("shm://so101", 5555, 60_000, None, True, runtime_dir=so101.runtime_dir) as policy:
        assert policy.get_action(observation())[0]["single_arm"].shape == (1, 16, 5)
        wrong = observation()
        wrong["video"]["front"] = wrong["video"]["front"][0].astype(np.float32)
        del wrong["state"]["gripper"]
        wrong["language"]["annotation.human.task_description"] = "pick the orange"

        with pytest.raises(ValueError, match="does not match the modality config of shm://so101") as raised:
            policy.get_action(wrong)

    message = str(raised.value)
    assert "video.front must be uint8 of 5 dimensions, the second 1, and is float32[1, 48, 64, 3]" in message
    assert "state.gripper is missing" in message
    assert "language.annotation.human.task_description is not a list of lists of 1 texts" in message


def test_strict_checks_the_action(policy: PolicyClient) -> None:
    with pytest.raises(ValueError, match=r"action\.single_arm must be float32 of 3 dimensions, the second 16"):
        policy.check_action({"single_arm": np.zeros((1, 8, 5), np.float32)})


# Other generations, other styles


def test_n15s_client_takes_and_gives_flat_dicts(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(
        "import numpy as np\n\n"
        "class Policy:\n"
        "    def get_action(self, observations):\n"
        "        arm = observations['state.single_arm']\n"
        "        task = observations['annotation.human.task_description']\n"
        "        return {'action.single_arm': np.repeat(arm, 16, axis=0), 'task': task}\n"
    )
    daemon = start_daemon(tmp_path)
    with ExternalRobotInferenceClient(f"unix:{daemon.service_dir}", timeout_ms=60_000) as client:
        found = client.get_action(
            {
                "video.front": np.zeros((1, 48, 64, 3), np.uint8),
                "state.single_arm": np.ones((1, 5)),
                "annotation.human.task_description": ["pick"],
            }
        )

        assert found["action.single_arm"].shape == (16, 5)
        assert found["task"] == ["pick"]
        assert client.ping() and client.get_modality_config() == {}


def test_a_policy_of_another_style_answers_an_observation_and_refuses_the_rest(obedient: Daemon) -> None:
    with PolicyClient("shm://t", timeout_ms=60_000, runtime_dir=obedient.runtime_dir) as policy:
        action, info = policy.get_action({"do": "count"})
        assert set(action) == {"runs", "resets"} and info == {}
        assert policy.reset() == {}
        assert policy.get_action({"do": "count"})[0]["resets"] == action["resets"] + 1
        assert policy.get_modality_config() == {}
        with pytest.raises(RuntimeError, match="not one of GR00T's, which has no get_action with observation, options"):
            policy.get_action({"do": "count"}, {"gain": 2})


@pytest.mark.long
def test_it_outlives_a_restart_of_the_daemon(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("gr00t_style", name="again")
    with PolicyClient("shm://again", timeout_ms=60_000, runtime_dir=daemon.runtime_dir) as policy:
        policy.reset({"episode_index": 5})
        daemon.kill9()
        daemon.start()

        assert policy.get_action(observation(), {"gain": 1.0})[1]["episode"] == 0
