"""Slot memory on loan to the caller: an observation to fill in, a reply to read in place.

The request table refers to both weakly: a loan that is lost, by an interrupt or by a caller who never entered its block,
has ended, and its slot is free again.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from shmserve.carried_values import BFLOAT16
from shmserve.codec import SlotMemory, owned_leaf
from shmserve.errors import LoanEnded, LoanOutlived
from shmserve.layout import number_of
from shmserve.schema import Array, LeafPlace

from .pending import Pending, RequestOwner
from .request_options import RequestOptions


class RequestLender(Protocol):
    """The pipeline that lends a request slot."""

    def send_loan(self, loan: RequestLoan, observation: dict[str, Any]) -> Pending:
        """Publish the slot; its deadline counts from now."""

    def release_loan(self, loan: RequestLoan) -> None:
        """Let the slot be used again."""

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child."""


@final
class RequestLoan(dict[str, Any]):
    """An observation whose arrays are memory of the next request slot: fill them in, then `send`.

    Entries may also be replaced: `send` copies in every entry that is not the slot's own array in its place.
    After `send` the arrays belong to the service until the reply arrives. Only this object keeps the slot: its arrays
    alone do not.
    """

    def __init__(
        self,
        lender: RequestLender,
        connection: object,
        sequence: int,
        arrays: list[Array],
        options: RequestOptions,
        timeout_ns: int,
    ) -> None:
        super().__init__()
        self._lender = lender  # first: it refuses to be pickled
        #: The connection that the slot belongs to, compared by identity.
        self.connection = connection
        self.sequence = sequence
        self.thread = threading.get_ident()
        self.options = options
        self.timeout_ns = timeout_ns
        self._arrays = arrays
        self._state = "on loan"
        self._left = False

    def send(self) -> Pending:
        """Publish the observation; its deadline counts from now.

        Raises LoanEnded if it was sent or released before, RequestRejected (UnsupportedType) for entries
        that cannot be carried or have outgrown the slot, ServiceUnavailable if the daemon went away
        meanwhile, ClientClosed.
        """
        if self._state == "sent":
            raise LoanEnded("this loan was sent already: borrow another")
        pending = self._lender.send_loan(self, dict(self))
        self._state = "sent"
        return pending

    def release(self) -> None:
        """Give the slot back without a request; nothing happens if it was sent or released before."""
        if self._state != "sent":
            self._state = "released"
            self._lender.release_loan(self)

    def end(self) -> None:
        """Make the arrays read-only: the slot belongs to another request from now on."""
        for array in self._arrays:
            array.flags.writeable = False

    def __enter__(self) -> RequestLoan:
        self._lender.check_owner()
        if self._left:
            raise LoanEnded("the block of this loan was left: borrow another")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self.release()
        self.clear()

    def __repr__(self) -> str:
        return f"<RequestLoan #{number_of(self.sequence)} {self._state}>"


@final
class ReplyLoan:
    """A reply in its slot: read-only arrays, valid until the block ends."""

    def __init__(self, owner: RequestOwner, sequence: int, memory: SlotMemory, thread: int) -> None:
        self.sequence = sequence
        self.thread = thread
        #: Whether the tree is slot memory; other results are copied, and their slot is free at once.
        self.in_slot = False
        self._owner = owner
        self._raw = memory.raw.toreadonly()
        self._roots: list[weakref.ref[Array]] = []
        self._tree: Any = None
        self._state = "on loan"

    def hold(self, tree: Any, *, in_slot: bool) -> None:
        """Set what the block gets."""
        self._tree = tree
        self.in_slot = in_slot

    def read_leaf(self, place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
        """Return a leaf of the reply's tree; an array is read-only slot memory."""
        if place.kind != "array" or place.dtype == BFLOAT16 or not place.size:
            return owned_leaf(place, payload)
        # numpy hangs a view of a view on the first array of the chain, so this one lives as long as any of them.
        root = np.frombuffer(self._raw, np.uint8, place.size, place.offset)
        self._roots.append(weakref.ref(root))
        return root.view(place.stored_as).reshape(place.shape)

    def release(self) -> None:
        """Let the slot be used again; the arrays must not be read after this."""
        self._state = "released"
        tree, self._tree = self._tree, None
        if isinstance(tree, (dict, list)):
            tree.clear()  # the block's own variable still names it
        del tree
        self._owner.release_reply(self.sequence)

    def __enter__(self) -> Any:
        self._owner.check_owner()
        if self._state != "on loan":
            raise LoanEnded("the block of this reply was entered before, and is entered once: infer again")
        self._state = "entered"
        return self._tree

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if error is None and self.in_slot and any(root() is not None for root in self._roots):
            raise LoanOutlived(
                "an array of the reply outlived its block: it now shows whatever the slot holds next; "
                "copy what you keep (array.copy()), or use infer, which copies all of it"
            )

    def __repr__(self) -> str:
        return f"<ReplyLoan #{number_of(self.sequence)} {self._state}>"
