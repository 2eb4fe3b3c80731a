"""The model versions that a service keeps: how a package gets in, what is known of it, which one is current."""

from __future__ import annotations

from .errors import ArchiveRefused, DowngradeRefused, StoreUnavailable, VersionDamaged, VersionUnknown
from .limits import Limits
from .receive import Progress
from .signature_policy import Trust
from .store import LEAST_KEPT, Store
from .stored_version import StoredVersion

__all__ = [
    "LEAST_KEPT",
    "ArchiveRefused",
    "DowngradeRefused",
    "Limits",
    "Progress",
    "Store",
    "StoreUnavailable",
    "StoredVersion",
    "Trust",
    "VersionDamaged",
    "VersionUnknown",
]
