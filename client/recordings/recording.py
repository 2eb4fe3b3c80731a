"""A file of requests and their answers: a tar whose members are JSON and safetensors, nothing that runs.

    recording.json                what was recorded, where and when
    requests/00000001.safetensors one request: its tensors, and all else as JSON in the header's metadata
    ...
    end.json                      how many, how many were left out, and why it ended

`tar -xf` and `safetensors.numpy.load_file` read it without shmserve.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, final

from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import RecordingError, RecordingTruncated
from .tree import from_json, to_json

FORMAT = 1
_BLOCK = 512
_FIRST, _LAST = "recording.json", "end.json"
#: Of a JSON member; the model's contract is the longest part.
_JSON_BYTES = 1 << 20
#: Of a safetensors header, as its own library limits it.
_HEADER_BYTES = 100_000_000
_END_OF_TAR = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class RequestFacts:
    """Facts of a request beside its trees."""

    number: int  # its place in the recording, from 1
    client: int  # the client's id, as `shmserve-admin clients` shows it
    lease: int  # counts the clients that were recorded; an id is used again when a client has left
    sequence: int  # the client's own count
    kind: str  # "infer" or "reset"
    status: str  # "ok", "failed" ..., or "unanswered": its engine died, or the recording ended before
    at_s: float  # when it was sent, since the recording began
    model_version: str | None
    queued_us: float | None
    staged_us: float | None
    infer_us: float | None
    copied_us: float | None
    error: str | None  # where it was not answered "ok"

    @property
    def service_us(self) -> float | None:
        """The time it took inside the service; None where it was not answered."""
        parts = (self.queued_us, self.staged_us, self.infer_us, self.copied_us)
        return None if None in parts else sum(part for part in parts if part is not None)


@dataclass(frozen=True)
class RecordedRequest:
    """One request: its observation, and the action that answered it (None where there was none)."""

    facts: RequestFacts
    observation: Any
    action: Any


@final
class RecordingWriter:
    """Writes a recording to a new file. `close` without `end` leaves one that readers report as cut off."""

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError: nothing is overwritten."""
        self._file: BinaryIO = path.open("xb", buffering=1 << 20)
        self._whole = 0
        self.requests = 0

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write what the recording is of."""
        self._member(_FIRST, _json({"format": FORMAT, **facts}))

    def add(self, facts: RequestFacts, observation: Any, action: Any) -> None:
        """Write one request; the trees may hold `Leaf`s for what is an array."""
        given, tensors = to_json(observation, "observation")
        gave, more = to_json(action, "action")
        tensors |= more
        metadata = {"request": asdict(facts), "observation": given, "action": gave}
        blob = save(tensors, {key: json.dumps(value, allow_nan=False) for key, value in metadata.items()})
        self._member(f"requests/{facts.number:08d}.safetensors", blob)
        self.requests += 1

    def end(self, facts: Mapping[str, Any]) -> None:
        """Write how it ended; what follows is a tar's end."""
        self._member(_LAST, _json({"requests": self.requests, **facts}))
        self._file.write(_END_OF_TAR)

    @property
    def size_bytes(self) -> int:
        return self._whole

    def _member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o644
        self._file.write(member.tobuf(tarfile.GNU_FORMAT))
        self._file.write(content)
        self._file.write(bytes(-len(content) % _BLOCK))
        self._whole += _BLOCK + len(content) + -len(content) % _BLOCK

    def close(self) -> None:
        """May be called twice; raises OSError if what was buffered cannot be written."""
        self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


