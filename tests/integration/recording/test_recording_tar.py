"""A recording as other tools read it."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from shmserve.client.recordings.recording import RecordingWriter, RequestFacts

OBSERVATION: dict[str, Any] = {
    "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "task": "fold",
    "pose": (1, 2.5, None),
}


ACTION = {"actions": np.linspace(0, 1, 7, dtype=np.float32)}


def facts(number: int, **changed: Any) -> RequestFacts:
    plain: dict[str, Any] = {"client": 0, "lease": 1, "sequence": number, "kind": "infer", "status": "ok", "at_s": 0.5}
    plain |= {"model_version": "0" * 16, "queued_us": 1.0, "staged_us": 2.0, "infer_us": 3.0, "copied_us": 4.0}
    return RequestFacts(number=number, **{**plain, "error": None, **changed})


def write(file: Path, count: int = 3, **changed: Any) -> Path:
    with RecordingWriter(file) as writer:
        writer.begin({"service": "arm", "model": None})
        for number in range(1, count + 1):
            writer.add(facts(number, **changed), OBSERVATION, ACTION)
        writer.end({"ended": "count"})
    return file


def test_other_tools_read_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.rec")

    listed = subprocess.run(["tar", "-tf", str(file)], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(file) as archive:
        member = archive.extractfile("requests/00000002.safetensors")
        assert member is not None
        blob = member.read()

    assert listed == ["recording.json", *(f"requests/{n:08d}.safetensors" for n in (1, 2, 3)), "end.json"]
    tensors = load(blob)
    np.testing.assert_array_equal(tensors["observation.image"], OBSERVATION["image"])
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    assert json.loads(header["observation"]) == {
        "image": {"$array": "observation.image"},
        "task": "fold",
        "pose": {"$tuple": [1, 2.5, None]},
    }
    assert b"cpickle" not in blob and b"numpy" not in blob
