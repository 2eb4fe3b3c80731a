"""Models of the two rings: requests and replies through one slot, and through several."""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine, on
from .requests import (
    TORN_REQUEST,
    Channel,
    check_reply,
    check_request,
    complete,
    copy_reply,
    copy_request,
    copy_request_payload,
    publish,
)

WRONG_SLOTS = "the engine takes an honest client for a broken one"
MISSED = "the client sees the count of a reply, and not the reply"
LOST = "the engine admits a request twice, or never"


def poll_counter(end: End, channel: Channel, seen: str) -> None:
    """Look whether the counter has moved, as the loop does, and load it into `sequence`; go to `same` if not."""
    thread, given = end.thread, end.given
    again = thread.unique("poll")
    thread.label(again)
    if end.is_native:
        thread.at("has_moved")
        thread.load("moved", channel.published, given.order("has_moved load counter"))
    else:
        thread.at("poll_first")
        thread.load("moved", channel.published, end.load)
    thread.jump_if(on(lambda moved, seen: moved == seen, "moved", seen), again)
    if not end.is_native:
        end.fence("_order fence")
    # The poller's value is dropped: the channel loads the counter again.
    thread.at("ChannelState.look")
    thread.load("sequence", channel.published, end.load)


def one_slot(given: Given, client_backend: Backend, engine_backend: Backend, requests: int = 2) -> Machine:
    """Requests one after the other through one slot: publish, take, reply, read, and the slot again."""
    machine = Machine()
    channel = Channel(machine)
    client = End(machine.thread("client"), given, client_backend)
    engine = End(machine.thread("engine"), given, engine_backend)
    awaits_reply = given.keeps("slot: used again only after its reply is read")

    thread = client.thread
    for sequence in range(1, requests + 1):
        publish(client, channel, 0, sequence)
        if not awaits_reply and sequence < requests:
            continue
        poll = thread.unique("reply")
        thread.label(poll)
        copy_reply(client, channel, 0, sequence, missing=poll)
        check_reply(client, sequence)

    thread = engine.thread
    thread.set("seen", 0)
    thread.label("next")
    poll_counter(engine, channel, "seen")
    # The two loads of the counter are of one word, so the second cannot be behind the first.
    thread.check(lambda sequence, seen: sequence == seen + 1, LOST)
    copy_request(engine, channel, 0)
    thread.check(lambda head, sequence: head == sequence, WRONG_SLOTS)
    copy_request_payload(engine, channel, 0)
    check_request(engine)
    complete(engine, channel, 0, "sequence")
    thread.set("seen", "sequence")
    thread.jump_if(lambda seen, most=requests: seen < most, "next")
    return machine


def counted_reply(given: Given, client_backend: Backend, engine_backend: Backend) -> Machine:
    """A client that spins on the count of replies finds the reply that moved it, at its first look."""
    machine = Machine()
    channel = Channel(machine)
    client = End(machine.thread("client"), given, client_backend)
    engine = End(machine.thread("engine"), given, engine_backend)

    thread = client.thread
    thread.at("has_moved" if client.is_native else "spin")
    moved = given.order("has_moved load counter") if client.is_native else client.load
    thread.wait_until("moved", channel.replies, lambda count: count != 0, moved)
    if not client.is_native:
        client.fence("_order fence")
    copy_reply(client, channel, 0, 1, missing="missed")
    check_reply(client, 1)
    thread.jump("end")
    thread.label("missed")
    thread.check(lambda: False, MISSED)

    engine.thread.set("sequence", 1)
    complete(engine, channel, 0, "sequence")
    return machine


def several_slots(given: Given, client_backend: Backend, engine_backend: Backend, slots: int = 3) -> Machine:
    """As many requests as slots at once, and one more in the first slot that is free again.

    The counter moves by more than one, and the engine finds the requests by the slots' heads. It replies in any order,
    and the client looks for the replies in any order.
    """
    machine = Machine()
    channel = Channel(machine)
    client = End(machine.thread("client"), given, client_backend)
    engine = End(machine.thread("engine"), given, engine_backend)

    thread = client.thread
    for slot in range(slots):
        publish(client, channel, slot, _sequence(slot + 1, slot))
    # RequestTable.poll
    thread.label("poll")
    thread.choose(*[f"look {slot}" for slot in range(slots)])
    for slot in range(slots):
        thread.label(f"look {slot}")
        copy_reply(client, channel, slot, _sequence(slot + 1, slot), missing="poll")
        check_reply(client, _sequence(slot + 1, slot))
        publish(client, channel, slot, _sequence(slots + 1, slot))
        for later in range(1, slots + 1):
            other = (slot + later) % slots
            number = other + 1 if later < slots else slots + 1
            poll = thread.unique("reply")
            thread.label(poll)
            copy_reply(client, channel, other, _sequence(number, other), missing=poll)
            check_reply(client, _sequence(number, other))
        thread.jump("end")

    _engine_of_slots(engine, channel, slots, requests=slots + 1)
    return machine


