"""shmserve-admin export: a recording in the formats of other programs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .click_types import Number
from .exit_status import CUT_OFF, fail, with_exit_status
from .target import Target, print_json, progress_bar

_PATH = click.Path(path_type=Path, readable=False)


@click.command()
@click.argument("file", type=_PATH)
@click.option("--mcap", type=_PATH, metavar="OUT", help="Make this file, for Foxglove, PlotJuggler or Rerun.")
@click.option("--lerobot", type=_PATH, metavar="DIR", help="Make this directory, a LeRobotDataset.")
@click.option(
    "--video",
    type=(str, _PATH),
    metavar="CAMERA OUT",
    help="Make an MP4 of one camera's frames, by the ffmpeg program.",
)
@click.option(
    "--frame",
    "frames",
    multiple=True,
    metavar="NAME=ENCODING",
    help="What an array of the observation is: rgb8, bgr8, rgba8, bgra8, mono8, 16UC1, 32FC1 or none.  "
    "[default: by dtype, shape and name]",
)
@click.option("--client", type=click.IntRange(min=1), help="Only this one; a recording counts its clients from 1.")
@click.option(
    "--fps",
    type=Number(min=0, max=100_000, min_open=True),
    help="Frames per second of --lerobot and --video.  [default: the requests' usual rate]",
)
@click.option("--task", help="The task of --lerobot, where observations have no such text.")
@click.option("--force", is_flag=True, help="Replace what has that name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def export(
    target: Target,
    file: Path,
    mcap: Path | None,
    lerobot: Path | None,
    video: tuple[str, Path] | None,
    frames: tuple[str, ...],
    client: int | None,
    fps: float | None,
    task: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the recording FILE in a format of other programs.

    Needs no daemon. The output gets its name when it is complete. Of a recording that was cut off the complete
    requests are exported; exit status 5 then.

    \b
    shmserve-admin export today.rec --mcap today.mcap
    shmserve-admin export today.rec --lerobot datasets/today --task "fold the towel"
    shmserve-admin export today.rec --video images.front front.mp4 --frame images.front=bgr8
    """
    from ..recordings.export_source import ExportSource
    from ..recordings.frames import FrameFinder
    from ..recordings.lerobot_export import INFO, export_lerobot
    from ..recordings.new_output import NewOutput

    out = mcap or lerobot or (video[1] if video else None)
    if out is None or sum(given is not None for given in (mcap, lerobot, video)) > 1:
        raise click.UsageError("give one of --mcap OUT, --lerobot DIR and --video CAMERA OUT")
    finder = FrameFinder(_encodings(frames))
    with ExitStack() as stack:
        source = stack.enter_context(ExportSource(file, finder, client=client))
        new = NewOutput(out, force=force, replaces=INFO if lerobot else None)
        place = stack.enter_context(new)
        source.progress = stack.enter_context(progress_bar("exporting", len(source)))
        if mcap is not None:
            from ..recordings.mcap_export import export_mcap

            found: dict[str, Any] = export_mcap(source, place.path)
        elif lerobot is not None:
            found = export_lerobot(source, place.path, fps, task)
        else:
            from ..recordings.video_export import export_video

            assert video is not None
            found = export_video(source, video[0], place.path, fps)
        new.commit()
        cut_off, requests = source.cut_off, len(source)
    if target.as_json or as_json:
        print_json({"file": str(file), "out": str(out), "cut_off": cut_off, **found})
    else:
        print(f"{out}: {', '.join(f'{number} {name}' for name, number in found.items())}")
    if cut_off:
        fail(f"{file} was cut off: its {requests} complete requests are in {out}, the rest is lost", CUT_OFF)


def _encodings(frames: tuple[str, ...]) -> dict[str, str]:
    from ..recordings.frames import ENCODINGS, NOT_A_FRAME

    found = {}
    for given in frames:
        name, sign, encoding = given.rpartition("=")
        if not sign or encoding not in (*ENCODINGS, NOT_A_FRAME):
            known = ", ".join((*ENCODINGS, NOT_A_FRAME))
            raise click.BadParameter(f"{given!r} is not NAME=ENCODING; encodings are {known}", param_hint="--frame")
        found[name] = encoding
    return found
