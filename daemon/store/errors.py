"""Errors of ingesting a package and of using a kept version.

    ModelPackageError                 (core)
      ArchiveRefused                  the archive or directory is not an acceptable package
      SignatureRefused                (core) no trusted key signed the package
      DowngradeRefused                the package is signed, but of an older release than one that was served
      VersionDamaged                  the files of a kept version differ from the stored ones
      VersionUnknown (LookupError)    no kept version has this name
    ShmServeError                     (core)
      StoreUnavailable (OSError)      the state directory cannot be written, is full, or is another daemon's

After each of them the kept versions and the served one are unchanged.
"""

from __future__ import annotations

import errno

from shmserve.errors import ModelPackageError, ShmServeError


class ArchiveRefused(ModelPackageError):
    """The archive or directory is not an acceptable package; nothing of it was kept."""


class DowngradeRefused(ModelPackageError):
    """The package's release is older than one that was served, and signatures are required; nothing of it was kept."""


class VersionDamaged(ModelPackageError):
    """The files of a kept version differ from the stored ones: it must not be served."""


class VersionUnknown(ModelPackageError, LookupError):
    """No kept version has this name, or several have."""


class StoreUnavailable(ShmServeError, OSError):
    """The state directory cannot be used; the served version is unchanged."""


def unavailable(error: OSError, reason: str) -> StoreUnavailable:
    """Return the StoreUnavailable for an OSError of the state directory."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room, or keep fewer versions (keep_versions)" if full else "check the state directory"
    return StoreUnavailable(f"the state directory cannot be written: {reason}; {remedy}")
