"""Checks of a GPU: driver, PyTorch's build, and the state that an idle GPU is in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .finding import Finding, Needs, ok, problem, warning

#: Fields for `nvidia-smi --query-gpu=`, in the order in which `read_gpus` takes them.
GPU_FIELDS = ("name", "persistence_mode", "clocks.current.sm", "clocks.max.sm")
_INSTALL = "install one built for CUDA (https://pytorch.org/get-started/locally) into the daemon's environment"


@dataclass(frozen=True)
class Torch:
    """PyTorch of one environment, as its file version.py states it."""

    version: str
    #: The CUDA release that it is built for; None: for the CPU only, or for ROCm.
    cuda: str | None
    hip: str | None = None

    def __str__(self) -> str:
        built = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "the CPU only"
        return f"PyTorch {self.version}, built for {built}"


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver. `cuda` is the newest CUDA release that libcuda supports, None if libcuda cannot be loaded."""

    version: str
    cuda: tuple[int, int] | None
    #: Whether the device node of unified memory exists, without which CUDA does not begin.
    has_uvm: bool = True


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it; a clock is None where it reports none."""

    name: str
    is_persistent: bool | None
    clock_mhz: int | None
    most_mhz: int | None


def read_torch(text: str) -> Torch | None:
    """Return what torch/version.py states, without importing torch.

    >>> read_torch("__version__ = '2.13.0+cu130'\\ncuda: Optional[str] = '13.0'\\nhip: Optional[str] = None\\n")
    Torch(version='2.13.0+cu130', cuda='13.0', hip=None)
    """
    facts = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *(?:'([^'\n]*)')?", text, re.MULTILINE))
    version = facts.get("__version__")
    return Torch(version, facts.get("cuda") or None, facts.get("hip") or None) if version else None


def driver_version(text: str) -> str:
    """Return the release in the text of /proc/driver/nvidia/version.

    >>> driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\\n")
    '570.86.15'
    """
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text.partition("\n")[0].partition("Module")[2] or text)
    return found[1] if found else "of an unknown release"


def read_gpus(text: str) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`.

    >>> read_gpus("NVIDIA H200, Enabled, 345, 1980\\n")
    [Gpu(name='NVIDIA H200', is_persistent=True, clock_mhz=345, most_mhz=1980)]
    """
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(GPU_FIELDS):
            persistent = {"Enabled": True, "Disabled": False}.get(cells[1])
            clocks = [int(cell) if cell.isdigit() else None for cell in cells[2:]]
            gpus.append(Gpu(cells[0], persistent, *clocks))
    return gpus


def check_torch(torch: Torch | None, driver: Driver | None, needs: Needs) -> Finding:
    """Judge PyTorch's build against the driver and the service's device."""
    if torch is None:
        return problem("PyTorch", "not installed in this environment", "pip install 'shmserve[daemon]'")
    if torch.hip is not None:
        return ok("PyTorch", str(torch))
    if torch.cuda is None:
        if needs.wants_gpu:
            return problem("PyTorch", f"{torch}, and device = {needs.device!r}", _INSTALL)
        if driver is not None:
            return warning("PyTorch", f"{torch}, and this machine has a GPU", f"{_INSTALL}, and set device = 'cuda'")
        return ok("PyTorch", str(torch))
    if driver is None or driver.cuda is None:
        return ok("PyTorch", f"{torch}; without a driver it runs on the CPU")
    if driver.cuda[0] < int(torch.cuda.partition(".")[0]):
        return problem(
            "PyTorch",
            f"{torch}, and the driver supports CUDA {driver.cuda[0]}.{driver.cuda[1]} at most",
            "install a newer driver, or a PyTorch built for the driver's CUDA (https://pytorch.org/get-started/locally)",
        )
    return ok("PyTorch", str(torch))


def check_driver(driver: Driver | None, needs: Needs) -> Finding:
    """Judge the driver."""
    if driver is None:
        if needs.wants_gpu:
            return problem(
                "driver",
                f"no NVIDIA driver, and device = {needs.device!r}",
                "install the driver until nvidia-smi lists the GPU; in a container docker run --gpus all",
            )
        return ok("driver", "no NVIDIA driver: the CPU serves")
    if driver.cuda is None:
        return problem(
            "driver",
            f"NVIDIA {driver.version} is loaded, and libcuda.so.1 cannot be",
            "install the driver's libraries of the same release; in a container docker run --gpus all",
        )
    if not driver.has_uvm:
        return problem(
            "driver",
            f"NVIDIA {driver.version}, without /dev/nvidia-uvm: CUDA does not begin in a sandbox, which may not load it",
            "sudo modprobe nvidia-uvm; echo nvidia-uvm | sudo tee /etc/modules-load.d/nvidia-uvm.conf",
        )
    return ok("driver", f"NVIDIA {driver.version}, up to CUDA {driver.cuda[0]}.{driver.cuda[1]}")


def check_gpu(gpu: Gpu) -> Finding:
    """Judge the state of one GPU while it idles, as it does between two requests of a robot."""
    if gpu.is_persistent is False:
        return warning(
            "GPU",
            f"{gpu.name}: without persistence mode the driver leaves the GPU when no program uses it, and the next start waits "
            "for seconds",
            "sudo nvidia-smi -pm 1, or the service nvidia-persistenced",
        )
    if gpu.clock_mhz is not None and gpu.most_mhz is not None and 2 * gpu.clock_mhz < gpu.most_mhz:
        return warning(
            "GPU",
            f"{gpu.name} runs at {gpu.clock_mhz} of {gpu.most_mhz} MHz: an idle GPU lowers its clock, and a request after a "
            "pause begins slowly",
            f"sudo nvidia-smi -lgc {gpu.most_mhz} (undo: -rgc); it takes power and heat",
        )
    return ok("GPU", gpu.name)


def check_mps(is_running: bool) -> Finding:
    """Describe MPS, which is neither needed nor wrong."""
    if is_running:
        return ok("MPS", "on: programs share the GPU, and one that faults may take the engine's context with it")
    return ok(
        "MPS", "off: programs on one GPU take turns. If the robot's own programs use it too, MPS lets them run at once"
    )
