"""Errors of a daemon and of a reply as typed exceptions: class, text and attributes."""

from __future__ import annotations

from typing import Any

import pytest

from shmserve.client.contract_check import check_observation
from shmserve.client.error_mapping import INTERFACE, daemon_error, exhausted_error, reply_error
from shmserve.errors import (
    ClientEvicted,
    ContractMismatch,
    EngineLost,
    InferenceFailed,
    ObservationTooLarge,
    ProtocolMismatch,
    RequestRejected,
    ServiceUnavailable,
    ShmServeError,
    TooManyRequests,
    ValueOutOfRange,
)
from shmserve.layout import sequence_of
from shmserve.protocol import Status
from shmserve.ring import ReplyHead
from shmserve.varlink import VarlinkError


def refused(reason: str, **facts: Any) -> ShmServeError:
    return daemon_error("arm", VarlinkError(f"{INTERFACE}.Refused", {"reason": reason, "message": "no", **facts}))


def reply(status: Status, kind: str = "", text: str = "") -> ShmServeError:
    fields = dict.fromkeys(ReplyHead._fields, 0)
    head = ReplyHead(**{**fields, "sequence": sequence_of(7, 2), "status": int(status)})
    return reply_error("arm", head, (kind, text) if kind else None)


def test_a_refusal_for_its_size_names_the_bytes() -> None:
    error = refused("too_large", needed_bytes=900, limit_bytes=800)

    assert isinstance(error, ObservationTooLarge)
    assert (error.service, error.needed_bytes, error.limit_bytes) == ("arm", 900, 800)


def test_a_refusal_for_want_of_memory_names_its_reason_and_the_bytes() -> None:
    error = refused("no_shared_memory", needed_bytes=900, limit_bytes=800, retry_after_s=None)

    assert isinstance(error, ServiceUnavailable)
    assert (error.reason, error.needed_bytes, error.limit_bytes) == ("no_shared_memory", 900, 800)
    assert error.retry_after is None


@pytest.mark.parametrize(("facts", "retry_after"), [({"retry_after_s": 12}, 12.0), ({}, None)])
def test_a_banned_process_learns_when_it_may_attach_again(facts: dict[str, Any], retry_after: float | None) -> None:
    error = refused("evicted", **facts)

    assert isinstance(error, ClientEvicted)
    assert (error.service, error.reason, error.retry_after) == ("arm", "evicted", retry_after)


@pytest.mark.parametrize("value", ["9", [9], {"of": 9}, True, 0.5])
def test_a_number_of_bytes_that_is_not_one_is_left_out(value: Any) -> None:
    error = refused("too_large", needed_bytes=value, limit_bytes=None)

    assert isinstance(error, ObservationTooLarge)
    assert (error.needed_bytes, error.limit_bytes) == (None, None)


def test_a_daemon_of_another_wire_version_is_named_by_it() -> None:
    error = daemon_error("arm", VarlinkError(f"{INTERFACE}.ProtocolMismatch", {"wire_version": 99}))

    assert isinstance(error, ProtocolMismatch)
    assert (error.service, error.wire_version) == ("arm", 99)


@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.OK, Status.RESIZE_REQUIRED)])
def test_every_reply_that_is_an_error_names_its_service_and_its_request(status: Status) -> None:
    error = reply(status, "ValueError", "too hot")

    assert (error.service, error.request_id) == ("arm", 7)


def test_the_exception_of_the_model_is_there_as_type_and_text() -> None:
    error = reply(Status.FAILED, "ValueError", "too hot")

    assert isinstance(error, InferenceFailed)
    assert (error.model_error_type, error.model_error_message) == ("ValueError", "too hot")
    assert "the model raised ValueError: too hot" in str(error)


def test_the_death_of_an_engine_names_its_reason() -> None:
    error = reply(Status.ENGINE_LOST, "EngineLost", "killed by signal 9")

    assert isinstance(error, EngineLost)
    assert error.reason == "killed by signal 9"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ValueOutOfRange", ValueOutOfRange), ("TooManyRequests", TooManyRequests), ("else", RequestRejected)],
)
def test_a_rejected_request_has_the_class_that_the_engine_named(kind: str, expected: type[ShmServeError]) -> None:
    error = reply(Status.REJECTED, kind, "because")

    assert type(error) is expected
    assert "because" in str(error)


def test_a_mismatch_with_the_contract_lists_its_differences() -> None:
    contract = {"observation": {"joints": {"dtype": "float32", "shape": [7]}, "speed": {"type": "float"}}}
    model = {"name": "reach", "version": "7c6b9c", "contract": contract}

    with pytest.raises(ContractMismatch) as raised:
        check_observation("arm", model, {"joints": [1, 2]})

    error = raised.value
    assert (error.service, error.model, error.model_version) == ("arm", "reach", "7c6b9c")
    assert len(error.differences) == 2
    assert all(difference in str(error) for difference in error.differences)
    assert any("joints" in difference for difference in error.differences)


def test_exhausted_slots_are_counted() -> None:
    for resize in (False, True):
        error = exhausted_error("arm", 4, resize=resize)
        assert (error.service, error.slots) == ("arm", 4)
