"""One policy, many robots: the state of each by its client's id, and an end of it when the client leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.engine.models.determinism import deterministic
from shmserve.daemon.engine.models.model import PerClient
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.packages.saving import CPU, loaded

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def per_client() -> Iterator[Daemon]:
    daemon = Daemon("per_client")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def test_a_policy_keeps_the_state_of_each_client_apart(per_client: Daemon) -> None:
    with per_client.client() as one, per_client.client() as other:
        for number in range(5):
            assert one.infer({"value": number})["history"] == [*range(number + 1)]
            assert other.infer({"value": -number})["history"] == [-value for value in range(number + 1)]
        one.reset()

        assert one.infer({"value": 7})["history"] == [7]
        assert other.infer({"value": 9})["history"] == [0, -1, -2, -3, -4, 9]


def test_a_policy_knows_the_client_by_the_id_that_status_shows(per_client: Daemon) -> None:
    wait_until("nobody else is there", lambda: per_client.status()["clients"] == [])
    with per_client.client() as client:
        number = client.infer({"value": 1})["client"]

        assert [one["id"] for one in per_client.status()["clients"]] == [number]


def test_a_client_that_is_gone_leaves_no_state_to_the_next_one(per_client: Daemon) -> None:
    for number in range(4):
        wait_until("nobody is there", lambda: per_client.status()["clients"] == [])
        with per_client.client() as client:
            found = client.infer({"value": number})

            assert found["history"] == [number]
            assert found["clients"] == 1


def test_a_client_with_a_growing_channel_keeps_its_state(per_client: Daemon) -> None:
    with per_client.client() as client:
        client.infer({"value": 1})
        client.infer({"value": 2, "ballast": bytes(3_000_000)})

        assert client.infer({"value": 3})["history"] == [1, 2, 3]


def test_the_policy_distinguishes_the_clients_of_one_batch(per_client: Daemon, gate: Gate) -> None:
    with per_client.client(slots=8) as one, per_client.client(slots=8) as other:
        one.infer({"value": -1})
        held = one.submit({"value": 0, "gate": str(gate.path)})
        gate.wait_entered()
        asked = [(client, client.submit({"value": number})) for number in range(1, 5) for client in (one, other)]
        gate.open()
        held.result()
        found = [(client, pending.result()) for client, pending in asked]

        assert max(result["batch"] for _, result in found) > 1
        assert [result["history"][-1] for client, result in found if client is one] == [1, 2, 3, 4]
        assert [result["history"] for client, result in found if client is other][-1] == [1, 2, 3, 4]
        assert [result["history"] for client, result in found if client is one][-1] == [-1, 0, 1, 2, 3, 4]


_POLICY = """
class Policy:
    def __init__(self, path, device):
        self.seen = []

    def infer(self, observation{argument}):
        self.seen.append({value})
        return {{"seen": list(self.seen)}}
"""
_BATCH = """
    def infer_batch(self, observations{arguments}):
        return [{{}} for _ in observations]
"""


def written(folder: Path, text: str, manifest: str = "") -> Path:
    (folder / "policy.py").write_text(text)
    (folder / "model.toml").write_text(f"[model]\n{manifest}")
    return folder


def test_a_policy_that_does_not_ask_for_an_id_is_not_given_one(tmp_path: Path) -> None:
    model, _ = loaded(written(tmp_path, _POLICY.format(argument="", value="observation")))

    assert not isinstance(model, PerClient)
    assert model.infer([{"x": 1}]) == [{"seen": [{"x": 1}]}]


def test_the_warm_up_belongs_to_no_client_and_is_reset(tmp_path: Path) -> None:
    policy = _POLICY.format(argument=", client_id", value="client_id")
    example = "\n    def example_observation(self):\n        return {'x': 1}\n"
    left = "\n    def client_left(self, client_id):\n        self.seen.append('left')\n"
    model, package = loaded(written(tmp_path, policy + example + left))
    assert isinstance(model, PerClient)

    warm_up(model, CPU, package)

    (found,) = model.infer_for([{}], [0])
    assert found["seen"][-3:] == [-1, "left", 0]
    assert set(found["seen"][:-1]) == {-1, "left"}


def test_a_deterministic_policy_is_given_the_id_too(tmp_path: Path) -> None:
    left = "\n    def client_left(self, client_id):\n        self.seen.append(('left', client_id))\n"
    policy = _POLICY.format(argument=", *, client_id", value="client_id")
    model = deterministic(loaded(written(tmp_path, policy + left))[0])
    assert isinstance(model, PerClient)

    model.infer_for([{}, {}], [3, 5])
    model.client_left(5)

    assert model.infer_for([{}], [4]) == [{"seen": [3, 5, ("left", 5), 4]}]


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ("", "the policy has no method to call when a client leaves"),
        ("\n    def reset(self, client_id): pass\n" + _BATCH.format(arguments=""), "does not take client_ids"),
    ],
    ids=["leaving", "batches"],
)
def test_a_policy_that_could_mix_its_clients_up_is_refused(tmp_path: Path, more: str, missing: str) -> None:
    package = written(tmp_path, _POLICY.format(argument=", client_id", value="client_id") + more)

    with pytest.raises(ModelPackageError, match=missing):
        loaded(package)


@pytest.mark.long
def test_a_policy_that_fails_when_a_client_leaves_goes_on_with_the_others(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    left = "\n    def client_left(self, client_id):\n        raise LookupError('who was that')\n"
    daemon = make_daemon()
    daemon.package = written(tmp_path, _POLICY.format(argument=", client_id", value="client_id") + left)
    daemon.start()
    with daemon.client() as client:
        ids: list[Any] = [client.infer({})["seen"]]
        with daemon.client() as other:
            ids.append(other.infer({})["seen"])
        wait_until("the other one has left", lambda: "who was that" in daemon.log)

        ids.append(client.infer({})["seen"])

    assert ids == [[0], [0, 1], [0, 1, 0]]
