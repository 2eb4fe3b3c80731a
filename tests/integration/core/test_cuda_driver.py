"""The driver by ctypes: its declarations against cuda.h, and its calls on a driver without a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve import cuda_driver
from shmserve.cuda_driver import FUNCTIONS, CudaError, driver
from tests.support import late_driver
from tests.support.late_driver import GpuArray, loaded

HEADER = Path("/usr/local/cuda/include/cuda.h")
STRUCTURES = {
    name: kind
    for name, kind in vars(cuda_driver).items()
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and name != "Structure"
}


def _parameters(header: str, name: str) -> list[str]:
    """The types of a function's parameters, as the header has them."""
    found = re.search(rf"^CUresult CUDAAPI {name}\(([^)]*)\);", header, re.MULTILINE)
    assert found is not None, name
    return [re.sub(r"\b\w+$", "", each.strip()).strip() for each in found[1].split(",")]


@pytest.mark.skipif(not HEADER.exists(), reason="CUDA's headers are not installed")
def test_the_declarations_are_those_of_the_header(tmp_path: Path) -> None:
    header = HEADER.read_text()
    constants = {name: of for name, of in vars(cuda_driver).items() if re.match("CUD?A?_", name) and type(of) is int}
    lines, expected = [], []

    def ask(format_: str, value: str, answer: object) -> None:
        lines.append(f'printf("{format_}\\n", {value});')
        expected.append(str(answer))

    for name, value in constants.items():
        ask("%lld", f"(long long){name}", value)
    for name, kind in STRUCTURES.items():
        owner = "((CUmemAllocationProp *)0)->allocFlags" if name == "CUmemAllocationFlags" else f"*({name} *)0"
        ask("%zu", f"sizeof({owner})", ctypes.sizeof(kind))
        for field, *_ in kind._fields_:
            ask("%zu", f"(size_t)&({owner}).{field} - (size_t)&({owner})", getattr(kind, field).offset)
            ask("%zu", f"sizeof(({owner}).{field})", getattr(kind, field).size)
    for name, (symbol, types) in FUNCTIONS.items():
        ask("%s", f"TEXT({name})", symbol)
        parameters = _parameters(header, name)
        assert len(parameters) == len(types), name
        for parameter, kind in zip(parameters, types, strict=True):
            ask("%zu", f"sizeof({parameter})", ctypes.sizeof(kind))
    source = tmp_path / "header.c"
    body = "\n    ".join(lines)
    source.write_text(
        f"#include <cuda.h>\n#include <stdio.h>\n#define NAME(name) #name\n#define TEXT(name) NAME(name)\n"
        f"int main(void)\n{{\n    {body}\n    return 0;\n}}\n"
    )
    program = tmp_path / "header"
    subprocess.run(["gcc", f"-I{HEADER.parent}", str(source), "-o", str(program)], check=True)

    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout.split() == expected


@pytest.fixture
def late() -> ctypes.CDLL:
    return loaded()


def test_shared_memory_has_the_same_bytes_in_two_mappings(late: ctypes.CDLL) -> None:
    gpu, before = driver(), loaded().late_mapped_bytes()
    descriptor, size = gpu.create(3_000_000, 0)
    one, other = gpu.map(descriptor, size, 0), gpu.map(descriptor, size, 0)
    os.close(descriptor)

    ctypes.memset(one.address + 12, 7, 3)

    assert size == 4 << 20
    assert ctypes.string_at(other.address + 10, 6) == b"\xab\xab\7\7\7\xab"
    assert gpu.device_of(one.address + size - 1) == 0
    for mapped in (one, other, one):
        mapped.close()
    assert late.late_mapped_bytes() == before


def test_a_copy_is_there_once_its_event_was_waited_for(late: ctypes.CDLL) -> None:
    gpu, source, target = driver(), GpuArray(np.arange(8, dtype=np.uint8)), GpuArray(np.zeros(8, np.uint8))
    with gpu.current(0):
        stream, event = gpu.stream(), gpu.event()
        gpu.copy(target._address, source._address, 8, stream)
        gpu.record(event, stream)
        early = target.host.tolist()
        gpu.wait(event)

    assert early == [0xAB] * 8
    assert target.host.tolist() == list(range(8))


def test_an_error_has_the_name_of_the_call_and_cudas_name(late: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CudaError, match=r"^cuPointerGetAttribute: CUDA_ERROR_INVALID_VALUE$"):
        driver().device_of(12345)
    monkeypatch.setenv("LATE_DRIVER_FAIL", "cuMemCreate=2")
    with pytest.raises(CudaError, match=r"^cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY$") as short:
        driver().create(1, 0)
    assert short.value.code == cuda_driver.CUDA_ERROR_OUT_OF_MEMORY


@pytest.mark.parametrize(
    "call", ["cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemImportFromShareableHandle"]
)
def test_a_mapping_that_fails_leaves_nothing(call: str, late: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    before = late.late_mapped_bytes(), len(os.listdir("/proc/self/fd"))
    descriptor, size = driver().create(1, 0)
    monkeypatch.setenv("LATE_DRIVER_FAIL", f"{call}=1")

    with pytest.raises(CudaError, match=call):
        driver().map(descriptor, size, 0)

    os.close(descriptor)
    assert (late.late_mapped_bytes(), len(os.listdir("/proc/self/fd"))) == before


def test_a_context_that_was_lost_does_not_keep_a_mapping_from_being_closed(
    late: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor, size = driver().create(1, 0)
    mapped = driver().map(descriptor, size, 0)
    os.close(descriptor)
    monkeypatch.setenv("LATE_DRIVER_FAIL", "cuMemUnmap=700")

    mapped.close()

    monkeypatch.delenv("LATE_DRIVER_FAIL")
    driver().unmap(mapped.address, size, 0)


def test_a_gpu_that_cannot_share_says_so(late: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATE_DRIVER_SHARES", "0")

    with pytest.raises(CudaError, match="cannot share memory by file descriptors"):
        driver().create(1, 0)


@pytest.mark.parametrize(("path", "reason"), [("libnothing.so.1", "install NVIDIA's driver"), ("libm.so.6", "too old")])
def test_a_missing_or_old_driver_is_an_error_with_a_remedy(
    path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", path)

    with pytest.raises(CudaError, match=reason):
        cuda_driver.Driver()


def test_devices_are_counted_as_this_process_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from shmserve.cuda_driver import driver as d; print(d().device_count(), d().uuid(0))"
    seen: Any = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **late_driver.environment(DEVICES=3, FIRST=1)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()

    assert seen == ["2", "11" * 16]
