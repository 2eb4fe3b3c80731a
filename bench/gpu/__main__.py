"""Command `python -m bench.gpu [--seconds S]`: it measures, prints tables, and writes bench/results/gpu-MACHINE.json."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.peers.machine import facts
from shmserve.daemon.engine.device.cuda import CudaDevice
from shmserve.daemon.engine.device.tuning import measured_threshold

from . import copy, round_trip, swap

_RESULTS = Path(__file__).parents[1] / "results"


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows with the same keys as Markdown."""
    keys = [key for key in rows[0] if not isinstance(rows[0][key], dict)]
    lines = [keys, ["---"] * len(keys), *[[str(row[key]) for key in keys] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    seconds: float = parser.parse_args().seconds
    if not torch.cuda.is_available():
        print(f"nothing measured: torch {torch.__version__} finds no GPU that it can use")
        return 1
    device = CudaDevice(torch.device("cuda"))
    found: dict[str, Any] = {"machine": facts(), "gpu": device.facts(), "threshold_bytes": measured_threshold(device)}
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(found["gpu"]["name"])).strip("-").lower()
    print(
        f"# {found['gpu']['name']}, {found['machine']['cpu']}, CUDA {found['gpu']['cuda']}, torch {torch.__version__}"
    )
    print(f"register_bytes as measured: {found['threshold_bytes']}")
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "copies to the device": lambda: copy.measure(device),
        "round trips": lambda: round_trip.measure(seconds),
        "a swap under load": lambda: swap.measure(seconds),
    }
    for part, measure in parts.items():
        rows = found[part] = measure()
        print(f"\n## {part}\n\n{table(rows)}", flush=True)
        # After each part, so that the measurements are kept if a later one fails.
        (_RESULTS / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
