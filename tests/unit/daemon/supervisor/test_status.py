"""Cases of the service's status: which states are settled, and that every state has its word."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmserve.daemon.supervisor.spare_engine import SpareState, SpareStatus
from shmserve.daemon.supervisor.status import EngineStatus, ServiceState, ServiceStatus

ENGINE = EngineStatus(
    pid=7, version="v", heartbeat_age_s=0.1, backend="native", memory_locked=None, priority=None, usage=None
)


def status(state: ServiceState, engine: EngineStatus | None) -> ServiceStatus:
    return ServiceStatus(
        name="t",
        transport="named",
        directory=Path("/run/t"),
        max_clients=4,
        uptime_s=1.0,
        state=state,
        error=None,
        ingest=None,
        is_recording=False,
        release_mismatch=None,
        restarts=0,
        engine=engine,
        standby_version=None,
        spare=SpareStatus(SpareState.OFF, None, None, None, 0),
        loaded_standby=("off", None),
        model=None,
        clients=(),
        counters={},
        latency={},
    )


@pytest.mark.parametrize(
    ("state", "engine", "is_settled"),
    [
        (ServiceState.STARTING, None, False),
        (ServiceState.LOADING, None, False),
        (ServiceState.WARMING, None, False),
        (ServiceState.READY, ENGINE, True),
        (ServiceState.UPDATING, ENGINE, True),
        (ServiceState.UPDATING, None, False),
        (ServiceState.DRAINING, None, True),
        (ServiceState.FAILED, None, True),
    ],
)
def test_a_status_is_settled_once_a_model_serves_or_none_will(
    state: ServiceState, engine: EngineStatus | None, is_settled: bool
) -> None:
    assert status(state, engine).is_settled == is_settled


def test_the_interfaces_name_the_states_by_these_words() -> None:
    words = [state.value for state in ServiceState]

    assert words == ["starting", "loading", "warming", "ready", "updating", "draining", "failed"]
