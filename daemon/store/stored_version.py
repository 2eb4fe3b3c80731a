"""One version that is kept: where its files are, and what is known of it."""

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
    """What was known when this was asked for; the store has the present state."""

    digest: str  # content address of the package, 64 hex digits
    path: Path
    source: str  # what the sender called it
    uid: int | None  # of the sender; None if the record was lost
    note: str
    added_s: float  # Unix time, when it was sent last
    files: tuple[PackageFile, ...] | None  # None if the record was lost
    #: Order of coming in (last sent) and of becoming current (0: never was). Robots boot with clocks that are wrong.
    added_seq: int = 0
    activated_seq: int = 0
    #: What the package says (model.toml); 0: nothing.
    release: int = 0
    #: What the service learnt of it: device, requests served, ...; anything that JSON has a word for.
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """How it is named everywhere."""
        return self.digest[:VERSION_DIGITS]

    @property
    def size_bytes(self) -> int | None:
        """Of all files together."""
        return None if self.files is None else sum(file.size for file in self.files)

    def with_facts(self, facts: dict[str, Any]) -> StoredVersion:
        """With these added; a fact that is None is forgotten. Raises TypeError or ValueError for what is no JSON."""
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
        """Raises KeyError, TypeError or ValueError for what `to_json` did not write."""
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
        """For a version whose record was lost: its files say what it is, all the same."""
        return cls(digest, path, source="?", uid=None, note="", added_s=_modified_s(path), files=None)


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
