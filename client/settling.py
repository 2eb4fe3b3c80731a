"""Turns a reply in its slot into what its caller gets: a result, a lent result, or an error."""

from __future__ import annotations

import struct
import weakref

from shmserve.codec import LeafReader
from shmserve.errors import InferenceFailed, OutOfMemory, ProtocolMismatch
from shmserve.layout import number_of, slot_of
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead

from .attachment import Attachment
from .lending import LentTree
from .pending import Pending
from .reply_errors import reply_error

#: Plain numbers: looking a member up for each request costs 0.1 us, and comparing with one as much again.
_OK, _PICKLED = int(Status.OK), int(Flag.PICKLED)

#: What is raised where an observation or a reply is read. Not every exception, and no OSError: a signal handler of the
#: caller's may raise its own there, and that is the caller's to have.
READ_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    BufferError,
    MemoryError,
    struct.error,
)


def settle(service: str, attachment: Attachment, pending: Pending, head: ReplyHead) -> None:
    """End `pending` with the reply that `head` tells of; any status but RESIZE_REQUIRED."""
    memory = attachment.channel.replies.memories[slot_of(head.sequence)]
    in_slot = head.schema, head.metadata_bytes, head.payload_bytes, head.flags & _PICKLED != 0
    lends = pending._lend and head.status == _OK
    read_leaf: LeafReader | None = None
    loan: LentTree | None = None
    if lends and not in_slot[-1]:
        loan = LentTree(memory, pending._lend)
        read_leaf = loan.read_leaf
    try:
        tree = attachment.decoder.decode(memory, *in_slot, read_leaf)
    except MetadataError as error:
        pending._settle(None, ProtocolMismatch(f"the reply of {service!r} cannot be read: {error}"), head)
        return
    except MemoryError as error:
        number = number_of(head.sequence)
        text = f"this process has no memory for the result of request {number} to {service!r}: {error}"
        pending._settle(None, OutOfMemory(text), head)
        return
    except Exception as error:  # unpickling runs the code of the object's own type
        if not in_slot[-1]:
            if not isinstance(error, READ_ERRORS):
                raise  # a signal handler's: the reply stays where it is
            pending._settle(None, ProtocolMismatch(f"the reply of {service!r} cannot be read: {error!r}"), head)
            return
        why = f"{type(error).__name__}: {error}"
        text = f"the model returned an object that this process cannot unpickle: {why}"
        pending._settle(None, InferenceFailed(text), head)
        return
    if lends:
        if loan is not None and isinstance(tree, (dict, list)):
            attachment.lent[head.sequence] = weakref.ref(loan)
        else:
            # The caller's variable outlives the block, and only a dict or a list can be emptied under it.
            tree, loan = attachment.decoder.decode(memory, *in_slot), None
        tree = (tree, loan)
    if head.status == _OK:
        pending._settle(tree, None, head)
    else:
        pending._settle(None, reply_error(service, head, tree), head)
