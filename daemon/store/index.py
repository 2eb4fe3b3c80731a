"""Immutable index of the kept versions, with the current and the previous one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shmserve.package_files import shown

from .errors import VersionUnknown
from .stored_version import StoredVersion

_CANDIDATES_SHOWN = 10


@dataclass(frozen=True)
class Index:
    """Index of the store, replaced as a whole, so that readers need no lock. `current` and `previous` are digests.

    `release` is the highest release that was current, or the one that an operator deliberately went back to.
    """

    versions: Mapping[str, StoredVersion] = field(default_factory=dict)
    current: str | None = None
    previous: str | None = None
    release: int = 0

    def with_version(self, version: StoredVersion) -> Index:
        return replace(self, versions={**self.versions, version.digest: version})

    def without_version(self, digest: str) -> Index:
        return replace(self, versions={key: version for key, version in self.versions.items() if key != digest})

    def newest_first(self) -> list[StoredVersion]:
        """Return every version, the last sent first."""
        return sorted(self.versions.values(), key=lambda version: version.added_seq, reverse=True)

    def by_activation(self) -> list[StoredVersion]:
        """Return every version that was ever current: the current, the previous, then the others, the last first."""
        others = sorted(self.versions.values(), key=lambda version: version.activated_seq, reverse=True)
        order = dict.fromkeys(
            [self.current, self.previous, *(version.digest for version in others if version.activated_seq)]
        )
        return [self.versions[digest] for digest in order if digest is not None and digest in self.versions]

    def resolve(self, name: str) -> StoredVersion:
        """Return the version whose digest begins with `name`; raise VersionUnknown with the candidates."""
        prefix = name.strip().lower()
        versions = self.newest_first()
        found = [version for version in versions if prefix and version.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        candidates = ", ".join(version.version for version in (found or versions)[:_CANDIDATES_SHOWN])
        if found:
            raise VersionUnknown(f"{shown(name)} is the beginning of {len(found)} versions: {candidates}")
        raise VersionUnknown(f"no kept version is named {shown(name)}; kept are {candidates or 'none'}")
