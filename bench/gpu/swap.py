"""Update under load: the reported pause, and the longest round trip of a client."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from . import policies
from .round_trip import asked, service


def measure(seconds: float) -> list[dict[str, Any]]:
    """Replace the convolution by itself while two clients send requests."""
    image = np.zeros((480, 640, 3), np.uint8)
    with service("convolution") as served:
        clients = [served.client() for _ in range(2)]
        taken: list[list[float]] = [[], []]
        threads = [
            threading.Thread(target=asked, args=(client, image, max(seconds, 20.0), found))
            for client, found in zip(clients, taken, strict=True)
        ]
        for thread in threads:
            thread.start()
        package = served.package("next", Path(policies.__file__))
        said, error = served.admin("update-model", str(package), "--json").communicate()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    result = json.loads(said.splitlines()[-1]) if said else {"error": error.decode()}
    found = [each for one in taken for each in one]
    return [
        {"pause_ms": result.get("pause_ms"), "longest_us": round(max(found), 1), "requests": len(found), "said": result}
    ]
