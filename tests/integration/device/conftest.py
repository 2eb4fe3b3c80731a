"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Made, Model
from tests.support.fake_device import FakeDevice


@pytest.fixture
def make() -> Iterator[Made]:
    engines: list[DeviceEngine] = []

    def make(**settings: Any) -> DeviceEngine:
        fake = {name: settings.pop(name) for name in ("memory_limit", "memory_total") if name in settings}
        engines.append(DeviceEngine(Model(), device=FakeDevice(**fake), **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.device.poison = None
        engine.close()


@pytest.fixture
def engine(make: Made) -> DeviceEngine:
    return make()
