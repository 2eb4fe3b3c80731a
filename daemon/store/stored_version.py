"""A kept version: the place of its files, and its metadata."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shmserve.package_files import VERSION_DIGITS, PackageFile

FORMAT = 1


@dataclass(frozen=True)
class StoredVersion:
    """A snapshot of a version's metadata; the store has the present state."""

    digest: str  # content address of the package, 64 hex digits
    path: Path
    source: str  # the sender's name for it
    uid: int | None  # of the sender; None if the record was lost
    note: str
    added_s: float  # Unix time, when it was sent last
    files: tuple[PackageFile, ...] | None  # None if the record was lost
    #: Order of ingest (when last sent) and of activation (0: never), because robots may boot with wrong clocks.
    added_seq: int = 0
    activated_seq: int = 0
    #: The release in model.toml; 0 without one.
    release: int = 0
    #: Values that the service has recorded: device, requests served and others, as JSON.
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Return the short name of the version: the first digits of its digest."""
        return self.digest[:VERSION_DIGITS]

    @property
    def size_bytes(self) -> int | None:
        """Return the size of all files together, or None if the record was lost."""
        return None if self.files is None else sum(file.size for file in self.files)

    def with_facts(self, facts: dict[str, Any]) -> StoredVersion:
        """Return a copy with `facts` added; None removes a fact. Raises TypeError or ValueError for non-JSON values."""
        json.dumps(facts, allow_nan=False)
        merged = {key: value for key, value in {**self.facts, **facts}.items() if value is not None}
        return replace(self, facts=MappingProxyType(merged))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "source": self.source,
            "uid": self.uid,
            "note": self.note,
            "added_s": self.added_s,
            "added_seq": self.added_seq,
            "activated_seq": self.activated_seq,
            "release": self.release,
            "facts": dict(self.facts),
            "files": None if self.files is None else [asdict(file) for file in self.files],
        }

    @classmethod
    def from_json(cls, digest: str, path: Path, record: Any) -> StoredVersion:
        """Return the version of a record; raise KeyError, TypeError or ValueError if `to_json` did not write it."""
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, not {FORMAT}")
        files = record["files"]
        return cls(
            digest=digest,
            path=path,
            source=str(record["source"]),
            uid=None if record["uid"] is None else int(record["uid"]),
            note=str(record["note"]),
            added_s=float(record["added_s"]),
            files=None if files is None else tuple(PackageFile(**file) for file in files),
            added_seq=int(record["added_seq"]),
            activated_seq=int(record["activated_seq"]),
            release=int(record["release"]),
            facts=MappingProxyType(dict(record["facts"])),
        )

    @classmethod
    def without_record(cls, digest: str, path: Path) -> StoredVersion:
        """Return a version whose record was lost; its digest and files still identify it."""
        return cls(digest, path, source="?", uid=None, note="", added_s=_modified_s(path), files=None)


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
