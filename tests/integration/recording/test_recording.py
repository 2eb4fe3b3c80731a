"""Recording what a service is asked, while robots, models and recorders come and go; and asking it again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import EngineLost
from shmserve.client.cli.connection import AdminConnection
from shmserve.client.cli.private_folder import PrivateFolder
from shmserve.client.recordings import RecordedRequest, Recording
from shmserve.client.recordings.recording import RecordingWriter, RequestFacts
from shmserve.record_ring import Entry, RecordRingReader, RecordRingWriter
from shmserve.varlink import VarlinkError
from tests.support.admin_command import admin, admin_json, end_admin, start_admin, update
from tests.support.daemon_process import POLICIES, Daemon, is_running, wait_until
from tests.support.gain_packages import gain_package
from tests.support.recordings import has_record_ring, recording


def requests_of(file: Path) -> list[RecordedRequest]:
    with Recording(file) as found:
        return list(found)


def test_requests_and_replies_are_recorded_exactly(echo: Daemon, tmp_path: Path) -> None:
    observation: dict[str, Any] = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "half": np.array([1.5, np.nan], np.float16),
        "complex": np.array([[1 + 2j], [-0.5j]], np.complex64),
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 3), np.int64),
        "nested": {"a.b": (1, None, True), "$array": ["x", 2.5, float("inf")], "": {}},
        "long": [float(number) for number in range(12)],
        "text": "übung " * 100,
        "bytes": bytes(range(256)),
        "big": 1 << 100,
        "zero": -0.0,
    }

    with recording(echo, tmp_path / "a.rec"), echo.client() as client:
        given = client.infer(observation)
        client.reset()
        client.infer(7)

    first, second, third = requests_of(tmp_path / "a.rec")
    for found in (first.observation, first.action, given):
        np.testing.assert_equal(found, observation)
        assert {key: type(value) for key, value in found.items()} == {k: type(v) for k, v in observation.items()}
    assert (second.facts.kind, second.observation, third.observation) == ("reset", None, 7)
    assert [request.facts.status for request in (first, second, third)] == ["ok"] * 3
    assert 0 <= first.facts.at_s <= second.facts.at_s <= third.facts.at_s
    assert first.facts.service_us and first.facts.infer_us and first.facts.infer_us <= first.facts.service_us
    assert first.facts.model_version == echo.status()["model"]["version"]


def test_an_ended_recording_costs_nothing(echo: Daemon, tmp_path: Path) -> None:
    assert not has_record_ring(echo)

    with recording(echo, tmp_path / "a.rec"):
        pass

    wait_until("the engine has let go of the record ring", lambda: not has_record_ring(echo))
    with echo.client() as client:
        assert client.infer({"a": 1}) == {"a": 1}


def test_a_recording_distinguishes_clients_and_the_operator_can_select_one(obedient: Daemon, tmp_path: Path) -> None:
    with obedient.client() as other, obedient.client() as chosen:
        other.infer({"do": "count"})
        number = next(client["id"] for client in obedient.status()["clients"] if client["served"] == 0)

        with recording(obedient, tmp_path / "one.rec", "--client", number, "--count", 2) as process:
            for _ in range(3):
                other.infer({"do": "count"})
                chosen.infer({"do": "count"})
            assert end_admin(process).returncode == 0

        with recording(obedient, tmp_path / "all.rec"):
            other.infer({"do": "count"})
            chosen.infer({"do": "count"})

    one, everyone = requests_of(tmp_path / "one.rec"), requests_of(tmp_path / "all.rec")
    assert [request.facts.client for request in one] == [number] * 2
    assert sorted(request.facts.lease for request in everyone) == [1, 2]


def test_an_action_is_recorded_with_the_matching_observation_for_any_slot_count(echo: Daemon, tmp_path: Path) -> None:
    """The channel's slots are those of the sequence, also where their number does not divide 64."""
    several = (1, 3, 5, 6, 7, 64)
    with recording(echo, tmp_path / "a.rec"):
        for slots in several:
            with echo.client(slots=slots) as client:
                for number in range(2 * slots + 3):
                    assert client.infer({"n": number, "slots": slots}) == {"n": number, "slots": slots}
                pending = [client.submit({"n": -number, "slots": slots}) for number in range(1, slots + 1)]
                assert [one.result()["n"] for one in pending] == [-number for number in range(1, slots + 1)]

    found = requests_of(tmp_path / "a.rec")
    assert [one.action for one in found] == [one.observation for one in found]
    asked = [(one.observation["slots"], one.observation["n"]) for one in found]
    expected = [(slots, n) for slots in several for n in (*range(2 * slots + 3), *range(-1, -slots - 1, -1))]
    assert asked == expected
    replayed = admin_json(echo, "replay", tmp_path / "a.rec")
    assert replayed["same"] and replayed["compared"] == len(expected) and replayed["errors"] == {}


