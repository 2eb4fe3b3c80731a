"""Gives engines a `FakeDevice` for CUDA: on the path of a daemon that a test starts, and of nothing else."""

import importlib.util
import json
import os
import sys
from pathlib import Path

if "shmserve.daemon.engine.main" in sys.orig_argv:
    from shmserve.daemon.engine.device import cuda

    # By its file: an engine must not be able to import what only tests can.
    spec = importlib.util.spec_from_file_location("fake_device", Path(__file__).parents[1] / "fake_device.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = json.loads(os.environ["FAKE_DEVICE"])

    def open_fake(device):  # type: ignore
        cuda.__dict__["fake"] = module.FakeDevice(**settings)  # for policies that make trouble
        return cuda.__dict__["fake"]

    cuda.CudaDevice = open_fake  # type: ignore
