"""Recordings exported to MCAP and as a LeRobotDataset, read back; and outputs that appear when they are complete."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from shmserve.client.recordings import RecordingError
from shmserve.client.recordings.export_source import ExportSource
from shmserve.client.recordings.frames import FrameFinder
from shmserve.client.recordings.lerobot_export import export_lerobot
from shmserve.client.recordings.mcap_export import export_mcap
from shmserve.client.recordings.new_output import NewOutput
from shmserve.client.recordings.plain_json import plain_json, schema_of
from tests.support.recordings import BEGAN_S, write_recording

DICE = np.random.default_rng(5)


def observation(**changed: Any) -> dict[str, Any]:
    pictures = {
        "front": DICE.integers(0, 256, (9, 8, 3), np.uint8),
        "wrist": DICE.integers(0, 256, (3, 16, 20)).astype(np.float32) / 255,
        "depth": DICE.integers(0, 65536, (8, 10), np.uint16),
    }
    numbers = {"state": DICE.random(6, np.float32), "gripper": 0.5, "task": "fold"}
    return {"images": pictures, **numbers, **changed}


def action(value: float) -> dict[str, Any]:
    return {"actions": np.arange(12, dtype=np.float32).reshape(2, 6) + value}


RESET = ({"kind": "reset"}, None, None)
FAILED = {"status": "failed", "error": "LookupError: no such joint"}


def source(file: Path, client: int | None = None) -> ExportSource:
    return ExportSource(file, FrameFinder({}), client=client)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


# MCAP


def messages(file: Path) -> dict[str, list[tuple[Any, Any, Any]]]:
    """What MCAP's own reader and the decoder of protobuf give: (schema, message, content) by topic, in order of time."""
    found: dict[str, list[tuple[Any, Any, Any]]] = {}
    with file.open("rb") as stream:
        decoder = DecoderFactory()
        for schema, channel, message in make_reader(stream, validate_crcs=True).iter_messages():
            assert schema is not None
            protobuf = decoder.decoder_for(channel.message_encoding, schema)
            content = json.loads(message.data) if protobuf is None else protobuf(message.data)
            found.setdefault(channel.topic, []).append((schema, message, content))
    return found


def picture(content: Any) -> Any:
    pixels: Any = np.frombuffer(content.data, {"rgb8": "u1", "16UC1": "<u2"}[content.encoding])
    pixels = pixels.reshape(content.height, content.width, -1)
    assert content.step * content.height == len(content.data)
    return pixels


def test_mcap_holds_the_same_pictures_numbers_and_times(tmp_path: Path) -> None:
    seen = [observation(), observation()]
    recording = write_recording(tmp_path / "a.rec", [({}, seen[0], action(0)), ({}, seen[1], action(1))])

    with source(recording) as opened:
        counts = export_mcap(opened, tmp_path / "a.mcap")

    found = messages(tmp_path / "a.mcap")
    assert counts == {"requests": 2, "frames": 6, "actions": 2, "failed": 0, "resets": 0}
    began_ns = round(BEGAN_S * 1e9)
    for index, given in enumerate(seen):
        schema, message, front = found["/observation/images/front"][index]
        assert (schema.name, schema.encoding, front.encoding) == ("foxglove.RawImage", "protobuf", "rgb8")
        at_ns = began_ns + (index + 1) * 100_000_000
        assert message.log_time == message.publish_time == at_ns == front.timestamp.ToNanoseconds()
        np.testing.assert_array_equal(picture(front), given["images"]["front"])
        _, _, wrist = found["/observation/images/wrist"][index]
        bytes_of_wrist = np.rint(given["images"]["wrist"] * 255).astype(np.uint8)
        np.testing.assert_array_equal(picture(wrist), bytes_of_wrist.transpose(1, 2, 0))
        _, _, depth = found["/observation/images/depth"][index]
        assert depth.encoding == "16UC1"
        np.testing.assert_array_equal(picture(depth)[..., 0], given["images"]["depth"])
        schema, _, numbers = found["/observation"][index]
        assert (schema.encoding, json.loads(schema.data)["properties"]["gripper"]) == ("jsonschema", {"type": "number"})
        assert numbers == {"images": {}, "state": given["state"].tolist(), "gripper": 0.5, "task": "fold"}
        _, message, given_action = found["/action"][index]
        assert given_action == {"actions": action(index)["actions"].tolist()}
        assert message.log_time == at_ns + 10_000, "when the service had it: 10 us later"
    assert [content["model_version"] for _, _, content in found["/request"]] == ["0" * 16] * 2
    with (tmp_path / "a.mcap").open("rb") as stream:
        (about,) = make_reader(stream).iter_metadata()
    assert (about.name, about.metadata["service"], about.metadata["model"]) == ("shmserve", "arm", "reach")


