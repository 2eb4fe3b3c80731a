"""A client in C beside the one in Python and the floor in C: `python -m bench.scale.c_client`.

The three run in turns. The policy reads the request in its slot, so each of them writes the observation once.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.floors.floor import CFloor, floors, sample_of
from bench.peers.asking import Asking
from bench.peers.leftovers import my_prefix
from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import workload

from .figure import Figure, NotMeasured, main

TITLE = "A client in C"
ROUNDS = 6
WORKLOADS = ("tiny", "vga", "fullhd")
RATE_HZ = 50.0
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def program() -> Iterator[Path]:
    """Compile the client with the static library."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        raise NotMeasured("a C compiler is missing (apt-get install gcc make)")
    with tempfile.TemporaryDirectory(prefix=my_prefix()) as name:
        folder = Path(name)
        make = ["make", "-s", "-f", str(_ROOT / "native/libshmserve.mk"), f"BUILD={folder}", f"{folder}/libshmserve.a"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        source = Path(__file__).with_suffix(".c")
        flags = [
            "-O2",
            f"-I{_ROOT}/native/include",
            str(source),
            f"{folder}/libshmserve.a",
            "-lrt",
            "-ldl",
            "-lm",
            "-pthread",
        ]
        subprocess.run(["gcc", *flags, "-o", str(folder / "c_client")], check=True)
        yield folder / "c_client"


def measure(seconds: float) -> list[Figure]:
    """Measure each workload in a closed loop and at 50 Hz."""
    figures = []
    with (
        program() as client,
        Service(POLICY, model={"arrays": "numpy", "read_in_place": True}) as service,
        floors() as all_floors,
    ):
        floor = next((one for one in all_floors if isinstance(one, CFloor) and one.copies == 1 and not one.spin), None)
        for name in WORKLOADS:
            for rate_hz in (0.0, RATE_HZ):
                figures += _compare(name, rate_hz, seconds, client, service, floor)
    return figures


def _compare(
    name: str, rate_hz: float, seconds: float, program: Path, service: Service, floor: CFloor | None
) -> list[Figure]:
    asked = workload(name)
    python = service.client()
    asking = Asking(python.infer, asked)
    height, width, _ = asked.observation["image"].shape
    period_ns = int(1e9 / rate_hz) if rate_hz else 0
    turn_s = max(seconds / ROUNDS, 40 / rate_hz if rate_hz else 0)
    command = [str(program), str(service.runtime_dir), str(height), str(width), str(turn_s), str(period_ns)]

    def floor_ns() -> Any:
        assert floor is not None
        return (floor.paced(asked, turn_s, rate_hz) if rate_hz else floor.turn(asked, turn_s)).latency_ns

    turns: dict[str, Callable[[], Any]] = {
        "c": lambda: sample_of("C client", command).latency_ns,
        "python": lambda: (
            (asking.paced(turn_s, rate_hz) if rate_hz else asking.closed(at_least=20, seconds=turn_s)).latency_ns
        ),
    }
    if floor is not None:
        turns["floor"] = floor_ns
    medians: dict[str, list[float]] = {way: [] for way in turns}
    asking.closed(at_least=20, seconds=0.1)
    for _ in range(ROUNDS):
        for way, turn in turns.items():
            medians[way].append(float(np.median(turn())) / 1e3)
    python.close()
    key, how = (f"{name}_50hz", f"{name}, 50 Hz") if rate_hz else (name, f"{name}, closed loop")
    ratios = [mine / theirs for mine, theirs in zip(medians["c"], medians["python"], strict=True)]
    below = float(np.median(medians["floor"])) if floor is not None else None
    return [
        Figure(f"{key}_us", f"round trip, {how}", float(np.median(medians["c"])), "us", below, "C, 1 copy, sleep"),
        Figure(f"{key}_ratio", f"to the client in Python, {how}", float(np.median(ratios)), "x", 1.0, "Python"),
        Figure(
            f"{key}_slower", f"rounds of {ROUNDS} in which Python was faster, {how}", sum(r > 1 for r in ratios), ""
        ),
    ]


if __name__ == "__main__":
    main(TITLE, measure)
