"""Store of a service's model versions: ingest of packages, metadata of versions, and the current one."""

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