def test_without_the_mcap_library_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "shmserve.client.recordings.mcap_export"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcap.writer", None)

    with pytest.raises(RecordingError, match=r"mcap.writer is not installed here: pip install 'shmserve\[export\]'"):
        importlib.import_module(name)


def test_mcap_marks_failed_requests_and_resets(tmp_path: Path) -> None:
    requests = [({}, {"a": 1}, 2.5), RESET, (FAILED, {"a": 2}, None), ({"status": "unanswered"}, {"a": 3}, None)]
    recording = write_recording(tmp_path / "a.rec", requests)

    with source(recording) as opened:
        counts = export_mcap(opened, tmp_path / "a.mcap")

    found = messages(tmp_path / "a.mcap")
    assert (counts["failed"], counts["resets"], counts["actions"]) == (2, 1, 1)
    assert [content for _, _, content in found["/action"]] == [{"action": 2.5}]
    assert [content["a"] for _, _, content in found["/observation"]] == [1, 2, 3]
    assert [(content["level"], content["message"]) for _, _, content in found["/log"]] == [
        (2, "reset"),
        (4, "request 3: failed: LookupError: no such joint"),
        (4, "request 4: unanswered"),
    ]
    assert [content["kind"] for _, _, content in found["/request"]] == ["infer", "reset", "infer", "infer"]


def test_mcap_separates_several_clients_and_the_operator_can_choose_one(tmp_path: Path) -> None:
    both = [({"lease": 1}, {"a": 1}, 1), ({"lease": 2}, {"a": 2}, 2), ({"lease": 1}, {"a": 3}, 3)]
    recording = write_recording(tmp_path / "a.rec", both)

    with source(recording) as opened:
        export_mcap(opened, tmp_path / "both.mcap")
    with source(recording, client=2) as opened:
        export_mcap(opened, tmp_path / "one.mcap")

    found = messages(tmp_path / "both.mcap")
    assert [content["a"] for _, _, content in found["/client_1/observation"]] == [1, 3]
    assert [content["a"] for _, _, content in found["/client_2/observation"]] == [2]
    assert [content["a"] for _, _, content in messages(tmp_path / "one.mcap")["/observation"]] == [2]
    with pytest.raises(RecordingError, match="holds no request of client 3"):
        source(recording, client=3)


def test_an_observation_of_another_structure_gets_another_schema(tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "a.rec", [({}, {"a": 1}, 1), ({}, {"a": "x"}, 1), ({}, 7, 1)])

    with source(recording) as opened:
        export_mcap(opened, tmp_path / "a.mcap")

    found = messages(tmp_path / "a.mcap")["/observation"]
    assert [content for _, _, content in found] == [{"a": 1}, {"a": "x"}, {"observation": 7}]
    assert len({schema.data for schema, _, _ in found}) == 3


def test_a_recording_that_was_cut_off_is_exported_up_to_there(tmp_path: Path) -> None:
    whole = write_recording(tmp_path / "a.rec", [({}, {"a": n}, n) for n in range(3)]).read_bytes()
    cut = tmp_path / "cut.rec"
    cut.write_bytes(whole[: whole.index(b"requests/00000003") + 600])

    with source(cut) as opened:
        assert opened.cut_off
        assert export_mcap(opened, tmp_path / "a.mcap")["requests"] == 2


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (floats(1.5, np.nan, -np.inf), [1.5, None, None]),
        (np.array([[1], [2]], np.int8), [[1], [2]]),
        (np.float64(np.nan), None),
        (float("inf"), None),
        ({1: (True, None)}, {"1": [True, None]}),
        (b"\0\xff", "AP8="),
        (np.array([1 + 2j], np.complex64), {"dtype": "complex64", "shape": [1], "data": "AACAPwAAAEA="}),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_values_are_plain_json(value: Any, plain: Any) -> None:
    found = plain_json(value)

    assert found == plain
    json.dumps([found, schema_of(found)], allow_nan=False)


def test_a_long_array_is_written_as_its_bytes() -> None:
    found = plain_json(np.arange(1025, dtype=">i2"))

    assert (found["dtype"], found["shape"]) == ("int16", [1025])
    assert len(found["data"]) == 2736 and isinstance(plain_json(np.zeros(1024)), list)


# LeRobot


