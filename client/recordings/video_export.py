"""Export of one camera of a recording as a video, by the ffmpeg program."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from .errors import RecordingError
from .export_source import ExportSource
from .frames import Frame

#: The longest ffmpeg may take after the last frame.
_END_S = 600.0


def export_video(source: ExportSource, camera: str, out: Path, fps: float | None) -> dict[str, Any]:
    """Write the camera's frames to the new file `out`, one for each request; return counts.

    The rate is constant: `fps`, or the usual rate of the requests. Raises RecordingError or OSError.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise RecordingError("the ffmpeg program was not found, which --video needs: apt-get install ffmpeg")
    if len(source.leases) > 1:
        listed = ", ".join(map(str, source.leases))
        raise RecordingError(f"the recording holds clients {listed}: choose whose frames with --client")
    rate = Fraction(fps or source.rate_hz() or 1.0).limit_denominator(1000)
    video: _Video | None = None
    names: dict[str, None] = {}
    count = 0
    try:
        for request in source.requests():
            names.update(dict.fromkeys(frame.name for frame in request.frames))
            for frame in request.frames:
                if frame.name == camera:
                    video = video or _Video(program, frame, rate, out)
                    video.add(frame, request.facts.number)
                    count += 1
        if video is None:
            raise RecordingError(f"no observation has a frame {camera!r}; frames are {', '.join(names) or 'none'}")
        video.finish()
    finally:
        if video is not None:
            video.close()
    return {"frames": count, "fps": round(float(rate), 3)}


class _Video:
    """A running ffmpeg, which reads frames from its standard input."""

    def __init__(self, program: str, first: Frame, rate: Fraction, out: Path) -> None:
        height, width, _ = first.as_rgb().shape
        self._shape = first.pixels.shape
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        # fmt: off
        command = [
            program, "-hide_banner", "-loglevel", "error", "-f", "rawvideo", "-pixel_format", "rgb24",
            "-video_size", f"{width}x{height}", "-framerate", str(rate), "-i", "pipe:0", "-an",
            # Players want even sides and this format of pixels.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4",
            str(out.absolute()),
        ]
        # fmt: on
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True
        )

    def add(self, frame: Frame, number: int) -> None:
        """Write one frame; raises RecordingError for one of another size, or if ffmpeg has ended."""
        if frame.pixels.shape != self._shape:
            raise RecordingError(
                f"request {number}: {frame.name} has the shape {list(frame.pixels.shape)}, the frames before "
                f"{list(self._shape)}; a video has one size"
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.as_rgb().tobytes())
        except BrokenPipeError:
            raise self._failed() from None

    def finish(self) -> None:
        """Wait until ffmpeg has written the file; raises RecordingError if it fails."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            status = self._process.wait(_END_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            raise self._failed() from None
        if status != 0:
            raise self._failed()

    def _failed(self) -> RecordingError:
        self._process.kill()
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return RecordingError(f"ffmpeg failed with status {status}: {lines[-1] if lines else 'it did not say why'}")

    def close(self) -> None:
        """Kill an ffmpeg that still runs. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._said.close()
