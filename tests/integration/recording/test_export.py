"""`shmserve-admin export`: its exit statuses, what a kill leaves, and videos by the ffmpeg program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader

from tests.support import watchdog
from tests.support.admin_command import COMMAND
from tests.support.daemon_process import Daemon, environment, wait_until
from tests.support.recordings import recording, write_recording

#: Writes its arguments and what it reads beside itself, and what it reads to its last argument.
_FFMPEG = """#!/bin/sh
printf '%s\\n' "$@" > "$0.arguments"
for out; do :; done
cat > "$out"
cp "$out" "$0.input"
"""
#: Reads nothing, and ends when something opens its FIFO.
_BLOCKED = """#!/bin/sh
: > "$0.started"
read line < "$0.fifo"
"""


def frame(value: int, width: int = 9) -> Any:
    return np.full((8, width, 3), value, np.uint8)


def export(file: Path, *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `path` is a folder of programs, instead of those installed here."""
    variables = environment() if path is None else {**environment(), "PATH": f"{path}:/usr/bin:/bin"}
    return subprocess.run(
        [COMMAND, "export", file, *map(str, arguments)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def program(folder: Path, text: str) -> Path:
    folder.mkdir()
    ffmpeg = folder / "ffmpeg"
    ffmpeg.write_text(text)
    ffmpeg.chmod(0o755)
    return ffmpeg


def test_what_a_service_was_asked_is_exported(echo: Daemon, tmp_path: Path) -> None:
    with recording(echo, tmp_path / "a.rec"), echo.client() as client:
        for value in range(3):
            client.infer({"front": frame(value), "state": np.arange(3.0)})

    done = export(tmp_path / "a.rec", "--mcap", tmp_path / "a.mcap", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3
    with (tmp_path / "a.mcap").open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert {channel.topic for channel in summary.channels.values()} == {
        "/observation",
        "/observation/front",
        "/action",
        "/request",
    }


def test_a_recording_that_was_cut_off_ends_with_5_and_names_what_was_exported(tmp_path: Path) -> None:
    whole = write_recording(tmp_path / "a.rec", [({}, {"a": n}, n) for n in range(3)]).read_bytes()
    (tmp_path / "a.rec").write_bytes(whole[: whole.index(b"requests/00000002") + 600])

    done = export(tmp_path / "a.rec", "--mcap", tmp_path / "a.mcap")

    assert done.returncode == 5
    assert "was cut off: its 1 complete requests are in" in done.stderr
    with (tmp_path / "a.mcap").open("rb") as stream:
        assert len(list(make_reader(stream).iter_messages(topics=["/observation"]))) == 1


def test_damage_in_the_middle_leaves_no_output(tmp_path: Path) -> None:
    file = write_recording(tmp_path / "a.rec", [({}, {"a": n, "state": np.ones(3)}, n) for n in range(3)])
    content = file.read_bytes()
    at = content.index(b'"dtype":"F64"', content.index(b"requests/00000003"))
    file.write_bytes(content[:at] + b'"dtype":"X64"' + content[at + 13 :])

    done = export(file, "--mcap", tmp_path / "a.mcap")

    assert done.returncode == 1
    assert "request 3 is not a safetensors file" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --mcap OUT, --lerobot DIR and --video CAMERA OUT"),
        (["--mcap", "a", "--lerobot", "b"], "give one of"),
        (["--mcap", "a", "--frame", "front"], "'front' is not NAME=ENCODING"),
        (["--mcap", "a", "--frame", "front=yuv"], "encodings are rgb8, bgr8"),
        (["--video", "front", "a.mp4", "--fps", "0"], "0.0 is not in the range"),
    ],
)
def test_a_usage_error_is_explained(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = export(tmp_path / "absent.rec", *arguments)

    assert done.returncode == 2
    assert said in done.stderr


def test_a_video_gets_the_frames_red_first_and_the_usual_rate(tmp_path: Path) -> None:
    ffmpeg = program(tmp_path / "bin", _FFMPEG)
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    file = write_recording(tmp_path / "a.rec", [({}, {"front": pixels + n, "other": frame(0)}, n) for n in range(4)])

    done = export(file, "--video", "front", tmp_path / "a; b.mp4", "--frame", "front=bgr8", path=ffmpeg.parent)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'a; b.mp4'}: 4 frames, 10.0 fps\n"
    arguments = Path(f"{ffmpeg}.arguments").read_text().splitlines()
    assert [arguments[arguments.index(key) + 1] for key in ("-video_size", "-framerate", "-f")] == [
        "9x8",
        "10",
        "rawvideo",
    ]
    given = np.frombuffer(Path(f"{ffmpeg}.input").read_bytes(), np.uint8).reshape(4, 8, 9, 3)
    np.testing.assert_array_equal(given, [(pixels + n)[..., ::-1] for n in range(4)])
    assert (tmp_path / "a; b.mp4").exists()


@pytest.mark.parametrize(
    ("observations", "text", "said"),
    [
        ([{"front": frame(0)}], None, "the ffmpeg program was not found, which --video needs: apt-get install ffmpeg"),
        ([{"front": frame(0)}, {"front": frame(0, 12)}], _FFMPEG, "request 2: front has the shape [8, 12, 3]"),
        (
            [{"front": frame(0)}],
            "#!/bin/sh\necho no such codec >&2\nexit 3\n",
            "ffmpeg failed with status 3: no such codec",
        ),
        ([{"front": np.zeros((8, 9), np.uint16)}], _FFMPEG, "front is a depth picture (16UC1), which has no colours"),
        ([{"frnt": frame(0)}], _FFMPEG, "no observation has a frame 'front'; frames are frnt"),
    ],
    ids=["no ffmpeg", "another size", "failing", "depth", "no such camera"],
)
def test_a_video_that_cannot_be_made_leaves_nothing(
    observations: list[Any], text: str | None, said: str, tmp_path: Path
) -> None:
    if text is None and shutil.which("ffmpeg", path="/usr/bin:/bin"):
        pytest.skip("ffmpeg is installed here")
    folder = program(tmp_path / "bin", text).parent if text else tmp_path / "bin"
    file = write_recording(tmp_path / "a.rec", [({}, seen, 1) for seen in observations])

    done = export(file, "--video", "front", tmp_path / "a.mp4", path=folder)

    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"a.rec", "bin"}


