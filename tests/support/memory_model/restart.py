"""Model of an engine that dies at any step, and of the next one, which finds the requests that are unanswered.

The next engine is the same thread with empty registers: the supervisor starts it after the kernel has reported the end
of the first, so it sees everything that the first one wrote. The client polls, because the dead engine's ring may be lost;
the code bounds each of its waits for that.
"""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine, Order
from .requests import TORN_REQUEST, Channel, copy_request, copy_request_payload, publish

RAN_TWICE = "the model runs a request twice"
ANSWERED_TWICE = "a request is answered twice"
WRONG_REPLY = "the client accepts a reply that is of another request, or half written"


def restart(given: Given, client_backend: Backend, engine_backend: Backend, requests: int = 2) -> Machine:
    """Requests through one slot. The reply to a request that ran with a dead engine is its sequence plus 100: lost."""
    machine = Machine()
    channel = Channel(machine)
    client = End(machine.thread("client"), given, client_backend)
    engine = End(machine.thread("engine"), given, engine_backend)
    first, rest = channel.reply(0)

    thread = client.thread
    for sequence in range(1, requests + 1):
        publish(client, channel, 0, sequence)
        poll = thread.unique("reply")
        thread.label(poll)
        thread.at("ring_copy_reply" if client.is_native else "Slots.reply")
        thread.load("head", first, client.native("ring_copy_reply load sequence"))
        thread.jump_if(lambda head, sequence=sequence: head != sequence, poll)
        if not client.is_native:
            client.fence("Slots.reply fence")
        thread.load("rest", rest, client.native("ring_copy_reply load words"))
        thread.check(lambda rest, sequence=sequence: rest in (sequence, 100 + sequence), WRONG_REPLY)

    _engine(engine, channel, requests)
    return machine


def _engine(engine: End, channel: Channel, requests: int) -> None:
    thread, given = engine.thread, engine.given
    first, rest = channel.reply(0)
    thread.set("deaths", 0)
    thread.set("ran", 0)  # an observer's note: no engine knows it
    thread.label("open")
    for register in ("seen", "sequence", "head", "rest", "data0", "data1", "attempts", "taken", "count", "answered"):
        thread.set(register, 0)
    thread.jump_if(lambda deaths: deaths == 0, "loop")
    # ChannelState.open
    thread.at("ChannelState.open")
    thread.load("sequence", channel.published, engine.load)
    thread.set("seen", "sequence")
    thread.load("answered", first)
    if given.keeps("restart: answered requests are left alone"):
        thread.jump_if(lambda answered, sequence: answered >= sequence, "loop")
    thread.jump_if(lambda sequence: sequence == 0, "loop")
    thread.jump("admit")
    thread.label("loop")
    may_die(engine)
    thread.jump_if(lambda seen, most=requests: seen == most, "end")
    thread.at("ChannelState.look")
    thread.load("sequence", channel.published, engine.load)
    thread.jump_if(lambda sequence, seen: sequence == seen, "loop")
    thread.set("seen", "sequence")
    thread.label("admit")
    copy_request(engine, channel, 0)
    copy_request_payload(engine, channel, 0)
    thread.check(lambda sequence, head, rest, data0, data1: head == rest == data0 == data1 == sequence, TORN_REQUEST)
    may_die(engine)
    thread.at("ring_take")
    thread.load("taken", "taken")
    thread.load("attempts", "attempts")
    thread.set("attempts", lambda attempts, taken, sequence: attempts + 1 if taken == sequence else 1)
    early = not given.keeps("restart: a request is marked as taken before it runs")
    if not early:
        mark(engine)
    thread.jump_if(lambda attempts: attempts > 1, "lost")
    thread.check(lambda ran, sequence: ran < sequence, RAN_TWICE)
    thread.set("ran", "sequence")
    may_die(engine)
    if early:
        mark(engine)
    thread.set("rest", "sequence")
    thread.jump("reply")
    thread.label("lost")
    thread.set("rest", lambda sequence: 100 + sequence)
    thread.label("reply")
    thread.at("ring_complete" if engine.is_native else "Slots.complete")
    thread.load("answered", first)
    thread.check(lambda answered, sequence: answered < sequence, ANSWERED_TWICE)
    sequence_order = given.order("ring_complete store sequence") if engine.is_native else engine.store
    if given.keeps("complete: the head before the sequence"):
        thread.store(rest, "rest", given.order("ring_complete store words") if engine.is_native else engine.store)
        may_die(engine)
        if not engine.is_native:
            engine.fence("Slots.complete fence")
        thread.store(first, "sequence", sequence_order)
    else:
        thread.store(first, "sequence", sequence_order)
        may_die(engine)
        thread.store(rest, "rest", engine.store)
    may_die(engine)
    thread.load("count", channel.replies)
    thread.store(channel.replies, lambda count: count + 1, Order.RELEASE)
    for register in ("head", "rest", "data0", "data1", "attempts", "taken", "count", "answered"):
        thread.set(register, 0)
    thread.jump("loop")


def mark(engine: End) -> None:
    """Mark `sequence` as taken: the attempts before the sequence that they belong to, and a fence behind both."""
    thread, given = engine.thread, engine.given
    thread.at("ring_take" if engine.is_native else "Slots.take")
    order = given.order("ring_take store taken") if engine.is_native else engine.store
    attempts = given.order("ring_take store attempts") if engine.is_native else engine.store
    thread.store("attempts", "attempts", attempts)
    may_die(engine)
    thread.store("taken", "sequence", order)
    may_die(engine)
    engine.full_fence("ring_take fence", "Slots.take fence")


def may_die(engine: End) -> None:
    """Once; the next engine lives."""
    thread = engine.thread
    dies, lives = thread.unique("dies"), thread.unique("lives")
    thread.jump_if(lambda deaths: deaths > 0, lives)
    thread.choose(dies, lives)
    thread.label(dies)
    thread.set("deaths", 1)
    thread.jump("open")
    thread.label(lives)
