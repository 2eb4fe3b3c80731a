"""The line about the GPU, from a stand-in for NVML (there is none on a machine without a GPU)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from shmserve.client.cli import gpu

GIB = 1 << 30


class NVMLError(Exception):
    pass


class Nvml:
    """NVML of two GPUs; `pids` compute on the second. What is in `unknown` raises, as for a GPU that does not report it."""

    NVMLError = NVMLError

    def __init__(self, pids: tuple[int, ...] = (), unknown: tuple[str, ...] = (), gpus: int = 2) -> None:
        self.pids, self.unknown, self.gpus, self.opened = pids, unknown, gpus, 0

    def nvmlInit(self) -> None:
        self._known("init")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        self._known("processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=2 * GIB) for pid in (self.pids if handle == 1 else ())]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._known("memory")
        return SimpleNamespace(used=(handle + 3) * GIB, total=80 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._known("utilisation")
        return SimpleNamespace(gpu=37)

    def _known(self, what: str) -> None:
        if what in self.unknown:
            raise NVMLError(what)


def status(device: str = "cuda:1") -> dict[str, Any]:
    facts = {"name": "GPU X", "memory_bytes": 80 * GIB, "model_bytes": GIB}
    return {"model": {"device": device, "gpu": facts}, "engine": {"pid": 7}}


@pytest.mark.parametrize(
    ("nvml", "line"),
    [
        (Nvml((5, 7)), "GPU X, the engine has 2.0 GiB, all programs 4.0 of 80.0 GiB, computing 37 % of the time"),
        (Nvml((7,), ("utilisation",)), "GPU X, the engine has 2.0 GiB, all programs 4.0 of 80.0 GiB"),
        (Nvml((7,), ("memory",)), "GPU X, the model took 1.0 GiB of 80.0 GiB at its load, computing 37 % of the time"),
        (Nvml((5,)), "GPU X, the model took 1.0 GiB of 80.0 GiB at its load"),
        (Nvml(unknown=("processes",), gpus=1), "GPU X, all programs 3.0 of 80.0 GiB, computing 37 % of the time"),
        (Nvml(unknown=("init",)), "GPU X, the model took 1.0 GiB of 80.0 GiB at its load"),
    ],
)
def test_a_gpu_is_described_by_what_its_driver_reports(monkeypatch: pytest.MonkeyPatch, nvml: Nvml, line: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    assert gpu.gpu_line(status()) == line
    assert nvml.opened == 0


def test_without_nvml_only_the_engine_s_own_figures_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert gpu.gpu_line(status()) == "GPU X, the model took 1.0 GiB of 80.0 GiB at its load"


def test_a_model_on_the_processor_has_no_line() -> None:
    assert gpu.gpu_line(status("cpu")) is None
    assert gpu.gpu_line({"model": None, "engine": None}) is None
