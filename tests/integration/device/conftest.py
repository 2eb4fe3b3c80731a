"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Made, Model
from tests.support.late_device import LateDevice


@pytest.fixture
def make() -> Iterator[Made]:
    engines: list[DeviceEngine] = []

    def make(**settings: Any) -> DeviceEngine:
        late = {name: settings.pop(name) for name in ("memory_limit", "memory_total", "devices") if name in settings}
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