class StandIn:
    """As much of LeRobotDataset (0.6.1) as the export calls, with the checks of a frame that it makes."""

    made: ClassVar[list[StandIn]] = []

    def __init__(self, root: Path, fps: int, features: dict[str, Any]) -> None:
        self.root, self.fps, self.features = root, fps, features
        self.episodes: list[list[dict[str, Any]]] = []
        self.open: list[dict[str, Any]] = []
        self.finalized = False
        StandIn.made.append(self)

    @classmethod
    def create(cls, repo_id: str, fps: int, features: dict[str, Any], root: Path, use_videos: bool) -> StandIn:
        assert type(fps) is int and not use_videos and repo_id.count("/") == 1
        root.mkdir(parents=True, exist_ok=False)
        return cls(root, fps, features)

    def add_frame(self, frame: dict[str, Any]) -> None:
        assert set(frame) == {*self.features, "task"} and type(frame["task"]) is str
        for name, feature in self.features.items():
            assert frame[name].shape == feature["shape"]
            assert frame[name].dtype == np.dtype("uint8" if feature["dtype"] == "image" else feature["dtype"])
            assert "/" not in name and (feature["dtype"] == "image" or "image" not in name)
        self.open.append(frame)

    def save_episode(self) -> None:
        assert len(self.open) > 1, "LeRobot computes no statistics of one frame that fit those of several"
        self.episodes.append(self.open)
        self.open = []

    def finalize(self) -> None:
        assert not self.open
        self.finalized = True


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lerobot.datasets.lerobot_dataset")
    module.LeRobotDataset = StandIn  # type: ignore[attr-defined]
    monkeypatch.setattr(StandIn, "made", [])
    for name in ("lerobot", "lerobot.datasets"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def dataset(
    recording: Path, out: Path, fps: float | None = None, task: str | None = None
) -> tuple[StandIn, dict[str, Any]]:
    with source(recording) as opened:
        counts = export_lerobot(opened, out, fps, task)
    (made,) = StandIn.made
    assert made.finalized
    return made, counts


@pytest.mark.usefixtures("lerobot")
def test_a_dataset_has_the_pictures_the_state_and_the_first_action_of_each_chunk(tmp_path: Path) -> None:
    seen = [observation() for _ in range(5)]
    answered: list[Any] = [({}, given, action(number)) for number, given in enumerate(seen)]
    requests = [*answered[:2], (FAILED, seen[1], None), RESET, RESET, *answered[2:4], RESET, answered[4], RESET]
    made, counts = dataset(write_recording(tmp_path / "a.rec", requests), tmp_path / "set", fps=10)

    assert counts == {"episodes": 2, "frames": 4, "skipped": 2, "fps": 10}, "the failed one, and one alone"
    assert [len(episode) for episode in made.episodes] == [2, 2]
    for number, frame in enumerate([*made.episodes[0], *made.episodes[1]]):
        given = seen[number]
        np.testing.assert_array_equal(frame["observation.images.front"], given["images"]["front"])
        np.testing.assert_array_equal(frame["observation.depth"], given["images"]["depth"])
        np.testing.assert_array_equal(frame["observation.state"], given["state"])
        np.testing.assert_array_equal(frame["action"], np.arange(6) + number)
        assert (frame["observation.gripper"].tolist(), frame["task"]) == ([0.5], "fold")
    assert made.features["observation.images.front"]["names"] == ["height", "width", "channels"]
    assert made.features["observation.depth"]["dtype"] == "uint16"


@pytest.mark.usefixtures("lerobot")
def test_a_robot_of_lerobot_gives_joints_one_by_one(tmp_path: Path) -> None:
    seen = {"pan.pos": 1.0, "lift.pos": -2.5, "front": np.zeros((8, 8, 3), np.uint8)}
    given = {"pan.pos": 0.5, "lift.pos": 1.5}
    made, _ = dataset(
        write_recording(tmp_path / "a.rec", [({}, seen, given)] * 2), tmp_path / "set", fps=30, task="lift"
    )

    frame, _ = made.episodes[0]
    assert made.features["observation.state"] == {"dtype": "float32", "shape": (2,), "names": ["pan.pos", "lift.pos"]}
    assert made.features["action"]["names"] == ["pan.pos", "lift.pos"]
    assert (frame["observation.state"].tolist(), frame["action"].tolist()) == ([1.0, -2.5], [0.5, 1.5])
    assert frame["task"] == "lift"


@pytest.mark.usefixtures("lerobot")
def test_a_dataset_keeps_clients_apart_and_lerobots_own_names(tmp_path: Path) -> None:
    requests = [({"lease": n, "at_s": n / 20}, {"observation.state": floats(n)}, floats(n)) for n in (1, 2)]
    requests += [({"lease": n, "at_s": 0.25 + n / 20}, {"observation.state": floats(n + 2)}, floats(n)) for n in (1, 2)]
    made, counts = dataset(write_recording(tmp_path / "a.rec", requests), tmp_path / "set", task="go")

    states = [[frame["observation.state"].tolist() for frame in episode] for episode in made.episodes]
    assert states == [[[1], [3]], [[2], [4]]]
    assert counts["fps"] == 4, "the gap of each client is 0.25 s"


@pytest.mark.usefixtures("lerobot")
@pytest.mark.parametrize(
    ("requests", "fps", "task", "said"),
    [
        ([({}, {"a": 1}, 1)], None, "x", "a whole number of frames per second, .* 0.00 Hz: give --fps"),
        ([({}, {"a": 1}, 1)], 2.5, "x", "not --fps 2.5"),
        ([({}, {"a": 1}, 1)] * 2, 10, None, "request 1: its observation has no text task, prompt"),
        ([(FAILED, {"a": 1}, None), RESET], 10, "x", "no episode of the recording has two answered requests"),
        ([({}, {"a": 1}, 1), RESET, ({}, {"a": 1}, 1)], 10, "x", "no episode of the recording has two answered"),
        (
            [({}, {"a": np.ones(2)}, 1), ({}, {"a": np.ones(3)}, 1)],
            10,
            "x",
            r"request 2: observation.a is float64\[3\], and float64\[2\] in request 1",
        ),
        ([({}, {"a": 1}, 1), ({}, {}, 1)], 10, "x", r"request 2: observation.state is absent, and float32\[1\] in"),
    ],
    ids=["rate", "fps", "task", "actions", "alone", "shape", "absent"],
)
def test_what_a_dataset_cannot_hold_is_refused(
    requests: Any, fps: float | None, task: str | None, said: str, tmp_path: Path
) -> None:
    recording = write_recording(tmp_path / "a.rec", requests)

    with source(recording) as opened, pytest.raises(RecordingError, match=said):
        export_lerobot(opened, tmp_path / "set", fps, task)


def test_without_lerobot_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    recording = write_recording(tmp_path / "a.rec", [({}, {"a": 1}, 1)])

    with source(recording) as opened, pytest.raises(RecordingError, match=r"pip install 'lerobot\[dataset\]'"):
        export_lerobot(opened, tmp_path / "set", 10, "x")


# Outputs


def test_an_output_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "a.mcap"

    with NewOutput(out, force=False) as new:
        new.path.write_bytes(b"half")
        assert not out.exists()
        new.path.write_bytes(b"whole")
        new.commit()

    assert (out.read_bytes(), list(tmp_path.iterdir())) == (b"whole", [out])


def test_an_output_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), NewOutput(tmp_path / "a.mcap", force=False) as new:
        new.path.write_bytes(b"half")
        raise ZeroDivisionError

    assert list(tmp_path.iterdir()) == []


