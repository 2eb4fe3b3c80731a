"""Fixtures of these tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon_process import POLICIES
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Made, Model, Record
from tests.support.late_device import LateDevice

#: Settings of the late GPU that `make` takes.
_OF_THE_GPU = (
    "memory_limit",
    "memory_total",
    "devices",
    "integrated",
    "registers",
    "uses_host_pointers",
    "maps_registered",
)


@pytest.fixture
def make() -> Iterator[Made]:
    engines: list[DeviceEngine] = []

    def make(**settings: Any) -> DeviceEngine:
        late = {name: settings.pop(name) for name in _OF_THE_GPU if name in settings}
        device = LateDevice(**late)
        device.gpus.runtime.began = settings.pop("began", device.gpus.runtime.began)
        engines.append(DeviceEngine(Model(), device=device, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.device.gpus.poison = None
        engine.close()


@pytest.fixture
def engine(make: Made) -> DeviceEngine:
    return make()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    engines: list[DeviceEngine] = []

    def record(line: str, *, register_bytes: int | None = None, **late: Any) -> DeviceEngine:
        package = shutil.copytree(POLICIES / "recordable", tmp_path / str(len(engines)))
        text = (package / "policy.py").read_text().replace("# (a test puts a line here)", line)
        (package / "policy.py").write_text(text)
        device = LateDevice(**late)
        try:
            engines.append(DeviceEngine(package, device=device, register_bytes=register_bytes))
        except BaseException:
            device.close()
            raise
        return engines[-1]

    yield record
    for engine in reversed(engines):  # each puts back what it found
        engine.device.gpus.poison = None
        engine.close()
