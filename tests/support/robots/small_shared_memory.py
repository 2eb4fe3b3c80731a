"""Lives with a daemon in a /dev/shm of 12 MiB, which it may fill; prints what a client hears. Run it in a mount namespace."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import ServiceUnavailable
from tests.support.daemon_process import Daemon

said: dict[str, object] = {}
daemon = Daemon("echo")
try:
    with daemon.start().client(slots=2, max_retries=0) as client:
        said["small"] = client.infer({"x": 1})["x"]
        names = daemon.names_in_shm()
        try:
            client.infer({"x": np.zeros(8 << 20, np.uint8)})
        except ServiceUnavailable as error:
            said["grown"] = str(error)
        said["names"] = daemon.names_in_shm() == names
        said["small again"] = client.infer({"x": 2})["x"]
        said["fits"] = client.infer({"x": np.full(1 << 20, 7, np.uint8)})["x"].sum().item()
        try:
            daemon.client(slots=16, max_retries=0).infer({"x": np.zeros(1 << 19, np.uint8)})
        except ServiceUnavailable as error:
            said["another"] = str(error)
        said["still"] = client.infer({"x": 3})["x"]
finally:
    daemon.dismiss()
print(json.dumps(said))