@final
class Recording:
    """An open recording: `about`, `ending`, and its requests by iterating.

    With `partial` one that was cut off is read up to there, and `ending` is None. Raises RecordingTruncated,
    RecordingError, or OSError.
    """

    def __init__(self, path: str | os.PathLike[str], *, partial: bool = False) -> None:
        self.path = Path(path)
        self._file = self.path.open("rb")
        self._requests: list[tuple[int, int]] = []  # (offset, size) of each
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.about: dict[str, Any]
            self.ending: dict[str, Any] | None = None
            self._index(partial)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RecordedRequest]:
        for number in range(1, len(self) + 1):
            yield self.request(number)

    def request(self, number: int) -> RecordedRequest:
        """Read one request, by its number from 1."""
        offset, size = self._requests[number - 1]
        self._file.seek(offset)
        return self._request(number, self._file.read(size))

    def facts(self) -> Iterator[RequestFacts]:
        """The facts of each request; its arrays are not read."""
        for number, (offset, size) in enumerate(self._requests, 1):
            self._file.seek(offset)
            header_bytes = int.from_bytes(self._file.read(8), "little")
            if header_bytes > min(size - 8, _HEADER_BYTES):
                raise self._wrong(f"request {number} is not a safetensors file")
            yield self._facts(number, self._metadata(number, self._file.read(header_bytes)))

    def _index(self, partial: bool) -> None:
        """Find every member; the file's end must be where the recording ends."""
        name, offset, size = self._member(0, partial=False)
        if name != _FIRST:
            raise self._wrong(f"a recording begins with {_FIRST}, this begins with {name!r:.80}")
        self.about = self._document(_FIRST, offset, size)
        if self.about.get("format") != FORMAT:
            raise self._wrong(f"format {self.about.get('format')!r:.20}, this shmserve reads {FORMAT}: update it")
        while True:
            at = offset + size + -size % _BLOCK
            try:
                name, offset, size = self._member(at, partial=partial)
            except RecordingTruncated:
                if partial:
                    return
                raise
            if name == _LAST:
                self.ending = self._document(_LAST, offset, size)
                if self.ending.get("requests") != len(self._requests):
                    raise self._wrong(f"{len(self._requests)} requests, its end says {self.ending.get('requests')!r}")
                return
            if name != f"requests/{len(self._requests) + 1:08d}.safetensors":
                raise self._wrong(f"{name!r:.80} after {len(self._requests)} requests")
            self._requests.append((offset, size))

    def _member(self, at: int, *, partial: bool) -> tuple[str, int, int]:
        """The name of the member at `at`, and where its content lies."""
        self._file.seek(at)
        block = self._file.read(_BLOCK)
        if len(block) < _BLOCK or not any(block):
            raise self._cut(at)
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise self._wrong(f"no member of a tar at byte {at}") from error
        if not member.isreg() or member.size < 0:
            raise self._wrong(f"{member.name!r:.80} is not a plain file")
        if at + _BLOCK + member.size > self._size:
            raise self._cut(at)
        return member.name, at + _BLOCK, member.size

    def _document(self, name: str, offset: int, size: int) -> dict[str, Any]:
        if size > _JSON_BYTES:
            raise self._wrong(f"{name} of {size} bytes: {_JSON_BYTES} at most")
        self._file.seek(offset)
        return self._parsed(name, self._file.read(size))

    def _parsed(self, name: str, text: bytes | str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"{name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise self._wrong(f"{name} is not a JSON object")
        return found

    def _request(self, number: int, blob: bytes) -> RecordedRequest:
        name = f"request {number}"
        try:
            tensors = load(blob)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise self._wrong(f"{name} is not a safetensors file: {error}") from error
        # load() has checked the length.
        metadata = self._metadata(number, blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        facts = self._facts(number, metadata)
        try:
            trees = [json.loads(metadata[key]) for key in ("observation", "action")]
            return RecordedRequest(facts, *(from_json(tree, tensors) for tree in trees))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._wrong(f"{name}: {error}") from error

    def _metadata(self, number: int, header: bytes) -> dict[str, Any]:
        found = self._parsed(f"request {number}", header).get("__metadata__")
        return found if isinstance(found, dict) else {}

    def _facts(self, number: int, metadata: dict[str, Any]) -> RequestFacts:
        name = f"request {number}"
        try:
            facts = RequestFacts(**self._parsed(name, metadata["request"]))
            _check(facts, number)
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong(f"{name}: {error}") from error
        return facts

    def _wrong(self, what: str) -> RecordingError:
        return RecordingError(f"{self.path} is not a whole recording of shmserve: {what}")

    def _cut(self, at: int) -> RecordingTruncated:
        return RecordingTruncated(
            f"{self.path} ends in the middle, at byte {self._size}: its recorder was killed or the file was cut. "
            f"{len(self._requests)} requests before byte {at} are whole (replay --partial uses them)"
        )

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: Thirty years, so that a time is one that other formats have, too.
_MOST = {"at_s": 1e9, "queued_us": 1e15, "staged_us": 1e15, "infer_us": 1e15, "copied_us": 1e15}


def _check(facts: RequestFacts, number: int) -> None:
    """What reads a recording computes with these."""
    counts = (facts.number, facts.client, facts.lease, facts.sequence)
    if facts.number != number or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"its numbers are {counts}")
    for key, most in _MOST.items():
        value = getattr(facts, key)
        if value is None and key != "at_s":
            continue
        if type(value) not in (int, float) or not abs(value) <= most:  # NaN is not
            raise ValueError(f"{key} is {value!r:.40}")
    for word in (facts.kind, facts.status):
        if not isinstance(word, str):
            raise TypeError(f"{word!r:.40} is not a str")
