"""Store of model versions: ingest of packages, their metadata, and which version is current.

A package comes in through a process under limits, is checked as a whole, and appears by one rename; its name is the
digest of its content. So whatever moment the daemon is killed at, the old state is found or the new one.
"""

from __future__ import annotations

from .errors import ArchiveRefused, DowngradeRefused, StoreUnavailable, VersionDamaged, VersionUnknown
from .ingest import BytesIngested
from .limits import PackageLimits
from .signature_policy import SignaturePolicy
from .store import LEAST_KEPT, Store
from .stored_version import StoredVersion

__all__ = [
    "LEAST_KEPT",
    "ArchiveRefused",
    "BytesIngested",
    "DowngradeRefused",
    "PackageLimits",
    "SignaturePolicy",
    "Store",
    "StoreUnavailable",
    "StoredVersion",
    "VersionDamaged",
    "VersionUnknown",
]
