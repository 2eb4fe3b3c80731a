"""Prints what a client has imported after a request with arrays."""

import json
import sys

import numpy as np

from shmserve.client import ShmClient

name, runtime_dir = sys.argv[1:3]
with ShmClient(name, runtime_dir=runtime_dir) as client:
    found = client.infer({"do": "mixed", "x": np.arange(3)})

kinds = {key: f"{type(value).__module__}.{type(value).__qualname__}" for key, value in sorted(found.items())}
print(json.dumps({"kinds": kinds, "modules": sorted({module.partition(".")[0] for module in sys.modules})}))
