"""Decoding of a reply in its slot: into a result, a result on loan, or an error."""

from __future__ import annotations

from typing import Any

from shmserve.codec import Decoder, LeafReader, SlotMemory
from shmserve.errors import InferenceFailed, OutOfMemory, ProtocolMismatch, ShmServeError
from shmserve.layout import number_of
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead

from .error_mapping import READ_ERRORS, reply_error
from .loans import ReplyLoan
from .pending import Pending

#: Plain numbers: looking a member up for each request costs 0.1 us, and comparing with one as much again.
_OK, _PICKLED = int(Status.OK), int(Flag.PICKLED)


def decode_reply(
    service: str, decoder: Decoder, memory: SlotMemory, pending: Pending, head: ReplyHead
) -> tuple[Any, ShmServeError | None]:
    """Return the result and the error of a reply of any status but RESIZE_REQUIRED."""
    in_slot = head.schema, head.metadata_bytes, head.payload_bytes, head.flags & _PICKLED != 0
    read_leaf: LeafReader | None = None
    loan: ReplyLoan | None = None
    if pending._loan_thread and head.status == _OK:
        loan = ReplyLoan(pending._owner, head.sequence, memory, pending._loan_thread)
        if not in_slot[-1]:
            read_leaf = loan.read_leaf
    try:
        tree = decoder.decode(memory, *in_slot, read_leaf)
    except MetadataError as error:
        return None, ProtocolMismatch(f"the reply of {service!r} cannot be read: {error}", service=service)
    except MemoryError as error:
        number = number_of(head.sequence)
        return None, OutOfMemory(
            f"this process has no memory for the result of request {number} to {service!r}: {error}",
            service=service,
            request_id=number,
        )
    except Exception as error:  # unpickling runs the code of the object's own type
        if not in_slot[-1]:
            if not isinstance(error, READ_ERRORS):
                raise  # a signal handler's: the reply stays where it is
            return None, ProtocolMismatch(f"the reply of {service!r} cannot be read: {error!r}", service=service)
        why = f"{type(error).__name__}: {error}"
        return None, InferenceFailed(
            f"the model returned an object that this process cannot unpickle: {why}",
            service=service,
            request_id=number_of(head.sequence),
        )
    if head.status != _OK:
        return None, reply_error(service, head, tree)
    if loan is None:
        return tree, None
    # The caller's variable outlives the block, and only a dict or a list can be emptied under it.
    lends = read_leaf is not None and isinstance(tree, (dict, list))
    loan.hold(tree if lends else decoder.decode(memory, *in_slot), in_slot=lends)
    return loan, None
