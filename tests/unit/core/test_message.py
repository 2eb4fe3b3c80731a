"""Messages for another machine: every tree to the bit, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from shmserve.errors import RequestRejected, UnsupportedType
from shmserve.layout import MAX_METADATA_BYTES
from shmserve.message import (
    HEAD_BYTES,
    MAX_MESSAGE_BYTES,
    NOTHING,
    REPLY_HEAD,
    REQUEST_HEAD,
    Kind,
    MessageError,
    Packer,
    Reply,
    Request,
    read_reply,
    read_request,
)
from shmserve.metadata import MetadataError
from shmserve.protocol import Status
from tests.support.same_trees import assert_same
from tests.support.trees import trees

pytestmark = pytest.mark.pure_too

_ASK = Request(Kind.INFER, 0, (1 << 64) - 1, 0xC5, 3, 80_000_000, 4_000_000, 9)
_TREE = {"state": np.arange(3, dtype=np.float32), "task": "pick", "step": 7}


def with_word(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + struct.pack("<Q", value) + data[offset + 8 :]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(trees())
def test_any_observation_arrives_to_the_bit(tree: Any) -> None:
    try:
        data = Packer("observation").request(_ASK, tree)
    except RequestRejected:  # what only a pickle carries
        return

    head, found = read_request(data)

    assert head == _ASK
    assert_same(found, tree)


def test_a_reply_carries_an_action_its_times_and_its_version() -> None:
    head = Reply(Status.OK, 0, 0x3F9C2D17A0B14E55, 0xC5, 1000, 2000)

    found, action = read_reply(Packer("action").reply(head, {"action": torch.tensor([1.0, 2.0])}))

    assert found == head
    np.testing.assert_array_equal(action["action"], np.array([1, 2], np.float32), strict=True)


def test_none_is_an_action_and_nothing_is_no_tree() -> None:
    packer = Packer("action")

    assert read_reply(packer.reply(Reply(Status.OK), None))[1] is None
    assert read_reply(packer.reply(Reply(Status.OK)))[1] is NOTHING


def test_an_error_is_its_type_and_text() -> None:
    data = Packer("action").reply(Reply(Status.FAILED), ("ValueError", "no such joint"))

    assert read_reply(data) == (Reply(Status.FAILED), ("ValueError", "no such joint"))
    with pytest.raises(MessageError, match="whose tree is not"):
        read_reply(Packer("action").reply(Reply(Status.FAILED), {"text": "no"}))


def test_a_message_is_the_same_whatever_the_packer_sent_before() -> None:
    used = Packer("observation")
    used.request(_ASK, {"image": np.full(200_000, 0xFF, np.uint8), "state": np.full(9, 0xFF, np.uint8)})
    tree = {"image": np.zeros(70, np.uint8), "state": np.ones(3, np.uint8)}

    assert used.request(_ASK, tree) == Packer("observation").request(_ASK, tree)


def test_a_message_may_lie_anywhere_in_memory() -> None:
    data = Packer("observation").request(_ASK, _TREE)

    for offset in range(1, 9):
        held = bytes(memoryview(b"x" * offset + data)[offset:])
        assert_same(read_request(held)[1], _TREE)


def test_every_shorter_and_longer_message_is_refused() -> None:
    data = Packer("observation").request(_ASK, _TREE)

    for length in range(len(data)):
        with pytest.raises(MetadataError):
            read_request(data[:length])
    with pytest.raises(MessageError, match=f"of {len(data) + 1} bytes, whose head says {len(data)}"):
        read_request(data + b"\0")


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        ("magic", 0, "bytes that are no request"),
        ("message_version", 2, "install the same shmserve on both sides"),
        ("kind", 9, "unknown kind 9"),
        ("kind", int(Kind.PROBE), "with a tree"),
        ("flags", 2, "unknown flags 0x2"),
        ("metadata_bytes", 0, "bytes, whose head says"),
        ("metadata_bytes", MAX_METADATA_BYTES + 1, "bytes of metadata"),
        ("payload_bytes", 1 << 63, "of payload"),
        ("payload_bytes", 3, "bytes, whose head says"),
    ],
)
def test_a_request_with_a_wrong_word_is_refused(word: str, value: int, said: str) -> None:
    data = Packer("observation").request(_ASK, _TREE)

    with pytest.raises(MessageError, match=said):
        read_request(with_word(data, REQUEST_HEAD.offset(word), value))


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        ("status", 77, "unknown status 77"),
        ("status", int(Status.RESIZE_REQUIRED), "status 1"),
        ("flags", 1, "flags 0x1"),
    ],
)
def test_a_reply_with_a_wrong_word_is_refused(word: str, value: int, said: str) -> None:
    data = Packer("action").reply(Reply(Status.OK), _TREE)

    with pytest.raises(MessageError, match=said):
        read_reply(with_word(data, REPLY_HEAD.offset(word), value))


def test_a_request_is_no_reply() -> None:
    with pytest.raises(MessageError, match="no reply"):
        read_reply(Packer("observation").request(_ASK, _TREE))


def test_a_request_to_infer_needs_an_observation() -> None:
    with pytest.raises(MessageError, match="without a tree"):
        read_request(Packer("observation").request(_ASK))


def test_wrong_metadata_is_refused_by_the_slots_reader() -> None:
    data = Packer("observation").request(_ASK, _TREE)

    with pytest.raises(MetadataError):
        read_request(data[:HEAD_BYTES] + b"\x80\x04" + data[HEAD_BYTES + 2 :])


def test_what_only_a_pickle_carries_is_refused() -> None:
    with pytest.raises(UnsupportedType):
        Packer("observation").request(_ASK, {"robot": object()})


def test_an_observation_beyond_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(RequestRejected, match="send less"):
        Packer("observation").request(_ASK, np.zeros(MAX_MESSAGE_BYTES, np.uint8))
