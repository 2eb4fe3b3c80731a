"""A camera driver writes its frames straight into the request: 30 Hz, an age limit, and a rule for late answers."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.client import ObservationStale, RequestTimeout, ShmClient

PERIOD_S = 1 / 30


class Camera:
    """In place of a driver that fills memory which it is given, as V4L2's read() and most SDKs can."""

    def __init__(self, spot: tuple[float, float]) -> None:
        self._row, self._column = spot
        self.frames = 0

    def turn(self, pan: float, tilt: float) -> None:
        self._row -= tilt
        self._column -= pan

    def read_into(self, frame: npt.NDArray[np.uint8]) -> None:
        self.frames += 1
        frame[:] = 20
        row, column = round(self._row), round(self._column)
        frame[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 120
        frame[row, column] = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default")
    parser.add_argument("--frames", type=int, default=60)
    frames = parser.parse_args().frames
    camera = Camera(spot=(400.0, 100.0))
    example = {"image": np.zeros((480, 640, 3), np.uint8), "frame": 0}
    held = 0
    in_place = False
    found: dict[str, Any] = {}
    with ShmClient(parser.parse_args().name, timeout=10) as client:
        client.check(example)  # before anything moves: is this what the model takes?
        due = time.monotonic()
        for frame in range(frames):
            # The loan is memory of the next request: the driver's bytes are sent from there without a copy. The frame is
            # captured now; if its turn comes more than three periods later, it is not worth an answer.
            with client.loan(example, capture_time=time.monotonic(), max_age=3 * PERIOD_S) as observation:
                camera.read_into(observation["image"])
                observation["frame"] = frame
                pending = observation.send()
            try:
                found = pending.result(timeout=3 * PERIOD_S)
                in_place = pending.reply is not None and pending.reply.in_place
                camera.turn(0.3 * found["pan"], 0.3 * found["tilt"])
            except (RequestTimeout, ObservationStale):
                pending.cancel()
                held += 1  # the camera stays where it is
            due = max(due + PERIOD_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
    print(f"{camera.frames} frames, {held} times held")
    print(f"the spot is {found['pan']:+.0f}, {found['tilt']:+.0f} pixels off; in place: {in_place}")


if __name__ == "__main__":
    main()