def test_a_new_client_on_the_same_channel_is_another_lease(obedient: Daemon, tmp_path: Path) -> None:
    with recording(obedient, tmp_path / "a.rec"):
        for _ in range(2):
            with obedient.client() as client:
                client.infer({"do": "count"})
            wait_until("it is gone", lambda: not obedient.status()["clients"])

    found = [request.facts for request in requests_of(tmp_path / "a.rec")]
    assert [(facts.client, facts.lease) for facts in found] == [(0, 1), (0, 2)]


def test_an_answer_that_waits_for_room_is_recorded(obedient: Daemon, tmp_path: Path) -> None:
    with recording(obedient, tmp_path / "a.rec"), obedient.client() as client:
        client.infer({"do": "grow", "items": 100_000, "value": 3})
        client.infer({"do": "count"})

    grown, after = requests_of(tmp_path / "a.rec")
    assert grown.action.shape == (100_000,) and (grown.action == 3).all()
    assert (grown.facts.lease, after.facts.lease) == (1, 1), "a larger channel is the same client's"


def test_the_recorder_counts_and_reports_python_objects_and_failures(obedient: Daemon, tmp_path: Path) -> None:
    with recording(obedient, tmp_path / "a.rec"), obedient.client() as client:
        client.infer({"do": "echo", "value": {1, 2}})
        with pytest.raises(RuntimeError):
            client.infer({"do": "raise", "text": "no such joint"})

    with Recording(tmp_path / "a.rec") as found:
        (failed,) = found
        assert found.ending is not None and found.ending["pickled"] == 1
    assert (failed.facts.status, failed.action) == ("failed", None)
    assert failed.facts.error == "LookupError: no such joint"


