"""Decoding of replies: the result or the error of each status, on slot memory without a daemon."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from shmserve.client.loans import ReplyLoan
from shmserve.client.request_table import decode_reply
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.errors import (
    EngineLost,
    InferenceFailed,
    ObservationStale,
    OutOfMemory,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    ServiceStopping,
    ShmServeError,
)
from shmserve.layout import sequence_of
from shmserve.metadata import Leaf, dump
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead
from tests.support.channel_ends import new_pending


class Unreadable:
    """Unpickles with an error."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def slot() -> SlotMemory:
    return SlotMemory(np.zeros(4096, np.uint8), np.zeros(4096, np.uint8))


def written(tree: Any, status: Status = Status.OK, **words: int) -> tuple[SlotMemory, ReplyHead]:
    """Return a slot with this tree, and its head."""
    memory = slot()
    encoder = Encoder()
    encoder.allow_pickle = True
    encoded = encoder.encode(tree, memory)
    head = ReplyHead(
        **{
            **dict.fromkeys(ReplyHead._fields, 0),
            "sequence": sequence_of(7, 1),
            "status": int(status),
            "flags": Flag.PICKLED if encoded.pickled else 0,
            "schema": encoded.schema,
            "metadata_bytes": encoded.metadata_bytes,
            "payload_bytes": encoded.payload_bytes,
            **words,
        }
    )
    return memory, head


def decode(
    memory: SlotMemory, head: ReplyHead, *, decoder: Decoder | None = None, loan_thread: int = 0
) -> tuple[Any, ShmServeError | None]:
    return decode_reply("arm", decoder or Decoder(), memory, new_pending(loan_thread=loan_thread), head)


@pytest.mark.parametrize("tree", [None, 5, "text", [1, (2.5, True)], {"deep": {"bytes": b"abc"}}])
def test_the_result_of_a_reply_is_its_tree(tree: Any) -> None:
    assert decode(*written(tree)) == (tree, None)


@pytest.mark.parametrize("known", [False, True])
def test_the_arrays_of_a_result_are_the_callers_own(known: bool) -> None:
    memory, head = written({"joints": np.arange(3.0)})
    decoder = Decoder()
    if known:
        decode(memory, head, decoder=decoder)

    found, error = decode(memory, head, decoder=decoder)
    memory.payload[:] = 255

    assert error is None
    assert found["joints"].tolist() == [0, 1, 2]
    found["joints"][0] = 9


@pytest.mark.parametrize(
    ("status", "tree", "kind", "text"),
    [
        (Status.FAILED, ("LookupError", "no such joint"), InferenceFailed, "LookupError: no such joint"),
        (Status.REJECTED, ("", "too large"), RequestRejected, "too large"),
        (Status.EXPIRED, None, RequestTimeout, "expired before its turn"),
        (Status.STALE, None, ObservationStale, "too old"),
        (Status.CANCELLED, None, RequestCancelled, "cancelled"),
        (Status.SUPERSEDED, None, RequestSuperseded, "newer"),
        (Status.ENGINE_LOST, ("", "it was killed"), EngineLost, "it was killed"),
        (Status.STOPPING, None, ServiceStopping, "stopping"),
    ],
)
def test_each_other_status_is_an_error_that_names_the_request(
    status: Status, tree: Any, kind: type[ShmServeError], text: str
) -> None:
    result, error = decode(*written(tree, status), loan_thread=1)

    assert result is None
    assert type(error) is kind
    assert text in str(error) and error.request_id == 7 and error.service == "arm"


@pytest.mark.parametrize(
    "words",
    [
        {"payload_bytes": 5},
        {"payload_bytes": 1 << 40},
        {"metadata_bytes": 1 << 40},
        {"metadata_bytes": 3},
        {"schema": 99, "metadata_bytes": 0},
    ],
)
def test_a_head_that_contradicts_its_slot_is_a_protocol_error(words: dict[str, int]) -> None:
    memory, head = written({"joints": np.arange(3.0)}, Status.OK, **words)

    result, error = decode(memory, head)

    assert result is None
    assert type(error) is ProtocolMismatch and "'arm' cannot be read" in str(error)


def test_a_pickle_of_a_peer_that_is_not_trusted_is_not_loaded() -> None:
    memory, head = written({"what": Unreadable()})
    assert head.flags == Flag.PICKLED

    result, error = decode(memory, head)

    assert result is None
    assert type(error) is ProtocolMismatch and "not trusted" in str(error)


def test_a_pickle_that_cannot_be_loaded_fails_the_request() -> None:
    result, error = decode(*written({"what": Unreadable()}), decoder=Decoder(allow_pickle=True))

    assert result is None
    assert isinstance(error, ShmServeError) and error.request_id == 7
    assert type(error) is InferenceFailed and "unpickle" in str(error)


class FailingDecoder(Decoder):
    """Raises while a reply is read, as a signal handler does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def decode(self, *arguments: Any, **named: Any) -> Any:
        raise self.error


def test_memory_that_is_not_there_is_an_error_of_the_request() -> None:
    _, error = decode(*written(1), decoder=FailingDecoder(MemoryError("none")))

    assert type(error) is OutOfMemory and error.request_id == 7


def test_an_error_of_a_signal_handler_belongs_to_the_caller() -> None:
    with pytest.raises(OSError, match="of the handler"):
        decode(*written(1), decoder=FailingDecoder(OSError("of the handler")))


@pytest.mark.parametrize(
    ("tree", "in_slot"), [({"x": np.arange(3)}, True), ([np.arange(3)], True), (np.arange(3), False), (5, False)]
)
def test_a_request_of_a_loan_gets_a_loan_in_the_slot_where_its_tree_can_be_emptied(tree: Any, in_slot: bool) -> None:
    loan, error = decode(*written(tree), loan_thread=3)

    assert error is None
    assert type(loan) is ReplyLoan
    assert (loan.in_slot, loan.thread, loan.sequence) == (in_slot, 3, sequence_of(7, 1))


def test_a_pickled_result_on_loan_is_copied() -> None:
    loan, error = decode(*written({"what": complex(1, 2)}), decoder=Decoder(allow_pickle=True), loan_thread=3)

    assert error is None
    assert cast(ReplyLoan, loan).in_slot is False
    assert cast(ReplyLoan, loan)._tree == {"what": complex(1, 2)}


@pytest.mark.parametrize("loan", [False, True])
def test_a_result_in_gpu_memory_is_refused(loan: bool) -> None:
    metadata = dump({"action": Leaf("device", "<f4", 1), "step": Leaf("int", "<i8", 0)})
    memory, head = written({"action": np.zeros(0, np.float32), "step": 3})
    memory.metadata[: len(metadata)] = np.frombuffer(metadata, np.uint8)
    memory.payload[:8].view(np.uint64)[0] = 2
    pending = new_pending(loan_thread=1 if loan else 0)

    result, error = decode_reply(
        "arm", Decoder(), memory, pending, head._replace(metadata_bytes=len(metadata), payload_bytes=16)
    )

    assert result is None
    assert isinstance(error, ProtocolMismatch) and "lies in GPU memory" in str(error)
