"""Engine's state of one channel: waiting requests, replies and deferred replies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from shmserve.backend import ServerFastPath
from shmserve.channel import EngineChannel
from shmserve.codec import DoesNotFit, Encoder, Schemas
from shmserve.errors import RequestRejected
from shmserve.layout import number_of, slot_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import RequestHead

from ...ipc.messages import Suspicion
from ...ipc.stats import ChannelWord, Counter, Stats
from ..error_text import PolicyRaised, client_message
from .expectation import Expectation
from .mapped_channel import MappedChannel
from .overhead import Overhead
from .request_rate_limit import Rate
from .staging import Staging

#: A request of a suspected client counts as this much younger, and so waits for its turn at most that much longer.
BEHIND_NS = 1_000_000_000


class BrokenChannel(Exception):
    """The client violated the protocol, so that its channel cannot be served."""


class ChannelState:
    """One client's channel. All state that the engine's decisions depend on is here, in private memory."""

    def __init__(
        self,
        mapped: MappedChannel,
        *,
        trusted: bool,
        uid: int,
        rate: Rate | None,
        overhead: Overhead | None = None,
        suspicion: Suspicion | None = None,
        tensors_on: torch.device | None,
        in_place: bool = False,
        numbers: Iterator[int],
        deferred: Sequence[int],
        stats: Stats,
    ) -> None:
        """Take over `mapped`; `tensors_on` is that of `Staging`; `in_place`: the model reads the slots."""
        self._mapped = mapped
        self.channel_info = mapped.channel_info
        self.channel = mapped.channel
        #: The requests as memory that the device reads directly; None if it does not.
        self.registered = mapped.register()
        self.number = self.channel_info.identity.channel
        self.trusted = trusted
        self.uid = uid
        #: The rate limit of its user; None without one.
        self.rate = rate
        self.schemas = Schemas()
        self._earlier_version = 0  # as `latest_version`, of the generations before
        # No number of a structure may come twice: replies of different engines may share a slot, and this engine may make
        # another state for the same client, which remembers the structures that it has read.
        self.encoder = Encoder(numbers=numbers, allow_pickle=trusted, tensors_as_arrays=True, name="action")
        #: Engine time outside the model: reading new structures, and refused and failed requests of this client.
        self.overhead = overhead if overhead is not None else Overhead()
        self.waiting: deque[RequestHead] = deque()
        #: End of its last turn, plus a charge for the clients that waited then (schedule.py).
        self.last_served_ns = 0
        #: Not 0 while this client is suspected of an engine's death: it runs alone, and behind the others.
        self.behind_ns = 0
        self._suspect_until_ns = 0
        #: Whether it alone caused such a death: a tried request is tried again only if no other client pays for it.
        self.blamed = False
        self.may_try_again = True
        #: Time since which such a request waits until no other client is active; 0 if none waits.
        self.quiet_since_ns = 0
        self.active_ns = 0
        self.expectation = Expectation()
        self._submitted_ns = 0  # when the last request was published that took the slow path
        self._tensors_on = tensors_on
        self._staging: list[Staging] = []
        #: Deferred replies: results that did not fit their slot, kept until the client has made room.
        self.deferred_replies: dict[int, tuple[tuple[int, ...], Any]] = {}
        self._deferred = list(deferred)
        self._stats = stats
        self.words = self.channel.requests.words
        self.counter = self.channel.requests.counter
        #: Polls the client's counter; `last_seen` is the value up to which requests were admitted.
        self.poller = self.channel.requests.poller
        self._in_place = in_place
        self.fast_path = self._new_fast_path()
        if suspicion is not None:
            self.suspect(suspicion)

    def suspect(self, suspicion: Suspicion) -> None:
        """Run its requests alone and behind the others'."""
        self.behind_ns = BEHIND_NS
        self._suspect_until_ns = time.monotonic_ns() + int(suspicion.left_s * 1e9)
        self.blamed = suspicion.blamed

    def is_suspect(self, now_ns: int) -> bool:
        """Return whether the client is still suspected, and end the suspicion when its time is over."""
        if self.behind_ns and now_ns >= self._suspect_until_ns:
            self.behind_ns, self.blamed = 0, False
        return self.behind_ns > 0

    def _new_fast_path(self) -> ServerFastPath | None:
        """Make the fast path, or return None for a device that cannot use it."""
        requests, replies, device = self.channel.requests, self.channel.replies, self._tensors_on
        if device is not None and device.type != "cpu":
            return None
        wrap = None if device is None else torch.from_numpy
        return ServerFastPath(
            requests.heads,
            requests.memories,
            replies.heads,
            replies.memories,
            requests.copier,
            wrap,
            self.schemas.decoders,
            self.encoder.trees,
            self._in_place,
        )

    def submitted_ns(self) -> int:
        """Return when the client published its latest request, by its own word."""
        path = self.fast_path
        return self._submitted_ns if path is None else max(self._submitted_ns, path.submitted_ns)

    def _forget_fast(self) -> None:
        """Release all references of the fast path to the channel's memory."""
        if self.fast_path is not None:
            self.fast_path.reset()

    def open(self) -> None:
        """Admit the requests that an earlier engine left unanswered."""
        requests, replies = self.channel.requests, self.channel.replies
        self.poller.last_seen = published = requests.published()
        for sequence in requests.between(0, published):
            # Requests of an earlier generation were answered there, or are deferred.
            if not replies.answered(sequence):
                self._admit(sequence)
        self._answer_lost()

    def report_lost(self, sequences: Sequence[int], *, serving: bool) -> None:
        """Answer requests whose deferred replies were lost with their engine: at once, or when this engine serves."""
        self._deferred += sequences
        if serving:
            self._answer_lost()

    def _answer_lost(self) -> None:
        for sequence in self._deferred:
            if not self.channel.replies.answered(sequence):
                self._answer_as_lost(sequence)
        self._deferred = []

    def _answer_as_lost(self, sequence: int) -> None:
        self.answer(sequence, Status.ENGINE_LOST, ("EngineLost", "the engine that ran it is gone"))
        self._count(Counter.LOST)

    def look(self, now_ns: int) -> bool:
        """Admit the requests published since the last look; return whether there were any."""
        published, seen = self.words[self.counter], self.poller.last_seen
        if published == seen:
            return False
        count = number_of(published) - number_of(seen)
        if count == 1:
            self._admit(published)
        else:
            self._admit_several(count, seen, published)
        self.poller.last_seen = published
        self.active_ns = now_ns
        return True

    def refuse_new(self, now_ns: int) -> None:
        """Refuse the requests published since the last look, because the service is stopping."""
        accepted, self.waiting = self.waiting, deque()
        try:
            self.look(now_ns)
            for head in self.waiting:
                self.answer(head.sequence, Status.STOPPING)
                self._count(Counter.REJECTED)
        finally:
            self.waiting = accepted

    def _admit_several(self, count: int, seen: int, published: int) -> None:
        if not 0 < count <= self.channel.requests.slots:
            raise BrokenChannel(f"published counter {published:#x} after {seen:#x}")
        sequences = self.channel.requests.between(seen, published)
        if [number_of(sequence) for sequence in sequences] != list(
            range(number_of(seen) + 1, number_of(published) + 1)
        ):
            raise BrokenChannel(f"{count} requests were published, the slots hold others")
        for sequence in sequences:
            self._admit(sequence)

    def _admit(self, sequence: int) -> None:
        head = self.channel.requests.head(sequence)
        if head is None:
            raise BrokenChannel(f"no request {number_of(sequence)} in slot {slot_of(sequence)}")
        if head.write_id:
            self.channel.requests.copier.commit(head.write_id)
        if head.flags & Flag.SUPERSEDE:
            for older in [older for older in self.waiting if older.kind == Kind.INFER]:
                self.waiting.remove(older)
                if self.channel.replies.attempts(older.sequence):
                    self._answer_as_lost(older.sequence)  # "replaced before it ran" may be false
                else:
                    self.answer(older.sequence, Status.SUPERSEDED)
                    self._count(Counter.SUPERSEDED)
        if self.deferred_replies:
            # The client uses the slot again, so it has given up the deferred reply.
            for older_sequence in [older for older in self.deferred_replies if slot_of(older) == slot_of(sequence)]:
                del self.deferred_replies[older_sequence]
        if len(self.waiting) >= self.channel.requests.slots:
            # A client may use a slot again only once its request is answered; this one does not wait, and its requests
            # would fill the engine's memory.
            raise BrokenChannel(
                f"more requests are in flight than the channel has slots ({self.channel.requests.slots})"
            )
        self.waiting.append(head)
        self._submitted_ns = head.submitted_ns

    def _count(self, counter: Counter) -> None:
        """Count a reply that does not pass through `Serving`, which counts all others."""
        self._stats.words[counter] += 1
        self._stats.words[self._stats.channel_index(self.number) + ChannelWord.ERRORS] += 1

    def staging(self, row: int) -> Staging:
        """Return the staging memory for the `row`-th item of a batch."""
        while len(self._staging) <= row:
            # The further items of a batch are of other clients, or were published long ago: no cut-through copy.
            first = not self._staging
            copier = self.channel.requests.copier if first else None
            self._staging.append(Staging(self._tensors_on, copier, self.fast_path if first else None))
        return self._staging[row]

    def latest_version(self) -> int:
        """Return the version of the model that made this client's latest result, in this engine or another; 0: none is known."""
        return self.channel.replies.latest_version() or self._earlier_version

    def answer(
        self,
        sequence: int,
        status: int,
        tree: Any = None,
        flags: int = 0,
        version: int = 0,
        durations_ns: tuple[int, int, int] = (0, 0, 0),
    ) -> int:
        """Complete `sequence` with a result, or with an error as (type, text), and ring the reply doorbell.

        Returns how long encoding took (ns); `durations_ns` is (queued, staged, infer). A result that does not fit is
        deferred and the client asked to make room; `resume` completes it. Raises RequestRejected for a result that cannot
        be encoded, PolicyRaised for one whose own code raises; then nothing was answered.
        """
        started_ns = time.monotonic_ns()
        replies = self.channel.replies
        try:
            memory = replies.memories[slot_of(sequence)]
            schema, metadata_bytes, payload_bytes, pickled = self.encoder.encode(tree, memory)
            if pickled:
                flags |= Flag.PICKLED
        except DoesNotFit as needed:
            self.deferred_replies[sequence] = ((status, flags, version, *durations_ns), tree)
            status, schema = Status.RESIZE_REQUIRED, 0
            metadata_bytes, payload_bytes = needed.metadata_bytes, needed.payload_bytes
        except RequestRejected:
            raise
        except BaseException as error:  # reading a result may run the code of its type
            raise PolicyRaised("the action cannot be read") from error
        copied_ns = time.monotonic_ns() - started_ns
        replies.complete(
            sequence,
            status,
            flags,
            schema,
            metadata_bytes,
            payload_bytes,
            version,
            *durations_ns,
            copied_ns,
        )
        self.channel.reply_bell.ring()
        return copied_ns

    def resume(
        self,
        mapped: MappedChannel,
        deferred: Sequence[int],
        *,
        serving: bool,
        let_go: Callable[[EngineChannel], None] = EngineChannel.close,
    ) -> None:
        """Continue in the channel's next generation, with larger segments, and deliver the deferred replies.

        An engine that no longer serves only delivers. `let_go` closes the earlier generation.
        """
        old = self._mapped
        self._earlier_version = self.latest_version()
        self._unregister()
        self._forget_fast()
        self._mapped = mapped
        self.channel_info = mapped.channel_info
        self.channel = mapped.channel
        self.registered = mapped.register()
        self.words = self.channel.requests.words
        self.counter = self.channel.requests.counter
        self.poller, seen = self.channel.requests.poller, self.poller.last_seen
        self.poller.last_seen = seen
        self.waiting.clear()
        self._staging = []
        self.fast_path = self._new_fast_path()
        replies, self.deferred_replies = self.deferred_replies, {}
        self._deferred = [sequence for sequence in deferred if sequence not in replies]
        old.close(let_go)
        if serving:
            self.open()
        for sequence in deferred:
            if sequence in replies and not self.channel.replies.answered(sequence):
                (status, flags, version, *durations), tree = replies[sequence]
                queued, staged, infer = durations
                try:
                    self.answer(sequence, status, tree, flags, version, (queued, staged, infer))
                except RequestRejected as error:  # the result has changed since it was first encoded
                    self.answer(sequence, Status.FAILED, client_message(error), flags, version, (queued, staged, infer))

    def close(self, let_go: Callable[[EngineChannel], None] = EngineChannel.close) -> None:
        """Release everything; `let_go` closes the channel, at once or later."""
        self.deferred_replies.clear()
        self._forget_fast()
        self.fast_path = None  # it keeps the slots' memory mapped
        self._staging = []
        self.words = memoryview(b"")
        self._unregister()
        self._mapped.close(let_go)

    def _unregister(self) -> None:
        registered, self.registered = self.registered, None
        if registered is not None:
            registered.close()
