"""Slot memory in the caller's hands: an observation to fill in, a reply to read in place."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, final

from shmserve.errors import LoanEnded, LoanOutlived

from .exchange import Exchange
from .lending import LentSlot
from .pending import Pending
from .terms import Terms


@final
class LoanedObservation(dict[str, Any]):
    """An observation whose arrays are memory of the next request slot: fill them in, then `send`.

    Entries may also be replaced: what is not the slot's own array in its place is copied in by `send`.
    After `send` the arrays belong to the service until the reply is there. Only this object keeps the
    slot: its arrays alone do not.
    """

    def __init__(self, exchange: Exchange, slot: LentSlot, tree: dict[str, Any], terms: Terms, timeout_ns: int) -> None:
        super().__init__(tree)
        self._exchange = exchange
        self._slot = slot
        self._terms = terms
        self._timeout_ns = timeout_ns
        self._sent = False
        self._left = False

    def send(self) -> Pending:
        """Publish the observation; its deadline counts from now.

        Raises LoanEnded if it was sent or given back before, RequestRejected (UnsupportedType) for entries
        that cannot be carried or have outgrown the slot, ServiceUnavailable if the daemon went away
        meanwhile, ClientClosed.
        """
        if self._sent:
            raise LoanEnded("this loan was sent already: borrow another")
        now_ns = time.monotonic_ns()
        pending = Pending(self._exchange, now_ns, now_ns + self._timeout_ns)
        self._exchange.send_borrowed(pending, self._slot, dict(self), self._terms)
        self._sent = True
        return pending

    def __enter__(self) -> LoanedObservation:
        self._exchange.check_owner()
        if self._left:
            raise LoanEnded("the block of this loan was left: borrow another")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        if not self._sent:
            self._exchange.give_back(self._slot)
        self.clear()


class LentReply:
    """A reply in its slot: read-only arrays, valid until the block ends."""

    def __init__(self, exchange: Exchange, pending: Pending) -> None:
        self._exchange = exchange
        self._sequence = pending.sequence
        self._tree, self._loan = pending.result()
        pending._result = None
        self._entered = False

    def __enter__(self) -> Any:
        self._exchange.check_owner()
        if self._entered:
            raise LoanEnded("the block of this reply was entered before, and is entered once: infer again")
        self._entered = True
        return self._tree

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tree, self._tree = self._tree, None
        if isinstance(tree, (dict, list)):
            tree.clear()  # the block's own variable still names it
        del tree
        self._exchange.return_reply(self._sequence)
        kept = self._loan is not None and self._loan.kept()
        if kept and error is None:
            raise LoanOutlived(
                "an array of the reply outlived its block: it now shows whatever the slot holds next; "
                "copy what you keep (array.copy()), or leave copy=False away"
            )
