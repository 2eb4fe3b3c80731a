"""Serving on a device: the next batch is copied in while the device works on the previous one.

    host     | stage 1 | launch 1 | stage 2 ...... | reply 1 | launch 2 | stage 3 ...
    copies             | in 1 |        | in 2 |                      | in 3 |
    compute                   | model 1 | out 1 |        | model 2 | out 2 |

Two arenas take turns. The order of calls is `stage`, `launch`, `wait`, `finish`; between `finish` and the next `launch`
the device only copies.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shmserve.errors import RequestRejected, ValueOutOfRange
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.real_time_chunking import delivered
from shmserve.ring import RequestHead
from shmserve.schema import Schema
from shmserve.shortened import shortened

from ...ipc.stats import Counter, Stats
from ...packages.range_checks import RangeCheck
from ..channel.channel_state import ChannelState
from ..channel.staging import Staging
from ..device_failure import DeviceError, DeviceLost
from ..error_text import log_message
from ..loop.schedule import charge
from ..models.model import Model
from ..models.range_checks import RangeChecks
from ..requests.serving import QueuedRequest, Serving, forget_traceback
from .arena import Arena
from .context import DeviceContext
from .errors import as_out_of_memory, raise_if_lost
from .graphs import Graphs
from .readback import private
from .row import Row
from .waiting import DeviceWait

log = logging.getLogger(__name__)

_ERROR_TEXT = 300
NO_AREA = (
    "an array lies in GPU memory, and this client has no memory there that the engine shares: send it from the host"
)


class DeviceServing(Serving):
    """Runs the model on a device for the engine's channels; `DeviceLoop` calls its steps."""

    def __init__(
        self,
        model: Model,
        stats: Stats,
        context: DeviceContext,
        wait: DeviceWait,
        *,
        version: int,
        max_batch: int,
        stateful: bool,
        checks: Mapping[str, Mapping[str, RangeCheck]],
        real_time_chunking: bool = False,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(
            model,
            stats,
            version=version,
            max_batch=max_batch,
            in_place=False,
            stateful=stateful,
            checks=checks,
            real_time_chunking=real_time_chunking,
        )
        self._device = context.device
        self._context = context
        self._results = context.results
        self._wait = wait
        self._graphs = graphs
        self._filling = 0
        self._staged: list[Row] = []
        self._flying: list[Row] = []
        self._flown: Arena = context.arenas[1]
        self._results_of: list[Any] = []
        self._failure: BaseException | None = None
        self._launched_ns = 0

    def serve(self, batch: list[QueuedRequest]) -> None:
        """Answer every request of `batch` before it returns; used while a recorder is attached."""
        for state, head in batch:
            if not self.admits(head, state):
                self._run_staged()
            self.stage(state, head, ahead=False)
        self._run_staged()

    def _run_staged(self) -> None:
        if self._staged and self.launch():
            self.wait(lambda: None, lambda timeout_ns: time.sleep(timeout_ns / 1e9))
            self.finish()

    # Staging

    @property
    def staged(self) -> int:
        """Number of requests staged for the next launch."""
        return len(self._staged)

    def admits(self, head: RequestHead, state: ChannelState) -> bool:
        """Return whether this request may join the staged ones; if not, ask again after those have run."""
        items = self._staged
        if head.kind == Kind.RESET:
            return not items and not self._flying  # it keeps its place in the order
        if not items:
            return True
        # A request that was running when an engine died runs alone, to find the request that caused the crash.
        if len(items) >= self.max_batch or items[0].retried or state.channel.replies.attempts(head.sequence):
            return False
        if items[0].state.behind_ns or state.behind_ns:
            return False
        areas = self._context.areas
        on_device = areas.area_bytes(state.number) if areas is not None else 0
        return self._arena.has_room(head.payload_bytes + on_device)

    @property
    def flies_suspect(self) -> bool:
        """Whether a request on the device is from a client that is suspected of crashing engines."""
        return any(item.state.behind_ns for item in self._flying)

    def flies(self, state: ChannelState) -> bool:
        """Return whether a request of this client is on the device."""
        return any(item.state is state for item in self._flying)

    @property
    def _arena(self) -> Arena:
        return self._context.arenas[self._filling]

    def stage(self, state: ChannelState, head: RequestHead, *, ahead: bool) -> None:
        """Stage a request, or answer it at once if it cannot or need not run."""
        words = self._words
        before = words[Counter.CHANNEL]
        words[Counter.CHANNEL] = state.number + 1
        taken_ns = time.monotonic_ns()
        item = Row(
            state,
            head,
            max(0, taken_ns - head.submitted_ns),
            ahead=ahead,
            retried=bool(state.channel.replies.attempts(head.sequence)),
        )
        if self._refused(state, head, taken_ns, item.queued_ns):
            pass
        elif head.kind == Kind.RESET:
            if self._may_run(item, taken_ns):
                self._reset(state, head, item.queued_ns)
        elif self._observe(item):
            item.staged_ns = time.monotonic_ns() - taken_ns
            self._staged.append(item)
        words[Counter.CHANNEL] = before

    def send_ahead(self) -> None:
        """Begin to copy the staged rows while the device works."""
        try:
            self._arena.send(ahead=True)
        except RuntimeError as error:  # launch() copies the rows again
            raise_if_lost(self._device, error)
            log.warning("cannot copy the staged requests ahead, launch() tries again: %s", log_message(error))

    def _observe(self, item: Row) -> bool:
        state, head = item.state, item.head
        began_ns = time.monotonic_ns()
        is_new = head.schema not in state.schemas.known
        slot = state.channel.requests.memory(head.sequence)
        pickled = bool(head.flags & Flag.PICKLED)
        try:
            if pickled and not state.trusted:
                raise RequestRejected("a pickled object from a client that is not trusted")
            schema = state.schemas.get(head.schema, head.metadata_bytes, slot)
            if self._graphs is not None:
                self._graphs.check(schema, slot.payload, head.payload_bytes, pickled=pickled)
            if pickled:
                # Separate memory: a batch may hold several requests of one client, and the policy may keep unpickled objects.
                staging = Staging(self._device.torch_device)
                item.observation = staging.observation(schema, slot, head.payload_bytes, in_place=False, pickled=True)
            else:
                item.observation = self._placed(item, schema, slot.payload)
            if head.flags & Flag.REAL_TIME_CHUNKING:
                item.observation = delivered(item.observation, is_wanted=self._continues(state))
        except (MetadataError, RequestRejected) as error:
            self._reject(state, head, error, item.queued_ns, began_ns)
            return False
        except BaseException as error:  # noqa: BLE001  unpickling a trusted client's object runs that object's own code
            of_device = issubclass(type(error), RuntimeError)
            if of_device:  # all errors of a device are RuntimeErrors
                raise_if_lost(self._device, error)
            short = as_out_of_memory(error)
            if short is not None or (of_device and not pickled):  # not caused by the client
                self._fail(state, head, short or error, item.queued_ns, 0, 0)
                return False
            log.warning("request of client %d cannot be read\n%s", state.number, log_message(error))
            self._reject(state, head, error, item.queued_ns, began_ns)
            return False
        if is_new:
            now_ns = time.monotonic_ns()
            state.overhead.add(now_ns - began_ns, now_ns)
        return True

    def _placed(self, item: Row, schema: Schema, payload: Any) -> Any:
        registered, threshold = item.state.registered, self._context.registrar.threshold
        payload_bytes = item.head.payload_bytes
        item.place = self._arena.rows
        if schema.reader.has_device:
            area = self._context.areas.of(item.state.number) if self._context.areas is not None else None
            if area is None:
                raise RequestRejected(NO_AREA)
            of_area = functools.partial(area.leaf, item.head.sequence)
            return self._arena.place_from_area(schema, payload, payload_bytes, of_area, ahead=item.ahead)
        if registered is not None and (memory := registered.in_place(item.head.sequence)) is not None:
            item.in_place = memory
            return memory.observation(schema, payload, payload_bytes)
        directly = None
        if registered is not None and threshold is not None and payload_bytes >= threshold:
            directly = registered.payload(item.head.sequence)
        return self._arena.place(schema, payload, payload_bytes, directly=directly, ahead=item.ahead)

    # Running

    def launch(self) -> bool:
        """Start the model on the staged requests; return False if none of them may still run."""
        now_ns = time.monotonic_ns()
        arena = self._arena
        try:
            items = [item for item in self._staged if self._may_run(item, now_ns)]
            if items and not (self._graphs is not None and self._graphs.sends(self._filling)):
                arena.send(ahead=False)
        except RuntimeError as error:
            raise_if_lost(self._device, error)
            self._fail_staged(error)
            items = []
        self._staged = []
        if self._observations is not None:
            items = [item for item in items if self._is_in_range(item, self._observations)]
        if not items:
            arena.done()
            return False
        if len(items) == 1:
            self._words[Counter.CHANNEL] = items[0].state.number + 1
        else:
            self._note_in_hand(item.state for item in items)
        self._flying, self._flown = items, arena
        self._filling ^= 1
        self._launched_ns = time.monotonic_ns()
        if self.on_first is not None:
            self._note_first([item.observation for item in items])
        try:
            self._results_of = self._begun(items, graphs=self._graphs)
        except DeviceLost:  # by earlier work: the next engine answers these requests
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code: the next request works
            self._failure = error
        return True

    def _begun(self, items: list[Row], *, graphs: Graphs | None) -> list[Any]:
        """Start the model on these rows and the readback; return the actions, whose copies to the host are not yet complete."""
        try:
            if graphs is not None:
                # A graph reads every row up to its batch size, including rows that are empty by now.
                found = graphs.run(self._filling ^ 1)
                actions = [found[item.place] for item in items]
            else:
                self._results.begin()
                try:
                    asked = list(self._asked(items))
                finally:
                    self._device.rejoin()
                actions = list(self._results.fetch(asked))
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the first error is the one to report
                self._flown.computed()  # work that was launched by then reads the arena
            raise
        self._flown.computed()
        return actions

    def _reset(self, state: ChannelState, head: RequestHead, queued_ns: int) -> None:
        super()._reset(state, head, queued_ns)
        self._device.rejoin()

    def client_left(self, client_id: int) -> None:
        super().client_left(client_id)
        if self._per_client is not None:
            self._device.rejoin()

    def _is_in_range(self, item: Row, checked: RangeChecks) -> bool:
        """Return whether the observation passes the package's range checks, which run on the device after the copy."""
        try:
            item.observation, item.clamped = checked.apply(item.observation)
        except ValueOutOfRange as error:
            self._words[Counter.OUT_OF_RANGE] += 1
            self._reject(item.state, item.head, error, item.queued_ns)
            item.observation = None
            return False
        except RuntimeError as error:  # an error of the device, which compares
            raise_if_lost(self._device, error)
            self._fail(item.state, item.head, as_out_of_memory(error) or error, item.queued_ns, item.staged_ns, 0)
            item.observation = None
            return False
        except BaseException as error:  # noqa: BLE001  an unpickled object may be asked for its entries
            self._reject(item.state, item.head, error, item.queued_ns)
            item.observation = None
            return False
        return True

    def _asked(self, items: list[Row]) -> list[Any]:
        observations = [item.observation for item in items]
        if self._per_client is None:
            return self._model.infer(observations)
        return self._per_client.infer_for(observations, [item.state.number for item in items])

    def _attempts_allowed(self, state: ChannelState, head: RequestHead) -> int:
        if self._context.registrar.began_in_place and head.kind == Kind.INFER:
            return 1  # a policy that reads in place may have changed what a second attempt would read
        return super()._attempts_allowed(state, head)

    def _may_run(self, item: Row, now_ns: int) -> bool:
        """Take a staged request; return False if it was cancelled or has expired meanwhile, and was answered."""
        refusal = self._refusal(item.state, item.head, now_ns) or self._take(item.state, item.head)
        if refusal is None:
            return True
        self._arena.arrived()
        self._finish(item.state, item.head, *refusal, 0, item.queued_ns)
        return False

    def wait(self, look: Callable[[], None], sleep: Callable[[int], None]) -> None:
        """Wait until the actions have arrived (see `DeviceWait.until`); an action on the host needs no wait.

        Also wait for what reads the clients' memory: after an answer, its client may overwrite that memory.
        """
        try:
            reads_slots = any(item.in_place is not None for item in self._flying)
            if self._failure is None and (reads_slots or self._results.pending):
                self._wait.until(self._flown.finished, look, sleep)
            self._flown.arrived()
        except RuntimeError as error:
            self._failure = self._failure or error

    def finish(self, waiting: Collection[ChannelState] = ()) -> None:
        """Answer the launched requests; `waiting` are the channels with requests that wait for their turn.

        Raises DeviceLost: then no further request can run, and waiting requests stay in their slots.
        """
        items, self._flying = self._flying, []
        failure, self._failure = self._failure, None
        ended_ns = time.monotonic_ns()
        infer_ns = ended_ns - self._launched_ns
        if failure is not None:
            self._recover(items, failure, infer_ns)
        else:
            self._words[Counter.BATCHES] += 1
            self._answer(items, self._results_of, infer_ns)
        del failure
        self._results_of = []
        self._note_answered(item.state for item in items)
        for item in items:
            # From the end of its turn, when a client with one request in flight can send its next. Its share of the time.
            others = len(waiting) - (item.state in waiting)
            charge(item.state, ended_ns - infer_ns // len(items), ended_ns, others=others)
            if item.in_place is not None and item.in_place.is_kept:
                self._context.registrar.copy_instead("the policy keeps a tensor of its observation")
        items.clear()
        self._flown.done()
        self._words[Counter.CHANNEL] = 0
        self._words[Counter.BUSY_NS] += time.monotonic_ns() - self._launched_ns

    def _answer(self, items: list[Row], actions: list[Any], infer_ns: int) -> None:
        for index, item in enumerate(items):
            state, head = item.state, item.head
            try:
                action, flags = self._limited(actions[index], clamped=item.clamped)
                if item.in_place is not None:
                    flags |= Flag.IN_PLACE
                self._finish(state, head, Status.OK, action, flags, item.queued_ns, item.staged_ns, infer_ns)
                if self.on_first is not None:
                    self._report_first()
            except RequestRejected as error:  # out of range, or the codec does not support the model's result
                self._fail(state, head, error, item.queued_ns, item.staged_ns, infer_ns)
            if state.deferred_replies and head.sequence in state.deferred_replies:
                # The reply did not fit its slot and is deferred; the next batch uses this memory.
                facts, tree = state.deferred_replies[head.sequence]
                state.deferred_replies[head.sequence] = (facts, private(tree))
            actions[index] = item.observation = None  # else these references would count as the policy's

    # Errors

    def _recover(self, items: list[Row], error: BaseException, infer_ns: int) -> None:
        # This waits for all work, so the memory that was read in place may be overwritten afterwards.
        reason = self._device.poisoned()
        if reason is not None:
            if len(items) == 1:
                lost = DeviceError(f"{shortened(reason, _ERROR_TEXT)} (the engine is restarted)")
                lost.__cause__ = error
                self._fail(items[0].state, items[0].head, lost, items[0].queued_ns, items[0].staged_ns, infer_ns)
            raise DeviceLost(reason) from error
        short = as_out_of_memory(error)
        if short is not None:
            forget_traceback(error)  # its frames hold the model's intermediate tensors
            error = short
            self._device.give_back()
        if len(items) > 1:
            # One bad row must not fail the others: run each alone.
            for item in items:
                self._run_alone(item)
            return
        item = items[0]
        item.observation = None
        if issubclass(type(error), RequestRejected):  # the model's own check of its input: the client's fault
            self._reject(item.state, item.head, error, item.queued_ns)
        else:
            self._fail(item.state, item.head, error, item.queued_ns, item.staged_ns, infer_ns)

    def _fail_staged(self, error: RuntimeError) -> None:
        """Fail the staged requests that are not yet answered, because the device could not copy their rows."""
        for item in self._staged:
            if not item.state.channel.replies.answered(item.head.sequence):
                self._fail(item.state, item.head, as_out_of_memory(error) or error, item.queued_ns, item.staged_ns, 0)

    def _run_alone(self, item: Row) -> None:
        began_ns = time.monotonic_ns()
        self._words[Counter.CHANNEL] = item.state.number + 1
        try:
            self._flown.send(ahead=False)  # no graph has sent the rows if it could not be launched
            actions = self._begun([item], graphs=None)
            self._flown.finished.synchronize()
        except BaseException as error:  # noqa: BLE001  the model's own code
            self._recover([item], error, time.monotonic_ns() - began_ns)
            return
        self._words[Counter.BATCHES] += 1
        self._answer([item], actions, time.monotonic_ns() - began_ns)