@pytest.mark.long
def test_a_recording_continues_through_dead_engines_and_an_update_and_holds_the_fatal_requests(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon("obedient")
    old = daemon.status()["model"]["version"]

    with recording(daemon, tmp_path / "a.rec"), daemon.client() as client:
        client.infer({"do": "count"})
        with pytest.raises(EngineLost):
            client.infer({"do": "exit", "culprit": np.arange(3)})
        new = update(daemon, gain_package(tmp_path, 3))["version"]
        client.infer({"x": np.arange(3), "robot": "a"})
    replayed = admin(daemon, "replay", tmp_path / "a.rec", "--json")

    first, killer, last = requests_of(tmp_path / "a.rec")
    assert [killer.facts.status, killer.action] == ["engine_lost", None]
    np.testing.assert_array_equal(killer.observation["culprit"], np.arange(3))
    assert [first.facts.model_version, last.facts.model_version] == [old, new]
    assert last.action["k"] == 3
    assert json.loads(replayed.stdout)["skipped"] == 1, "it is not asked of a serving model"
    assert daemon.status()["engine"]["restarts"] == 2


def test_a_recorder_that_does_not_keep_up_loses_requests_and_no_robot_waits(echo: Daemon, tmp_path: Path) -> None:
    frame = np.zeros(300_000, np.uint8)

    with recording(echo, tmp_path / "a.rec", "--buffer-mib", 1) as process:
        process.send_signal(signal.SIGSTOP)
        with echo.client() as client:
            for number in range(20):
                assert client.infer({"number": number, "frame": frame})["number"] == number
        process.send_signal(signal.SIGCONT)

    with Recording(tmp_path / "a.rec") as found:
        kept = [request.observation["number"] for request in found]
        assert found.ending is not None
    assert kept == list(range(len(kept))) and 0 < len(kept) < 20
    assert found.ending["dropped"] >= 20 - len(kept)


def test_a_killed_recorder_leaves_complete_records_and_the_next_may_record(echo: Daemon, tmp_path: Path) -> None:
    process = start_admin(echo, "record", "--out", tmp_path / "a.rec")
    wait_until("the engine has the record ring", lambda: has_record_ring(echo))
    with echo.client() as client:
        for number in range(30):
            client.infer({"frame": np.full(100_000, number, np.uint8)})
        wait_until("some is on the disk", lambda: (tmp_path / "a.rec").stat().st_size > 1_000_000)
        process.kill()
        end_admin(process)

        cut = admin(echo, "replay", tmp_path / "a.rec")
        partial = admin_json(echo, "replay", tmp_path / "a.rec", "--partial")
        with recording(echo, tmp_path / "b.rec"):
            client.infer({"again": True})

    assert cut.returncode == 1 and "ends in the middle" in cut.stderr and "--partial" in cut.stderr
    assert partial["same"] and partial["compared"] >= 4
    assert len(requests_of(tmp_path / "b.rec")) == 1


def test_an_observation_that_cannot_be_recorded_is_refused(echo: Daemon, tmp_path: Path) -> None:
    (tmp_path / "old.rec").write_text("precious")
    unknown = admin(echo, "record", "--out", tmp_path / "a.rec", "--client", 77)
    exists = admin(echo, "record", "--out", tmp_path / "old.rec")
    with recording(echo, tmp_path / "b.rec"):
        busy = admin(echo, "record", "--out", tmp_path / "a.rec")

    for refused, said in (
        (unknown, "client 77 is not attached"),
        (exists, "exists: record into another file"),
        (busy, "one recording at a time"),
    ):
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    assert (tmp_path / "old.rec").read_text() == "precious" and not (tmp_path / "a.rec").exists()


def _no_memfd() -> int:
    return os.open("/dev/null", os.O_RDWR)


def _unsealed() -> int:
    return os.memfd_create("record_ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _of_another_version() -> int:
    descriptor = _unsealed()
    os.pwrite(descriptor, b"shmsring" + (2).to_bytes(8, "little") + bytes(9000), 0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def _with_a_lying_header() -> int:
    descriptor = _unsealed()
    os.pwrite(descriptor, b"shmsring" + (1).to_bytes(8, "little") + (1 << 30).to_bytes(8, "little"), 0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


@pytest.mark.parametrize("record_ring", [_no_memfd, _unsealed, _of_another_version, _with_a_lying_header])
def test_an_engine_is_never_given_a_record_ring_that_could_kill_it(
    echo: Daemon, record_ring: Callable[[], int]
) -> None:
    descriptor = record_ring()
    try:
        with AdminConnection(echo.name, echo.runtime_dir) as connection, pytest.raises(VarlinkError) as raised:
            next(connection.call_more("Record", {}, fd=descriptor))
    finally:
        os.close(descriptor)

    assert raised.value.parameters["reason"] == "record_ring"
    assert not echo.status()["recording"]


def test_a_reader_that_lies_about_its_position_hurts_only_itself() -> None:
    reader = RecordRingReader(4096)
    descriptor = os.dup(reader.descriptor)
    writer = RecordRingWriter(descriptor)
    payload = np.full(1000, 7, np.uint8)
    for read in (0, 1 << 63, 5, 4096):
        os.pwrite(descriptor, read.to_bytes(8, "little"), 128)
        for _ in range(10):
            writer.write(Entry.REQUEST, 0, 1, (1,), payload[:64], payload)

    assert os.fstat(descriptor).st_size == 4096 + 4096
    writer.close()
    reader.close()
    os.close(descriptor)


@pytest.mark.long
def test_the_same_model_answers_a_recording_alike_and_another_one_does_not(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon(gain_package(tmp_path, 2.0))
    with recording(daemon, tmp_path / "a.rec"), daemon.client() as client:
        for number in range(5):
            client.infer({"x": np.arange(3) + number, "robot": "a"})
    served = daemon.status()["requests"]["served"]

    with_model = admin(daemon, "replay", tmp_path / "a.rec", "--model", gain_package(tmp_path, 2.5), "--json")
    assert daemon.status()["requests"]["served"] == served, "the serving model was not asked"
    with tarfile.open(tmp_path / "gain.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "gain-2.0", "gain")
    of_a_tar = admin_json(daemon, "replay", tmp_path / "a.rec", "--model", tmp_path / "gain.tar.gz")
    tolerated = admin_json(daemon, "replay", tmp_path / "a.rec", "--rtol", 0.5, "--count", 3)
    table = admin(daemon, "replay", tmp_path / "a.rec", "--paced")

    assert with_model.returncode == 1, with_model.stderr
    found = json.loads(with_model.stdout)
    assert not found["same"] and found["compared"] == 5 and found["errors"] == {}
    assert found["fields"]["y"]["differ"] == 5 and found["fields"]["y"]["first"] == 1
    assert found["fields"]["y"]["max_abs"] == pytest.approx(6 * 0.5) and found["fields"]["y"]["max_rel"] == 0.25
    assert found["fields"]["k"]["max_abs"] == 0.5
    assert of_a_tar["same"] and of_a_tar["compared"] == 5
    assert tolerated["same"] and tolerated["compared"] == 3 and tolerated["latency_us"]["infer"]["p50"] > 0
    assert table.returncode == 0 and "max abs" in table.stdout and "round trip" in table.stdout


@pytest.mark.long
def test_a_replay_reports_an_unusable_model_with_the_error_of_that_model(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    file = tmp_path / "a.rec"
    _one_request(file)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "policy.py").write_text("import a_module_that_is_nowhere\n")

    (tmp_path / "broken.tar").write_bytes(b"no tar" * 1000)

    broken = admin(daemon, "replay", file, "--model", tmp_path / "broken")
    no_tar = admin(daemon, "replay", file, "--model", tmp_path / "broken.tar")
    absent = admin(daemon, "replay", file, "--model", tmp_path / "absent")
    nobody = admin(daemon, "replay", file)

    assert no_tar.returncode == 1 and "broken.tar: the file is not a tar" in no_tar.stderr
    assert broken.returncode == 1 and "a_module_that_is_nowhere" in broken.stderr
    assert absent.returncode == 1 and "absent does not exist" in absent.stderr
    assert nobody.returncode == 3, nobody.stderr


def test_a_replay_that_is_killed_leaves_no_daemon_and_its_folder_goes_with_the_next(
    make_daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make_daemon()
    monkeypatch.setattr(tempfile, "tempdir", str(daemon.folder))
    monkeypatch.setenv("TMPDIR", str(daemon.folder))  # where it leaves what it made; tmp_path is too long for a socket
    _one_request(tmp_path / "a.rec")
    process = start_admin(daemon, "replay", tmp_path / "a.rec", "--model", POLICIES / "slow_start")
    child = wait_until("it has started a daemon", lambda: _children(process.pid))[0]

    process.kill()
    end_admin(process)

    wait_until("that daemon is gone", lambda: not is_running(child))
    (left,) = daemon.folder.glob("shmserve-replay-*")
    with PrivateFolder("shmserve-replay-") as one, PrivateFolder("shmserve-replay-") as other:
        assert one.path != other.path and not left.exists()
        assert {one.path, other.path} == {*daemon.folder.glob("shmserve-replay-*")}


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _one_request(file: Path) -> None:
    facts = RequestFacts(1, 0, 1, 1, "infer", "ok", 0.0, None, 1.0, 1.0, 1.0, 1.0, None)
    with RecordingWriter(file) as writer:
        writer.begin({"service": "t", "model": None})
        writer.add(facts, {"x": np.arange(3)}, {"x": np.arange(3)})
        writer.end({})
