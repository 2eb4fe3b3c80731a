"""GPU of the served model: memory and utilisation as the driver's library (NVML) reports them, where it can be had.

The daemon does not load the driver's library: a fault in it would end the service. This command may.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .quantities import memory, percent


def gpu_line(status: Mapping[str, Any]) -> str | None:
    """Return a line about the GPU of the served model; None if it runs on the processor."""
    model, engine = status["model"], status["engine"]
    if model is None or engine is None or not model["device"].startswith("cuda"):
        return None
    try:
        used = gpu_use(importlib.import_module("pynvml"), engine["pid"])
    except ImportError:
        used = None
    return gpu_text(model.get("gpu") or {}, used)


def gpu_use(nvml: Any, pid: int) -> dict[str, Any] | None:
    """Return the use of the GPU on which this process computes, or of the only GPU; None if NVML does not report it.

    In a container NVML may report the processes by numbers of the host, and none of them is found.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        for handle in handles:
            for process in _found(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ():
                if process.pid == pid:
                    return _use(nvml, handle, process.usedGpuMemory)
        return _use(nvml, handles[0], None) if len(handles) == 1 else None
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def gpu_text(facts: Mapping[str, Any], used: Mapping[str, Any] | None) -> str:
    """Return what is known of a GPU; `facts` are the engine's own, from the load of its model.

    >>> facts = {"name": "NVIDIA H200", "memory_bytes": 150 << 30, "model_bytes": 900 << 20}
    >>> gpu_text(facts, None)
    'NVIDIA H200, the model took 900 MiB of 150.0 GiB at its load'
    >>> gpu_text(facts, {"engine_bytes": 2 << 30, "used_bytes": 3 << 30, "total_bytes": 150 << 30, "busy_share": 0.37})
    'NVIDIA H200, the engine has 2.0 GiB, all programs 3.0 of 150.0 GiB, computing 37 % of the time'
    """
    words = [facts.get("name", "GPU")]
    if used is None or used["used_bytes"] is None:
        if facts.get("model_bytes") and facts.get("memory_bytes"):
            words.append(
                f"the model took {memory(facts['model_bytes'])} of {memory(facts['memory_bytes'])} at its load"
            )
    else:
        if used["engine_bytes"] is not None:
            words.append(f"the engine has {memory(used['engine_bytes'])}")
        words.append(f"all programs {used['used_bytes'] / (1 << 30):.1f} of {memory(used['total_bytes'])}")
    if used is not None and used["busy_share"] is not None:
        words.append(f"computing {percent(used['busy_share'])} of the time")
    return ", ".join(words)


def _use(nvml: Any, handle: Any, engine_bytes: int | None) -> dict[str, Any]:
    room = _found(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _found(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    return {
        "engine_bytes": engine_bytes,
        "used_bytes": None if room is None else room.used,
        "total_bytes": None if room is None else room.total,
        "busy_share": None if rates is None else rates.gpu / 100,
    }


def _found(nvml: Any, ask: Any, handle: Any) -> Any:
    """Return the answer; None for what this GPU does not report."""
    try:
        return ask(handle)
    except nvml.NVMLError:
        return None
