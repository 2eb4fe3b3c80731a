"""Model of the cut-through copy: the engine copies a payload while its client writes it.

The client begins a write and gives it up, writes the same slot again and publishes it; after the reply it writes and
publishes a third time. Each write has two pieces; every byte of a write holds its write id.
"""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine, Thread, on
from .requests import Channel, complete, copy_reply

MIXED = "the engine uses bytes of another write"
MISCOUNTED = "the engine counts bytes of another write under a write id"
#: Words of the counter's line.
WRITE_ID, WRITTEN = "write id", "written bytes"


def cut_through(given: Given, engine_backend: Backend = Backend.NATIVE) -> Machine:
    """Writes 1 (given up), 2 and 3 of one slot. A pure engine copies nothing early."""
    machine = Machine()
    channel = Channel(machine)
    client = End(machine.thread("client"), given, Backend.NATIVE)
    engine = End(machine.thread("engine"), given, engine_backend)

    thread = client.thread
    _write(client, write=1, pieces=1)  # then Python code of the observation raises an exception
    for sequence, write in ((1, 2), (2, 3)):
        _write(client, write=write, pieces=2)
        thread.at("ring_publish")
        first, rest = channel.request(0)
        thread.store(first, sequence, given.order("ring_publish store words"))
        thread.store(rest, write, given.order("ring_publish store words"))  # REQUEST_WRITE_ID
        thread.store(channel.published, sequence, given.order("ring_publish store counter"))
        if sequence == 2:
            continue
        poll = thread.unique("reply")
        thread.label(poll)
        copy_reply(client, channel, 0, sequence, missing=poll)

    thread = engine.thread
    for register in ("seen", "committed", "copying", "done", "piece0", "piece1"):
        thread.set(register, 0)
    thread.label("loop")
    if engine.is_native:
        thread.choose("advance", "look")
        thread.label("advance")
        _advance(engine)
    thread.label("look")
    thread.at("ChannelState.look")
    thread.load("sequence", channel.published, engine.load)
    thread.jump_if(lambda sequence, seen: sequence == seen, "loop")
    thread.at("ring_copy_request")
    thread.fence(given.order("ring_copy_request fence"))
    thread.load("write", channel.request(0)[1], given.order("ring_copy_request load words"))
    thread.set("committed", "write")
    thread.at("cut_through_take")
    if given.keeps("cut-through: only bytes of the write that the head names"):
        thread.set("done", lambda done, copying, write: done if copying == write else 0)
    thread.set("copying", 0)
    # decoder_copy: the rest of the payload, which the client no longer writes
    thread.at("copy of the rest")
    thread.jump_if(lambda done: done > 0, "rest 1")
    thread.load("piece0", _piece(0))
    thread.label("rest 1")
    thread.jump_if(lambda done: done > 1, "whole")
    thread.load("piece1", _piece(1))
    thread.label("whole")
    thread.check(lambda piece0, piece1, write: piece0 == piece1 == write, MIXED)
    complete(engine, channel, 0, "sequence")
    for register in ("done", "piece0", "piece1", "write", "id", "written", "count"):
        thread.set(register, 0)
    thread.set("seen", "sequence")
    thread.jump_if(lambda seen: seen < 2, "loop")
    return machine


def _piece(index: int) -> str:
    return f"piece {index}"


def _write(client: End, write: int, pieces: int) -> None:
    """Announce a write, then copy that number of pieces, each with the number of bytes after it."""
    thread, given = client.thread, client.given

    def announce() -> None:
        thread.at("announce_write")
        thread.store(WRITTEN, 0, given.order("announce_write store written_bytes"))
        thread.store(WRITE_ID, write, given.order("announce_write store write_id"))
        thread.fence(given.order("announce_write fence"))

    def piece(index: int) -> None:
        thread.at("copy_in_pieces")
        thread.store(_piece(index), write)

    def progress(index: int) -> None:
        thread.at("announce_progress")
        thread.store(WRITTEN, index + 1, given.order("announce_progress store written_bytes"))

    early = not given.keeps("cut-through: the write id before any byte")
    if early:
        piece(0)
    if given.keeps("cut-through: the byte count of 0 before the write id"):
        announce()
    else:
        thread.at("announce_write")
        thread.store(WRITE_ID, write, given.order("announce_write store write_id"))
        thread.fence(given.order("announce_write fence"))
        thread.store(WRITTEN, 0, given.order("announce_write store written_bytes"))
    for index in range(pieces):
        if given.keeps("cut-through: bytes before their number"):
            if not (early and index == 0):
                piece(index)
            progress(index)
        else:
            progress(index)
            piece(index)


def _advance(engine: End) -> None:
    """Copy the next piece if it is written."""
    thread, given = engine.thread, engine.given
    thread.at("cut_through_advance")
    thread.load("id", WRITE_ID, given.order("cut_through_advance load write_id"))
    thread.jump_if(lambda id, committed: id == committed, "look")
    thread.set("done", lambda done, id, copying: done if id == copying else 0)
    thread.set("copying", "id")
    thread.load("written", WRITTEN, given.order("cut_through_advance load written_bytes"))
    thread.jump_if(lambda written, done: written <= done, "look")
    for index in (0, 1):
        following = thread.unique("not this piece")
        thread.jump_if(lambda done, index=index: done != index, following)
        thread.load(f"piece{index}", _piece(index))
        _check_again(thread, given, f"piece{index}")
        thread.label(following)
    thread.jump("look")


def _check_again(thread: Thread, given: Given, piece: str) -> None:
    """Count the piece only if the client has not begun another write meanwhile."""
    thread.at("cut_through_advance")
    thread.fence(given.order("cut_through_advance fence"))
    if given.keeps("cut-through: the write id again after the copy"):
        thread.load("again", WRITE_ID, given.order("cut_through_advance load write_id#2"))
        thread.set("done", lambda done, again, id: done + 1 if again == id else 0)
        thread.set("again", 0)
    else:
        thread.set("done", lambda done: done + 1)
    thread.check(on(lambda done, id, piece: not done or piece == id, "done", "id", piece), MISCOUNTED)
    thread.set("written", 0)
    thread.jump("look")
