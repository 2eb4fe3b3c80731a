"""Supervision of the engines: one serves, dead and stuck ones are replaced, and everybody reads one status.

`Supervisor` owns the service's state and decides; `EnginePool` starts, swaps and stops the engine processes; `EngineWatchdog`
ends a stuck one; `SpareEngine` keeps a process for the next engine; `ActivityMonitor` remembers the last
minute; `ReadinessNotifier` reports to systemd.
"""

from __future__ import annotations

from .deployment import Deployment, EngineStartError
from .engine_pool import EnginePool
from .engine_process import EngineProcess
from .engine_watchdog import EngineWatchdog
from .readiness import ReadinessNotifier
from .recent_activity import ActivityMonitor, RecentActivity
from .spare_engine import SpareState, SpareStatus
from .status import ClientStatus, ServiceState, ServiceStatus
from .supervisor import Supervisor

__all__ = [
    "ActivityMonitor",
    "ClientStatus",
    "Deployment",
    "EnginePool",
    "EngineProcess",
    "EngineStartError",
    "EngineWatchdog",
    "ReadinessNotifier",
    "RecentActivity",
    "ServiceState",
    "ServiceStatus",
    "SpareState",
    "SpareStatus",
    "Supervisor",
]
