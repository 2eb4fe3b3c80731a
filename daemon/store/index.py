"""Which versions are kept, which of them is current, and which was before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shmserve.package_files import shown

from .errors import VersionUnknown
from .stored_version import StoredVersion

_CANDIDATES_SHOWN = 10


@dataclass(frozen=True)
class Index:
    """Replaced as a whole, so that whoever looks needs no lock. `current` and `previous` are digests.

    `release`: the highest that was current, or that an operator has gone back to on purpose.
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
        """Every version, the last sent first."""
        return sorted(self.versions.values(), key=lambda version: version.added_seq, reverse=True)

    def by_activation(self) -> list[StoredVersion]:
        """What was ever current: the current one, the previous one, then the others, the last first."""
        others = sorted(self.versions.values(), key=lambda version: version.activated_seq, reverse=True)
        order = dict.fromkeys(
            [self.current, self.previous, *(version.digest for version in others if version.activated_seq)]
        )
        return [self.versions[digest] for digest in order if digest is not None and digest in self.versions]

    def resolve(self, name: str) -> StoredVersion:
        """The version whose digest begins with `name`; raises VersionUnknown naming the candidates."""
        prefix = name.strip().lower()
        versions = self.newest_first()
        found = [version for version in versions if prefix and version.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        candidates = ", ".join(version.version for version in (found or versions)[:_CANDIDATES_SHOWN])
        if found:
            raise VersionUnknown(f"{shown(name)} is the beginning of {len(found)} versions: {candidates}")
        raise VersionUnknown(f"no kept version is named {shown(name)}; kept are {candidates or 'none'}")
