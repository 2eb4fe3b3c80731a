"""Clients and their channels: access, memory limits, bans.

Every policy about clients is a module here and takes the clock as an argument: access_control (peer credentials against the
settings), attach_rate_limit (a token bucket per user), bans (a ban list with expiry), device_areas (limits on GPU memory),
engine_deaths (evidence against a client whose requests crash engines) and time_share (of the supervisor). `Leases` applies them
to the channels.
"""

from __future__ import annotations

from .access_control import AccessPolicy
from .attach_rate_limit import AttachRateLimit
from .channel_integrity import IntegrityCheck
from .device_areas import AreaUnavailable, DeviceArea
from .engine_deaths import CLEAR_S
from .leases import Lease, LeaseRefused, Leases, Wanted
from .shm_names import NameRegistry
from .time_share import TimeShare

__all__ = [
    "CLEAR_S",
    "AccessPolicy",
    "AreaUnavailable",
    "AttachRateLimit",
    "DeviceArea",
    "IntegrityCheck",
    "Lease",
    "LeaseRefused",
    "Leases",
    "NameRegistry",
    "TimeShare",
    "Wanted",
]
