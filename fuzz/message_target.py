"""Fuzz target for the reader of messages from another machine: any bytes are read or refused, as a request and as a reply.

What was read makes a message again, and that message is read as the same head and tree.
"""

from __future__ import annotations

import pickle
from typing import Any

from fuzz.observations import TREES
from fuzz.target import Target
from shmserve.errors import RequestRejected
from shmserve.message import NOTHING, Kind, MessageError, Packer, Reply, Request, read_reply, read_request
from shmserve.metadata import MetadataError
from shmserve.protocol import Status

_packer = Packer("tree")


def run(data: bytes) -> None:
    for read, write in ((read_request, _packer.request), (read_reply, _packer.reply)):
        try:
            head, tree = read(data)
        except MetadataError:
            continue
        try:
            again = write(head, tree)  # type: ignore[arg-type]
        except RequestRejected:
            continue  # more entries than a message may be written with
        head_again, tree_again = read(again)
        assert head_again == head, "the head changes"
        assert _bytes_of(tree_again) == _bytes_of(tree), "the tree changes"


def _bytes_of(tree: Any) -> bytes:
    return b"" if tree is NOTHING else pickle.dumps(tree, 5)


def seeds() -> list[bytes]:
    packer = Packer("tree")
    found = [packer.request(Request(Kind.DESCRIBE, version=7)), packer.request(Request(Kind.PROBE, number=1))]
    found += [packer.reply(Reply(Status.FAILED), ("ValueError", "no")), packer.reply(Reply(Status.EXPIRED))]
    for tree in TREES:
        try:
            found.append(packer.request(Request(Kind.INFER, 0, 7, 64, 2, 80_000_000, 5_000_000, 9), tree))
            found.append(packer.reply(Reply(Status.OK, 0, 7, 64, 1000, 2000), tree))
        except (RequestRejected, MessageError):
            continue
    return found


_LENGTHS = tuple(length.to_bytes(8, "little") for length in (0, 1, 2, 3, 63, 64, 65, 1 << 16, 1 << 26, 1 << 63))
TARGET = Target(run, seeds, (b"shmsvreq", b"shmsvrep", b"|u1", b"|b1", *_LENGTHS))
