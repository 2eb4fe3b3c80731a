"""Errors of packages on their way in, and of versions that are kept.

    ModelPackageError                 (core)
      ArchiveRefused                  the package or archive cannot be taken
      SignatureRefused                (core) not what a holder of a trusted key signed
      DowngradeRefused                signed, but an older release than what was served
      VersionDamaged                  a kept version is not what was stored
      VersionUnknown (LookupError)    no kept version is named so
    ShmServeError                     (core)
      StoreUnavailable (OSError)      the state directory cannot be written, is full, or is another daemon's

Each leaves what is kept and what is served as it was.
"""

from __future__ import annotations

import errno

from shmserve.errors import ModelPackageError, ShmServeError


class ArchiveRefused(ModelPackageError):
    """The package or archive cannot be taken; nothing of it was kept."""


class DowngradeRefused(ModelPackageError):
    """An older release than one that was served, where only signed packages are taken; nothing of it was kept."""


class VersionDamaged(ModelPackageError):
    """The files of a kept version are not those that were stored: it must not be served."""


class VersionUnknown(ModelPackageError, LookupError):
    """No kept version has this name, or more than one has."""


class StoreUnavailable(ShmServeError, OSError):
    """The state directory cannot be used; the served version stays as it was."""


def unavailable(error: OSError, reason: str) -> StoreUnavailable:
    """The StoreUnavailable for an OSError of the state directory."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room, or keep fewer versions (keep_versions)" if full else "see to the state directory"
    return StoreUnavailable(f"the state directory cannot be written: {reason}; {remedy}")
