"""Loans of request and reply slots: what each end of a loan allows afterwards, without a daemon."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from shmserve.client.loans import ReplyLoan, RequestLoan
from shmserve.client.pending import Pending
from shmserve.client.request_options import DEFAULT_OPTIONS
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.errors import ClientForked, LoanEnded, LoanOutlived, RequestRejected
from shmserve.layout import sequence_of
from tests.support.channel_ends import new_pending


class Owner:
    """Lends request and reply slots; notes what comes back."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.released: list[Any] = []
        self.refusal: Exception | None = None
        self.forked = False

    def send_loan(self, loan: RequestLoan, observation: dict[str, Any]) -> Pending:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append(observation)
        return new_pending()

    def release_loan(self, loan: RequestLoan) -> None:
        self.released.append(loan)

    def release_reply(self, sequence: int) -> None:
        self.released.append(sequence)

    def check_owner(self) -> None:
        if self.forked:
            raise ClientForked("the parent's")


@pytest.fixture
def owner() -> Owner:
    return Owner()


def request_loan(owner: Owner) -> RequestLoan:
    loan = RequestLoan(owner, None, sequence_of(7, 1), [np.zeros(3)], DEFAULT_OPTIONS, 0)
    loan["x"] = 1
    return loan


def test_a_loan_is_sent_once_and_not_released_after_it(owner: Owner) -> None:
    with request_loan(owner) as loan:
        assert repr(loan) == "<RequestLoan #7 on loan>"
        loan.send()
        assert repr(loan) == "<RequestLoan #7 sent>"
        with pytest.raises(LoanEnded, match="sent already"):
            loan.send()
        loan.release()

    assert (owner.sent, owner.released, dict(loan)) == ([{"x": 1}], [], {})


def test_a_loan_that_could_not_be_sent_may_be_sent_again(owner: Owner) -> None:
    loan = request_loan(owner)
    owner.refusal = RequestRejected("no")
    with pytest.raises(RequestRejected):
        loan.send()
    owner.refusal = None

    loan.send()
    assert owner.sent == [{"x": 1}]


@pytest.mark.parametrize("error", [None, KeyError("of the block")])
def test_a_block_that_is_left_without_sending_releases_the_slot(owner: Owner, error: Exception | None) -> None:
    loan = request_loan(owner)
    try:
        with loan:
            if error is not None:
                raise error
    except KeyError as raised:
        assert raised is error
    with pytest.raises(LoanEnded, match="was left"):
        loan.__enter__()

    assert owner.released == [loan]
    assert repr(loan) == "<RequestLoan #7 released>"
    assert dict(loan) == {}


def test_the_arrays_of_a_loan_that_has_ended_are_read_only() -> None:
    array = np.zeros(3)
    loan = RequestLoan(cast(Any, None), None, 0, [array], DEFAULT_OPTIONS, 0)

    loan.end()

    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def reply_loan(owner: Owner, tree: Any) -> ReplyLoan:
    """Lend a tree that lies in a slot, read as the request table reads it."""
    memory = SlotMemory(np.zeros(4096, np.uint8), np.zeros(4096, np.uint8))
    encoded = Encoder().encode(tree, memory)
    loan = ReplyLoan(cast(Any, owner), sequence_of(7, 1), memory, 1)
    found = Decoder().decode(memory, *encoded[:3], False, loan.read_leaf)
    loan.hold(found, in_slot=True)
    return loan


def test_a_block_reads_the_slot_itself_and_gives_it_back(owner: Owner) -> None:
    loan = reply_loan(owner, {"joints": np.arange(3.0), "text": "a"})
    with loan as action:
        assert action["joints"].tolist() == [0, 1, 2] and action["text"] == "a"
        with pytest.raises(ValueError, match="read-only"):
            action["joints"][0] = 1
        assert owner.released == []

    assert owner.released == [loan.sequence]
    assert action == {}
    assert repr(loan) == "<ReplyLoan #7 released>"


@pytest.mark.parametrize("keep", ["array", "part", "view"])
def test_an_array_that_outlives_its_block_is_an_error(owner: Owner, keep: str) -> None:
    kept: list[Any] = []
    with (
        pytest.raises(LoanOutlived, match="copy what you keep"),
        reply_loan(owner, {"joints": np.arange(3.0)}) as action,
    ):
        joints = action["joints"]
        kept.append({"array": joints, "part": joints[:1], "view": joints.view(np.uint8)}[keep])
        del joints

    assert owner.released == [sequence_of(7, 1)]


def test_an_error_of_the_block_is_not_replaced_by_the_one_about_its_arrays(owner: Owner) -> None:
    kept: list[Any] = []
    with pytest.raises(KeyError), reply_loan(owner, {"joints": np.arange(3.0)}) as action:
        kept.append(action["joints"])
        raise KeyError

    assert owner.released == [sequence_of(7, 1)]


def test_a_copy_may_outlive_the_block(owner: Owner) -> None:
    with reply_loan(owner, {"joints": np.arange(3.0)}) as action:
        kept = action["joints"].copy()

    assert kept.tolist() == [0, 1, 2]


def test_the_block_of_a_reply_is_entered_once(owner: Owner) -> None:
    loan = reply_loan(owner, {"n": 1})
    with loan, pytest.raises(LoanEnded, match="entered before"):
        loan.__enter__()
    with pytest.raises(LoanEnded, match="entered before"):
        loan.__enter__()


@pytest.mark.parametrize("lend", [request_loan, lambda owner: reply_loan(owner, {"n": 1})], ids=["request", "reply"])
def test_a_forked_child_enters_no_loan(owner: Owner, lend: Any) -> None:
    loan = lend(owner)
    owner.forked = True

    with pytest.raises(ClientForked):
        loan.__enter__()