def test_only_force_replaces_a_file_and_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "a.mcap"
    out.write_bytes(b"old")

    with pytest.raises(RecordingError, match="exists: choose another name, or replace it with --force"):
        NewOutput(out, force=False).__enter__()
    with pytest.raises(ZeroDivisionError), NewOutput(out, force=True):
        raise ZeroDivisionError
    assert out.read_bytes() == b"old"
    with NewOutput(out, force=True) as new:
        new.path.write_bytes(b"new")
        new.commit()
    assert (out.read_bytes(), list(tmp_path.iterdir())) == (b"new", [out])


def test_force_replaces_a_dataset_and_no_other_directory(tmp_path: Path) -> None:
    home, old = tmp_path / "home", tmp_path / "set"
    for folder, name in ((home, "letters"), (old, "info.json")):
        folder.mkdir()
        (folder / name).write_text("{}")

    with pytest.raises(RecordingError, match="is not such a dataset"):
        NewOutput(home, force=True, replaces="info.json").__enter__()
    with pytest.raises(RecordingError, match="is not a file"):
        NewOutput(home, force=True).__enter__()
    with NewOutput(old, force=True, replaces="info.json") as new:
        new.path.mkdir()
        (new.path / "more").write_text("new")
        new.commit()

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "letters", "more", "set"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"absent, in which a\.mcap is to be made, is not a directory"):
        NewOutput(tmp_path / "absent" / "a.mcap", force=False).__enter__()


def test_two_processes_do_not_write_the_same_output(tmp_path: Path) -> None:
    out = tmp_path / "a.mcap"

    with NewOutput(out, force=False), pytest.raises(RecordingError, match="another process is writing"):
        NewOutput(out, force=False).__enter__()


def test_what_a_killed_process_left_is_removed_and_what_it_was_replacing_restored(tmp_path: Path) -> None:
    old, part = tmp_path / "set", tmp_path / ".set.part"
    (part / "new" / "set").mkdir(parents=True)
    (part / "replaced").mkdir()
    (part / "replaced" / "info.json").write_text("old")

    with pytest.raises(RecordingError, match="exists"):
        NewOutput(old, force=False, replaces="info.json").__enter__()

    assert ((old / "info.json").read_text(), list(tmp_path.iterdir())) == ("old", [old])
