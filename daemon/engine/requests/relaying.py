"""Serving of a link: each request goes to the remote model in a separate call, and to the fallback if that does not answer."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from shmserve.layout import number_of
from shmserve.protocol import Flag, Status
from shmserve.ring import RequestHead

from ...ipc.stats import Counter
from ..channel.channel_state import ChannelState
from ..device_failure import DeviceLost
from ..error_text import client_message
from ..models.remote import Answer, Asked, RemoteModel, Terms
from .serving import BatchItem, Serving


class RelayServing(Serving):
    """A `Serving` whose model is remote; it has no fast path, because the network takes far longer than that saves."""

    def __init__(
        self, model: RemoteModel, *arguments: Any, report: Callable[[dict[str, Any]], object], **settings: Any
    ) -> None:
        """`report` gets the link's state when it has changed."""
        super().__init__(model, *arguments, **settings)
        self._remote = model
        self._report = report
        self._link_version = self._version
        #: The flag of the reply that is being made.
        self._source = 0
        self._last_source = 0
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def report_change(self) -> None:
        """Report the link's state if it has changed."""
        if (state := self._remote.change()) is not None:
            self._report(state)

    def _infer(self, items: list[BatchItem]) -> None:
        began_ns = time.monotonic_ns()
        if len(items) == 1:
            answers: list[Answer | Asked] = [self._ask(items[0])]
        else:
            self._note_in_hand([item.state for item in items])
            self._done = queue.SimpleQueue()
            answers = [self._begin(item, index) for index, item in enumerate(items)]
        local = [index for index, answer in enumerate(answers) if self._settled(items[index], answer, began_ns)]
        self._answer_locally([items[index] for index in local], began_ns)
        for _ in range(sum(isinstance(answer, Asked) for answer in answers)):
            # Each as it comes: a late one delays no other robot.
            index = self._done.get()
            asked = answers[index]
            assert isinstance(asked, Asked)
            if self._settled(items[index], self._remote.settle(asked), began_ns):
                self._answer_locally([items[index]], began_ns)
        self.report_change()

    def _ask(self, item: BatchItem) -> Answer:
        try:
            return self._remote.ask(item.observation, _terms(item))
        except Exception as error:  # noqa: BLE001  an observation that no message carries
            return _refused(error)

    def _begin(self, item: BatchItem, index: int) -> Answer | Asked:
        try:
            return self._remote.begin(item.observation, _terms(item), self._done, index)
        except Exception as error:  # noqa: BLE001  as above
            return _refused(error)

    def _settled(self, item: BatchItem, answer: Answer | Asked, began_ns: int) -> bool:
        """Give a robot the remote's answer; return whether the fallback has to answer instead."""
        if isinstance(answer, Asked):
            return False
        self._words[answer.counter] += 1
        if not answer.is_final:
            return True
        infer_ns = time.monotonic_ns() - began_ns
        with _Source(self, Flag.REMOTE, self._remote.remote_version):
            if answer.status == Status.OK:
                self._words[Counter.BATCHES] += 1
                self._reply(item, [answer.tree], 0, infer_ns)
            else:
                times = (item.queued_ns, item.staged_ns, infer_ns)
                self._finish(item.state, item.head, answer.status, answer.tree, 0, *times)
                self._release(item)
        return False

    def _answer_locally(self, items: list[BatchItem], began_ns: int) -> None:
        if not items:
            return
        with _Source(self, Flag.FALLBACK, self._remote.fallback_version or self._link_version):
            try:
                results = self._remote.answer_locally([item.observation for item in items])
            except DeviceLost:
                raise
            except BaseException as error:  # noqa: BLE001  the fallback's own code: each alone, then
                if len(items) == 1:
                    self._failed(items, error, began_ns)
                    return
                results = None
            if results is not None:
                infer_ns = time.monotonic_ns() - began_ns
                self._words[Counter.BATCHES] += 1
                for index, item in enumerate(items):
                    self._reply(item, results, index, infer_ns)
                return
        for item in items:
            self._answer_locally([item], began_ns)

    def _finish(self, state: ChannelState, head: RequestHead, status: int, tree: Any, flags: int, *times: int) -> int:
        if self._source and self._source != self._last_source:
            if self._last_source:
                self._words[Counter.REMOTE_SWITCHES] += 1
            self._last_source = self._source
        return super()._finish(state, head, status, tree, flags | self._source, *times)


class _Source:
    """Marks the replies that are made in a block with the model that answers."""

    def __init__(self, serving: RelayServing, flag: int, version: int) -> None:
        self._serving = serving
        self._values = flag, version

    def __enter__(self) -> None:
        self._serving._source, self._serving._version = self._values

    def __exit__(self, *_: object) -> None:
        self._serving._source, self._serving._version = 0, self._serving._link_version


def _terms(item: BatchItem) -> Terms:
    head = item.head
    elapsed_ns = time.monotonic_ns() - head.submitted_ns if head.submitted_ns else 0
    return Terms(
        item.state.number,
        number_of(head.sequence),
        max(0, elapsed_ns),
        head.deadline_ns,
        head.capture_ns,
        head.max_age_ns,
    )


def _refused(error: Exception) -> Answer:
    return Answer(Counter.REMOTE_FAILED, Status.REJECTED, client_message(error))
