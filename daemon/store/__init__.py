"""Store of a service's model versions: ingest of packages, metadata of versions, and the current one.

A name is imported when it is first asked for: the ingest worker, which lies in this package, needs few of them and an
operator waits for its start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_WHERE = {
    "LEAST_KEPT": "store",
    "ArchiveRefused": "errors",
    "BytesIngested": "ingest",
    "DowngradeRefused": "errors",
    "PackageLimits": "limits",
    "SignaturePolicy": "signature_policy",
    "Store": "store",
    "StoreUnavailable": "errors",
    "StoredVersion": "stored_version",
    "VersionDamaged": "errors",
    "VersionUnknown": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    return value
