"""Serving of a link: each request goes to the remote model in a separate call, and to the fallback if that does not answer."""

from __future__ import annotations

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
from ..models.remote import Answer, Batch, RemoteModel, Terms
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

    def report_change(self) -> None:
        """Report the link's state if it has changed."""
        if (state := self._remote.change()) is not None:
            self._report(state)

    def _infer(self, items: list[BatchItem]) -> None:
        began_ns = time.monotonic_ns()
        if len(items) > 1:
            self._note_in_hand([item.state for item in items])
        batch = Batch(self._remote)
        answers = [self._begin(batch, index, item) for index, item in enumerate(items)]
        self._answer_locally(
            [
                item
                for item, answer in zip(items, answers, strict=True)
                if answer is not None and not self._settled(item, answer, began_ns)
            ],
            began_ns,
        )
        while len(batch):
            # Each as it comes: a late one delays no other robot.
            index, answer = batch.next()
            if not self._settled(items[index], answer, began_ns):
                self._answer_locally([items[index]], began_ns)
        self.report_change()

    def _begin(self, batch: Batch, index: int, item: BatchItem) -> Answer | None:
        try:
            return batch.begin(index, item.observation, _terms(item))
        except Exception as error:  # noqa: BLE001  an observation that no message carries
            return Answer(Counter.REMOTE_FAILED, Status.REJECTED, client_message(error))

    def _settled(self, item: BatchItem, answer: Answer, began_ns: int) -> bool:
        """Give a robot the remote's answer; return False if the fallback has to answer instead."""
        self._words[answer.counter] += 1
        if not answer.is_final:
            return False
        infer_ns = time.monotonic_ns() - began_ns
        with _Source(self, Flag.REMOTE, self._remote.remote_version):
            if answer.status == Status.OK:
                self._words[Counter.BATCHES] += 1
                self._reply(item, [answer.tree], 0, infer_ns)
            else:
                times = (item.queued_ns, item.staged_ns, infer_ns)
                self._finish(item.state, item.head, answer.status, answer.tree, 0, *times)
                self._release(item)
        return True

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
