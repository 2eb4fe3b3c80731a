"""Steps of publishing, taking, replying and reading, as the functions of the source do them.

A head is two words, its sequence and one for all others; a payload is two words. Every word of a request, and of its
reply, holds the request's sequence, so a mixed or stale copy shows.
"""

from __future__ import annotations

from .given import End
from .machine import Machine

TORN_REQUEST = "the engine accepts a request with words of another one"
TORN_REPLY = "the client accepts a reply with words of another one"


class Channel:
    """The words of one channel; `name` tells two channels apart."""

    def __init__(self, machine: Machine, name: str = "") -> None:
        self.published = f"{name}published"
        self.replies = f"{name}replies"
        self.request_bell = f"{name}request bell"
        self.reply_bell = f"{name}reply bell"
        self._name = name
        self._machine = machine

    def request(self, slot: int) -> tuple[str, str]:
        return f"{self._name}request {slot} sequence", f"{self._name}request {slot} head"

    def reply(self, slot: int) -> tuple[str, str]:
        return f"{self._name}reply {slot} sequence", f"{self._name}reply {slot} head"

    def payload(self, kind: str, slot: int) -> tuple[str, str]:
        words = f"{self._name}{kind} {slot} payload 0", f"{self._name}{kind} {slot} payload 1"
        for word in words:
            self._machine.plain_word(word)
        return words


def publish(end: End, channel: Channel, slot: int, sequence: int, *, write_payload: bool = True) -> None:
    """Write payload and head of a request, then the counter."""
    thread, given = end.thread, end.given
    first, rest = channel.request(slot)

    def write() -> None:
        thread.at("copy of the payload")
        for word in channel.payload("request", slot):
            thread.store(word, sequence, end.store)

    if write_payload and given.keeps("publish: the payload before the counter"):
        write()
    if end.is_native:
        thread.at("ring_publish")
        thread.store(first, sequence, given.order("ring_publish store words"))
        if given.keeps("publish: the head before the counter"):
            thread.store(rest, sequence, given.order("ring_publish store words"))
        thread.store(channel.published, sequence, given.order("ring_publish store counter"))
    else:
        thread.at("Slots.publish")
        thread.store(first, sequence, end.store)
        if given.keeps("publish: the head before the counter"):
            thread.store(rest, sequence, end.store)
        end.fence("Slots.publish fence")
        thread.store(channel.published, sequence, end.store)
    if not given.keeps("publish: the head before the counter"):
        thread.store(rest, sequence, end.store)
    if not given.keeps("publish: the payload before the counter"):
        write()


def copy_request(end: End, channel: Channel, slot: int) -> None:
    """Copy the head of the slot into the registers `head` and `rest`."""
    thread, given = end.thread, end.given
    first, rest = channel.request(slot)
    if end.is_native:
        thread.at("ring_copy_request")
        thread.fence(given.order("ring_copy_request fence"))
        thread.load("head", first, given.order("ring_copy_request load words"))
        thread.load("rest", rest, given.order("ring_copy_request load words"))
    else:
        thread.at("Slots.request")
        end.fence("Slots.request fence")
        thread.load("head", first, end.load)
        thread.load("rest", rest, end.load)


def copy_request_payload(end: End, channel: Channel, slot: int) -> None:
    end.thread.at("copy of the payload")
    for index, word in enumerate(channel.payload("request", slot)):
        end.thread.load(f"data{index}", word, end.load)


def complete(end: End, channel: Channel, slot: int, sequence: str) -> None:
    """Write payload and head of a reply, then its sequence, then the counter; `sequence` is a register."""
    thread, given = end.thread, end.given
    first, rest = channel.reply(slot)

    def write() -> None:
        thread.at("copy of the result")
        for word in channel.payload("reply", slot):
            thread.store(word, sequence, end.store)

    def write_sequence() -> None:
        if end.is_native:
            thread.store(first, sequence, given.order("ring_complete store sequence"))
        else:
            thread.store(first, sequence, end.store)

    early = not given.keeps("complete: the payload before the sequence")
    if not early:
        write()
    thread.at("ring_complete" if end.is_native else "Slots.complete")
    counter_first = not given.keeps("complete: the sequence before the counter")
    if given.keeps("complete: the head before the sequence"):
        thread.store(rest, sequence, given.order("ring_complete store words") if end.is_native else end.store)
    if not end.is_native:
        end.fence("Slots.complete fence")
    if not counter_first:
        write_sequence()
    thread.load("count", channel.replies)
    if end.is_native:
        thread.store(channel.replies, lambda count: count + 1, given.order("ring_complete store counter"))
    else:
        end.fence("Slots.complete fence#2")
        thread.store(channel.replies, lambda count: count + 1, end.store)
    if counter_first:
        write_sequence()
    if not given.keeps("complete: the head before the sequence"):
        thread.store(rest, sequence, end.store)
    if early:
        write()


def copy_reply(end: End, channel: Channel, slot: int, sequence: int, missing: str) -> None:
    """Copy head and payload of the reply to `sequence`, and check them; go to `missing` while it is not published."""
    thread, given = end.thread, end.given
    first, rest = channel.reply(slot)
    thread.at("ring_copy_reply" if end.is_native else "Slots.reply")
    thread.load("head", first, end.native("ring_copy_reply load sequence"))
    if given.keeps("reply: only under the sequence that is expected"):
        thread.jump_if(lambda head, expected=sequence: head != expected, missing)
    else:
        thread.jump_if(lambda head: head == 0, missing)
    if not end.is_native:
        end.fence("Slots.reply fence")
    thread.load("rest", rest, end.native("ring_copy_reply load words"))
    thread.at("decoding of the reply")
    for index, word in enumerate(channel.payload("reply", slot)):
        thread.load(f"data{index}", word, end.load)


def check_reply(end: End, sequence: int) -> None:
    end.thread.check(lambda rest, data0, data1, expected=sequence: rest == data0 == data1 == expected, TORN_REPLY)


def check_request(end: End) -> None:
    end.thread.check(
        lambda sequence, head, rest, data0, data1: head == rest == data0 == data1 == sequence, TORN_REQUEST
    )
