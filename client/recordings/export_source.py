"""A recording as an export reads it: request after request, of one client or of all, with their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

from .errors import RecordingError
from .frames import Frame, FrameFinder
from .recording import RecordedRequest, Recording, RequestFacts


@dataclass(frozen=True)
class SplitRequest:
    """One request, its frames apart from the rest of its observation."""

    facts: RequestFacts
    frames: list[Frame]
    observation: Any  # without the frames
    action: Any


@dataclass
class _Client:
    """The requests of one client that the recording tells apart."""

    numbers: list[int] = field(default_factory=list)
    answered_at_s: list[float] = field(default_factory=list)


@final
class ExportSource:
    """An open recording; one that was cut off is read up to the cut. Only the requests' facts are kept in memory."""

    def __init__(self, file: Path, finder: FrameFinder, *, client: int | None) -> None:
        """Raises RecordingError or OSError; `client` is the only one to read, as `lease` of its requests counts them."""
        self._recording = Recording(file, partial=True)
        self._finder = finder
        #: Called with the number of requests that were read.
        self.progress: Callable[[int], None] = lambda read: None
        self._read = 0
        self.about = self._recording.about
        self.cut_off = self._recording.ending is None
        self._clients: dict[int, _Client] = {}
        try:
            for facts in self._recording.facts():
                if client is None or facts.lease == client:
                    found = self._clients.setdefault(facts.lease, _Client())
                    found.numbers.append(facts.number)
                    if facts.kind == "infer" and facts.status == "ok":
                        found.answered_at_s.append(facts.at_s)
            if not self._clients:
                which = f"no request of client {client}" if client is not None else "no complete request"
                raise RecordingError(f"{file} holds {which}: nothing to export")
            self._find_frames()
        except BaseException:
            self.close()
            raise

    def _find_frames(self) -> None:
        """Look at each client's first observation, so that a name that is wrong is refused before anything is written."""
        for client in self._clients.values():
            for number in client.numbers:
                request = self._recording.request(number)
                if request.facts.kind == "infer":
                    self._split(request)
                    break
        self._finder.check_all_seen()

    def __len__(self) -> int:
        """The number of requests to read."""
        return sum(len(client.numbers) for client in self._clients.values())

    @property
    def leases(self) -> list[int]:
        """The clients, as `lease` of their requests counts them."""
        return sorted(self._clients)

    @property
    def began_ns(self) -> int:
        """The recording's 0 s as Unix time; 0 where the recording does not say it."""
        began_s: Any = self.about.get("began_s")
        return round(began_s * 1e9) if type(began_s) in (int, float) and 0 <= began_s < 1e10 else 0

    def rate_hz(self) -> float | None:
        """The usual rate of one client's answered requests; None with fewer than two.

        It is the median of the gaps between them, so that a pause does not count.
        """
        gaps = [
            after - before
            for client in self._clients.values()
            for before, after in zip(client.answered_at_s, client.answered_at_s[1:], strict=False)
            if after > before
        ]
        return 1 / statistics.median(gaps) if gaps else None

    def requests(self) -> Iterator[SplitRequest]:
        """All requests in the recording's order."""
        return self._each(sorted(number for client in self._clients.values() for number in client.numbers))

    def by_client(self) -> Iterator[Iterator[SplitRequest]]:
        """The requests of one client after the other."""
        for lease in self.leases:
            yield self._each(self._clients[lease].numbers)

    def _each(self, numbers: list[int]) -> Iterator[SplitRequest]:
        for number in numbers:
            request = self._recording.request(number)
            self._read += 1
            self.progress(self._read)
            yield self._split(request)

    def _split(self, request: RecordedRequest) -> SplitRequest:
        try:
            frames, rest = self._finder.split(request.observation)
        except RecordingError as error:
            raise RecordingError(f"request {request.facts.number}: {error}") from error
        return SplitRequest(request.facts, frames, rest, request.action)

    def close(self) -> None:
        """May be called twice."""
        self._recording.close()

    def __enter__(self) -> ExportSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
