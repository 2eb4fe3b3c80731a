"""The two varlink interfaces: io.shmserve.Client for robots and io.shmserve.Admin for operators."""

from __future__ import annotations

from .admin import AdminService
from .client import ClientService

__all__ = ["AdminService", "ClientService"]
