"""A replica without a network: which messages reach the model, in which batches, and what each sender gets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.errors import ModelPackageError
from shmserve.message import NOTHING, Kind, Packer, Reply, Request, read_reply
from shmserve.protocol import Status
from shmserve.scale.replica import Replica

_POLICY = """
import numpy as np

class Policy:
    calls = []

    def __init__(self, package, device):
        pass

    def infer(self, observation):
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations):
        self.calls.append(len(observations))
        for observation in observations:
            if float(observation["state"][0]) == 13:
                raise ValueError("no such joint")
        return [{"action": observation["state"] * 2, "batch": len(self.calls)} for observation in observations]

    def metadata(self):
        return {"calls": self.calls[-3:]}

    def example_observation(self):
        return {"state": np.zeros(3, np.float32)}
"""


def package(folder: Path, manifest: str = "[model]\nmax_batch = 4\nsampling = true\n", policy: str = _POLICY) -> Path:
    folder.mkdir()
    (folder / "policy.py").write_text(policy)
    (folder / "model.toml").write_text(manifest)
    return folder


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(package(tmp_path / "double"))


def asked(state: float, **words: Any) -> bytes:
    head = Request(Kind.INFER, **{"number": int(state), **words})
    return Packer("observation").request(head, {"state": np.full(3, state, np.float32)})


def answers(replica: Replica, *messages: bytes, waited_ns: int = 0) -> list[tuple[Reply, Any]]:
    received_ns = time.monotonic_ns() - waited_ns
    return [read_reply(data) for data in replica.infer([(message, received_ns) for message in messages])]


def test_requests_are_run_in_batches_and_answered_in_order(replica: Replica) -> None:
    found = answers(replica, *(asked(state) for state in range(1, 7)))

    assert [head.number for head, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [float(action["action"][0]) for _, action in found] == [2, 4, 6, 8, 10, 12]
    assert len({action["batch"] for _, action in found}) == 2, "four, then two"
    assert {head.version for head, _ in found} == {int(replica.package.version, 16)}


def test_a_request_on_which_the_model_raises_fails_alone(replica: Replica) -> None:
    found = answers(replica, asked(1), asked(13), asked(3))

    assert [head.status for head, _ in found] == [Status.OK, Status.FAILED, Status.OK]
    assert found[1][1] == ("ValueError", "no such joint")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"budget_ns": 1_000_000}, Status.EXPIRED),
        ({"age_ns": 5_000_000, "max_age_ns": 10_000_000_000}, Status.STALE),
        ({"version": 7}, Status.REJECTED),
        ({"budget_ns": 1 << 62, "age_ns": 1, "max_age_ns": 1 << 62}, Status.OK),
    ],
    ids=["late", "stale", "other-version", "in-time"],
)
def test_what_is_of_no_use_any_longer_is_not_run(replica: Replica, words: dict[str, int], status: Status) -> None:
    ((head, tree),) = answers(replica, asked(1, **words), waited_ns=10_000_000_000)

    assert head.status == status and head.number == 1
    if status in (Status.EXPIRED, Status.STALE):
        assert tree is NOTHING


def test_bytes_that_are_no_request_are_rejected_and_the_others_answered(replica: Replica) -> None:
    found = answers(replica, b"x" * 200, asked(2), Packer("o").request(Request(Kind.PROBE)))

    assert [head.status for head, _ in found] == [Status.REJECTED, Status.OK, Status.REJECTED]


def test_a_description_has_contract_and_example(replica: Replica) -> None:
    head, tree = read_reply(replica.describe(Packer("o").request(Request(Kind.DESCRIBE, number=5))))

    described = json.loads(tree["description"])
    assert head.number == 5 and described["version"] == replica.package.version and described["max_batch"] == 4
    assert described["contract"]["observation"] == {"state": {"dtype": "float32", "shape": [3]}}
    np.testing.assert_array_equal(tree["example"]["state"], np.zeros(3, np.float32), strict=True)


def test_a_probe_is_answered_by_a_head(replica: Replica) -> None:
    head, tree = read_reply(replica.describe(Packer("o").request(Request(Kind.PROBE))))

    assert head.status == Status.OK and tree is NOTHING


def test_numbers_are_checked_as_in_an_engine(tmp_path: Path) -> None:
    manifest = "[model]\nsampling = true\n[checks.action.action]\nmin = -4\nmax = 4\n"
    replica = Replica(package(tmp_path / "bounded", manifest))

    (low, _), (high, error) = answers(replica, asked(1), asked(5))
    assert low.status == Status.OK and high.status == Status.FAILED and error[0] == "ValueOutOfRange"


@pytest.mark.parametrize(
    ("manifest", "policy", "said"),
    [
        ("[model]\nstateful = true\n", _POLICY, "keeps a state of each robot"),
        ("", _POLICY.partition("    def example_observation")[0], "has no example"),
        ("", _POLICY.replace("* 2", "* np.nan"), "cannot be used"),
    ],
    ids=["stateful", "no-example", "not-finite"],
)
def test_what_cannot_be_served_to_links_is_refused(tmp_path: Path, manifest: str, policy: str, said: str) -> None:
    with pytest.raises(ModelPackageError, match=said):
        Replica(package(tmp_path / "refused", manifest, policy))


def test_other_files_than_were_deployed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="and 3f9c2d17a0b14e55 is deployed"):
        Replica(package(tmp_path / "other"), version="3f9c2d17a0b14e55")