def test_a_killed_export_leaves_nothing_under_the_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    ffmpeg = program(tmp_path / "bin", _BLOCKED)
    os.mkfifo(f"{ffmpeg}.fifo")
    file = write_recording(tmp_path / "a.rec", [({}, {"front": frame(0)}, 1)])
    out = tmp_path / "a.mp4"
    killed = subprocess.Popen(
        [COMMAND, "export", file, "--video", "front", out],
        env={**environment(), "PATH": f"{ffmpeg.parent}:/usr/bin:/bin"},
        start_new_session=True,
    )
    watchdog.watch(killed)
    wait_until("ffmpeg runs", Path(f"{ffmpeg}.started").exists)
    second = export(file, "--mcap", out)

    killed.send_signal(signal.SIGKILL)
    killed.wait()
    watchdog.reap(killed)
    Path(f"{ffmpeg}.fifo").write_text("end\n")  # the other process of the video

    assert (second.returncode, out.exists()) == (1, False)
    assert f"another process is writing {out}" in second.stderr
    assert export(file, "--mcap", out).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.rec", "a.mp4", "bin"}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg: apt-get install ffmpeg")
def test_a_real_video_shows_the_pictures(tmp_path: Path) -> None:
    levels = (30, 220, 120)
    file = write_recording(tmp_path / "a.rec", [({}, {"front": frame(level)}, 1) for level in levels])

    assert export(file, "--video", "front", tmp_path / "a.mp4").returncode == 0

    decoded = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", tmp_path / "a.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    ).stdout
    pictures = np.frombuffer(decoded, np.uint8).reshape(3, 8, 10, 3)[:, :, :9].astype(int)  # 9 is padded to 10
    for picture, level in zip(pictures, levels, strict=True):
        assert abs(picture - level).max() <= 6, "H.264 loses a little"