_SLOT_BITS = 2


def _sequence(number: int, slot: int) -> int:
    return number << _SLOT_BITS | slot


def _number(sequence: int) -> int:
    return sequence >> _SLOT_BITS


def _engine_of_slots(engine: End, channel: Channel, slots: int, requests: int) -> None:
    thread, given = engine.thread, engine.given
    for register in ("seen", "served", *[f"waiting{slot}" for slot in range(slots)]):
        thread.set(register, 0)
    thread.label("loop")
    thread.at("ChannelState.look")
    thread.load("published", channel.published, engine.load)
    thread.jump_if(lambda published, seen: published == seen, "serve")
    thread.jump_if(lambda published, seen: _number(published) - _number(seen) == 1, "one")
    # ChannelState._admit_several
    thread.at("RequestReader.between")
    engine.fence("RequestReader.between fence")
    claims = [f"claim{slot}" for slot in range(slots)]
    for slot, claim in enumerate(claims):
        thread.load(claim, channel.request(slot)[0], engine.load)
    bounded = given.keeps("between: no sequence behind the counter")

    def is_due(claim: int, seen: int, published: int) -> bool:
        return _number(seen) < _number(claim) and (not bounded or _number(claim) <= _number(published))

    thread.check(
        on(
            lambda seen, published, *claims: (
                sorted(_number(claim) for claim in claims if is_due(claim, seen, published))
                == list(range(_number(seen) + 1, _number(published) + 1))
            ),
            "seen",
            "published",
            *claims,
        ),
        WRONG_SLOTS,
    )
    for slot, claim in enumerate(claims):
        thread.jump_if(on(lambda *words: not is_due(*words), claim, "seen", "published"), f"not due {slot}")
        thread.set("sequence", claim)
        _admit(engine, channel, slot)
        thread.label(f"not due {slot}")
    thread.jump("admitted")
    thread.label("one")
    thread.set("sequence", "published")
    for slot in range(slots):
        thread.jump_if(lambda sequence, slot=slot: sequence % (1 << _SLOT_BITS) != slot, f"not in {slot}")
        _admit(engine, channel, slot)
        thread.jump("admitted")
        thread.label(f"not in {slot}")
    thread.label("admitted")
    thread.set("seen", "published")
    for name in (*claims, "published", "head", "rest"):
        thread.set(name, 0)  # a dead register makes no further states
    thread.label("serve")
    thread.choose("loop", *[f"serve {slot}" for slot in range(slots)])
    for slot in range(slots):
        waiting = f"waiting{slot}"
        thread.label(f"serve {slot}")
        thread.jump_if(on(lambda waiting: waiting == 0, waiting), "loop")
        thread.set("sequence", waiting)
        copy_request_payload(engine, channel, slot)
        thread.set("head", "sequence")  # compared when it was copied
        thread.set("rest", "sequence")
        check_request(engine)
        complete(engine, channel, slot, "sequence")
        for name in (waiting, "sequence", "head", "rest", "data0", "data1", "count"):
            thread.set(name, 0)
        thread.set("served", lambda served: served + 1)
        thread.jump_if(lambda served, most=requests: served == most, "end")
        thread.jump("loop")


def _admit(engine: End, channel: Channel, slot: int) -> None:
    """ChannelState._admit: copy the head of `sequence`, and let it wait."""
    thread = engine.thread
    copy_request(engine, channel, slot)
    thread.check(lambda head, sequence: head == sequence, WRONG_SLOTS)
    thread.check(lambda rest, sequence: rest == sequence, TORN_REQUEST)
    thread.check(on(lambda waiting: waiting == 0, f"waiting{slot}"), LOST)
    thread.set(f"waiting{slot}", "sequence")
