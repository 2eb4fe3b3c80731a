"""Update under load: the reported pause, and the longest round trip of a client."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bench.service import Service
from shmserve.client.cli.connection import AdminConnection
from shmserve.varlink import VarlinkError

from . import policies
from .round_trip import asked, service


def _updated(served: Service, package: Path) -> dict[str, Any]:
    """Update the model without shmserve-admin, which needs packages that a bare machine lacks."""
    folder = os.open(package, os.O_RDONLY)
    try:
        with AdminConnection("default", served.runtime_dir) as connection:
            for reply in connection.call_more("UpdateModel", {"name": package.name}, fd=folder):
                if reply["result"] is not None:
                    found: dict[str, Any] = reply["result"]
                    return found
    except VarlinkError as error:
        return {"error": str(error), **error.parameters}
    finally:
        os.close(folder)
    return {"error": "no result"}


def measure(seconds: float) -> list[dict[str, Any]]:
    """Replace the convolution by itself while two clients send requests."""
    image = np.zeros(policies.SHAPE, np.uint8)
    with service("convolution") as served:
        clients = [served.client() for _ in range(2)]
        taken: list[list[float]] = [[], []]
        threads = [
            threading.Thread(target=asked, args=(client, image, max(seconds * 7, 2.0), found))
            for client, found in zip(clients, taken, strict=True)
        ]
        for thread in threads:
            thread.start()
        package = served.package("next", Path(policies.__file__))
        result = _updated(served, package)
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    found = [each for one in taken for each in one]
    return [
        {"pause_ms": result.get("pause_ms"), "longest_us": round(max(found), 1), "requests": len(found), "said": result}
    ]
