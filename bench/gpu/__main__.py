"""Command `python -m bench.gpu [--seconds S] [--copies N] [--models NAME ...] [--results FOLDER]`: it measures, prints tables, and writes gpu-MACHINE.json."""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc
import torch

from bench.peers.machine import facts
from shmserve.backend import BACKEND
from shmserve.daemon.engine.device.cuda import CudaDevice
from shmserve.daemon.engine.device.tuning import measured_threshold

from . import copy, policies, round_trip, swap

_RESULTS = Path(__file__).parents[1] / "results"


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows with the same keys as Markdown."""
    keys = [key for key in rows[0] if not isinstance(rows[0][key], dict)]
    lines = [keys, ["---"] * len(keys), *[[str(row[key]) for key in keys] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--copies", type=int, default=200, help="of each size and way")
    parser.add_argument("--models", nargs="+", choices=policies.MODELS, default=[*policies.MODELS])
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of gpu-MACHINE.json")
    arguments = parser.parse_args()
    seconds: float = arguments.seconds
    if not torch.cuda.is_available():
        print(f"nothing measured: torch {torch.__version__} finds no GPU that it can use")
        return 1
    device = CudaDevice(torch.device("cuda"))
    found: dict[str, Any] = {
        "machine": facts(),
        "backend": BACKEND,
        "posix_ipc": getattr(posix_ipc, "__version__", "tests/support/without_packages"),
        "gpu": device.facts(),
        "threshold_bytes": measured_threshold(device),
        "small": policies.IS_SMALL,
    }
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(found["gpu"]["name"])).strip("-").lower()
    print(
        f"# {found['gpu']['name']}, {found['machine']['cpu']}, CUDA {found['gpu']['cuda']}, torch {torch.__version__}"
    )
    if policies.IS_SMALL:
        print(f"{policies.SMALL}=1: small images and models, whose figures mean nothing")
    print(f"register_bytes as measured: {found['threshold_bytes']}")
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "copies to the device": lambda: copy.measure(device, arguments.copies),
        "round trips": lambda: round_trip.measure(seconds, arguments.models),
        "a swap under load": lambda: swap.measure(seconds),
    }
    failed = []
    for part, measure in parts.items():
        try:
            rows = found[part] = measure()
        except Exception:  # noqa: BLE001  the other parts are measured
            traceback.print_exc()
            failed.append(part)
            found[part] = []
        else:
            print(f"\n## {part}\n\n{table(rows)}", flush=True)
        # After each part, so that the measurements are kept if this process ends.
        (arguments.results / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        print(f"not measured: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
