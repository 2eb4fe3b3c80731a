"""Models of waiting: counters are the truth, tokens are hints, and both sides sleep without a time limit.

The code bounds each sleep. Here it has no bound, so a wake-up that could be lost shows as a thread that waits for ever,
also where the code would lose only the time of one wait.
"""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine, On, on
from .requests import Channel

TWICE = "the engine admits a request twice, or never"


def named(given: Given, client: Backend, engine: Backend, clients: int = 2, requests: int = 2) -> Machine:
    """Transport `named`: all clients ring one semaphore, and each has one for its replies."""
    return _doorbells(given, client, engine, clients, requests, is_sealed=False, in_flight=1)


def sealed(given: Given, client: Backend, engine: Backend, clients: int = 2, requests: int = 2) -> Machine:
    """Transport `sealed`: a pipe for each client and each direction."""
    return _doorbells(given, client, engine, clients, requests, is_sealed=True, in_flight=1)


def named_in_flight(given: Given, client: Backend, engine: Backend) -> Machine:
    """Transport `named`, one client with two requests in flight."""
    return _doorbells(given, client, engine, 1, 2, is_sealed=False, in_flight=2)


def sealed_in_flight(given: Given, client: Backend, engine: Backend) -> Machine:
    """Transport `sealed`, one client with two requests in flight."""
    return _doorbells(given, client, engine, 1, 2, is_sealed=True, in_flight=2)


def _doorbells(
    given: Given, client: Backend, engine: Backend, clients: int, requests: int, *, is_sealed: bool, in_flight: int
) -> Machine:
    machine = Machine()
    channels = [Channel(machine, f"{'AB'[index]} ") for index in range(clients)]
    for index, channel in enumerate(channels):
        end = End(machine.thread(f"client {'AB'[index]}"), given, client)
        bell = channel.request_bell if is_sealed else "engine bell"
        if in_flight == 1:
            _client(end, channel, bell, requests, sealed=is_sealed)
        else:
            _client_in_flight(end, channel, bell, in_flight, sealed=is_sealed)
    server = End(machine.thread("engine"), given, engine)
    serve = _sealed_engine if is_sealed else _named_engine
    serve(server, channels, requests, in_flight)
    return machine


# The client


def _client(client: End, channel: Channel, bell: str, requests: int, *, sealed: bool) -> None:
    """ReplyWaiter.lead for each request, and ReplyWaiter.wait_for where it has found no reply."""
    thread, given = client.thread, client.given
    for register in ("polled", "spun"):
        thread.set(register, 0)
    for sequence in range(1, requests + 1):
        thread.at("client_path_try_send")
        if given.keeps("client: the count of replies is noted before the request is published"):
            thread.load("noted", channel.replies, client.load)
        _publish(client, channel, bell, sequence)
        if not given.keeps("client: the count of replies is noted before the request is published"):
            thread.load("noted", channel.replies, client.load)
        _wait_at_doorbell(client, channel, sealed=sealed)
        _find_reply(client, channel, 0, sequence, f"waits {sequence}")
        thread.jump(f"answered {sequence}")
        # ReplyWaiter.wait
        thread.label(f"waits {sequence}")
        thread.at("ReplyWaiter.wait")
        thread.load("noted", channel.replies, client.load)
        thread.jump_if(lambda noted, polled: noted == polled, f"polled {sequence}")
        _poll(client, channel, sequence, f"polled {sequence}")
        thread.jump(f"answered {sequence}")
        thread.label(f"polled {sequence}")
        _wait_at_doorbell(client, channel, sealed=sealed)
        _poll(client, channel, sequence, f"waits {sequence}")
        thread.label(f"answered {sequence}")
        for register in ("noted", "moved", "head", "token"):
            thread.set(register, 0)


def _client_in_flight(client: End, channel: Channel, bell: str, requests: int, *, sealed: bool) -> None:
    """RequestPipeline.submit for each request, then ReplyWaiter.wait_for until all of them have their replies."""
    thread = client.thread
    for register in ("polled", "spun", *[f"found {slot}" for slot in range(requests)]):
        thread.set(register, 0)
    for sequence in range(1, requests + 1):
        _publish(client, channel, bell, sequence)
    thread.label("wait")
    thread.at("ReplyWaiter.wait")
    thread.load("noted", channel.replies, client.load)
    thread.jump_if(lambda noted, polled: noted == polled, "polled")
    _poll_all(client, channel, requests, found="wait")
    thread.label("polled")
    _wait_at_doorbell(client, channel, sealed=sealed)
    _poll_all(client, channel, requests, found="wait")
    thread.jump("wait")


def _poll_all(client: End, channel: Channel, requests: int, found: str) -> None:
    """RequestTable.poll with several requests in flight; to `found` if there was any reply, and to the end after the last."""
    thread = client.thread
    _count_replies(client, channel)
    thread.set("any", 0)
    for slot in range(requests):
        following = thread.unique("following")
        thread.jump_if(on(lambda found: found == 1, f"found {slot}"), following)
        _find_reply(client, channel, slot, slot + 1, missing=following)
        thread.set(f"found {slot}", 1)
        thread.set("any", 1)
        thread.label(following)
        thread.set("head", 0)
    thread.jump_if(on(lambda *found: all(found), *(f"found {slot}" for slot in range(requests))), "end")
    thread.jump_if(lambda any: any == 1, found)


def _publish(client: End, channel: Channel, bell: str, sequence: int) -> None:
    thread, given = client.thread, client.given
    rings_first = not given.keeps("client: rings after the counter")
    if rings_first:
        thread.post(bell)
    if client.is_native:
        thread.at("ring_publish")
        thread.store(channel.published, sequence, given.order("ring_publish store counter"))
    else:
        thread.at("Slots.publish")
        client.fence("Slots.publish fence")
        thread.store(channel.published, sequence, client.store)
    thread.at("NamedDoorbell.ring")
    if not rings_first:
        thread.post(bell)


def _wait_at_doorbell(client: End, channel: Channel, *, sealed: bool) -> None:
    """ReplyWaiter._wait_at_doorbell: a leftover token, a spin that polls at least once, then a sleep.

    A sleep that ends without a token, as the reply is due, and the spin after it are a longer spin.
    """
    thread, given = client.thread, client.given
    spins, sleeps, woken = (thread.unique(name) for name in ("spins", "sleeps", "woken"))

    def take_leftover(then: str) -> None:
        thread.at("ReplyWaiter._wait_at_doorbell")
        thread.jump_if(lambda spun: not spun, then)
        thread.set("spun", 0)
        if sealed:
            thread.drain("token", channel.reply_bell)
        else:
            thread.try_take("token", channel.reply_bell)
        thread.set("token", 0)
        thread.label(then)

    takes_first = given.keeps("client: takes the leftover token before it polls")
    if takes_first:
        take_leftover(thread.unique("begins"))
    thread.label(spins)
    if client.is_native:
        thread.at("has_moved")
        thread.load("moved", channel.replies, given.order("has_moved load counter"))
    else:
        thread.at("spin")
        thread.load("moved", channel.replies, client.load)
    still = thread.unique("still")
    thread.jump_if(lambda moved, noted: moved == noted, still)
    if not client.is_native:
        client.fence("_order fence")
    thread.set("spun", 1)
    thread.jump(woken)
    thread.label(still)
    thread.choose(spins, sleeps)
    thread.label(sleeps)
    if not takes_first:
        take_leftover(thread.unique("late"))
    thread.at("ReplyWaiter._wait_at_doorbell")
    if sealed:
        thread.take(channel.reply_bell)
        thread.drain("token", channel.reply_bell)
        thread.set("token", 0)
    else:
        thread.take(channel.reply_bell)
    thread.label(woken)


def _find_reply(client: End, channel: Channel, slot: int, sequence: int, missing: str) -> None:
    thread = client.thread
    thread.at("ring_copy_reply" if client.is_native else "Slots.reply")
    thread.load("head", channel.reply(slot)[0], client.native("ring_copy_reply load sequence"))
    thread.jump_if(lambda head, expected=sequence: head != expected, missing)
    if not client.is_native:
        client.fence("Slots.reply fence")


def _poll(client: End, channel: Channel, sequence: int, missing: str) -> None:
    """RequestTable.poll: the count of replies, then the sequence of each request in flight."""
    _count_replies(client, channel)
    _find_reply(client, channel, 0, sequence, missing)


def _count_replies(client: End, channel: Channel) -> None:
    thread = client.thread
    thread.at("RequestTable.poll")
    if client.is_native:
        thread.load("polled", channel.replies, client.given.order("poller_load load counter"))
    else:
        thread.load("polled", channel.replies, client.load)
        client.fence("_order fence")


# The engine


def _look(engine: End, channel: Channel, name: str, slots: int, found: str, nothing: str) -> None:
    """PollSet.changed and ChannelState.look: admit what the counter names."""
    thread, given = engine.thread, engine.given
    if engine.is_native:
        thread.at("has_moved")
        thread.load("moved", channel.published, given.order("has_moved load counter"))
    else:
        thread.at("poll_all")
        thread.load("moved", channel.published, engine.load)
    thread.jump_if(on(lambda moved, seen: moved == seen, "moved", f"seen {name}"), nothing)
    if not engine.is_native:
        engine.fence("_order fence")
    thread.at("ChannelState.look")
    thread.load("moved", channel.published, engine.load)
    thread.check(
        on(
            lambda moved, seen, served: seen < moved <= served + slots,
            "moved",
            f"seen {name}",
            f"served {name}",
        ),
        TWICE,
    )
    thread.set(f"seen {name}", "moved")
    thread.set("moved", 0)
    thread.jump(found)


def _reply(engine: End, channel: Channel, name: str, slots: int) -> None:
    """ChannelState.answer: the reply to the earliest request that has none; requests take the slots in turn."""
    thread, given = engine.thread, engine.given
    replied = thread.unique("replied")
    for slot in range(slots):
        elsewhere = thread.unique("elsewhere")
        thread.jump_if(on(lambda served, slot=slot: served % slots != slot, f"served {name}"), elsewhere)
        rings_first = not given.keeps("engine: rings after the counter")
        if rings_first:
            thread.post(channel.reply_bell)
        thread.set("sequence", on(lambda served: served + 1, f"served {name}"))
        first = channel.reply(slot)[0]
        sequence_first = given.keeps("complete: the sequence before the counter")
        thread.at("ring_complete" if engine.is_native else "Slots.complete")
        order = given.order("ring_complete store sequence") if engine.is_native else engine.store
        if not engine.is_native:
            engine.fence("Slots.complete fence")
        if sequence_first:
            thread.store(first, "sequence", order)
        thread.load("count", channel.replies)
        if engine.is_native:
            thread.store(channel.replies, lambda count: count + 1, given.order("ring_complete store counter"))
        else:
            engine.fence("Slots.complete fence#2")
            thread.store(channel.replies, lambda count: count + 1, engine.store)
        thread.at("ChannelState.answer")
        if not rings_first:
            thread.post(channel.reply_bell)
        if not sequence_first:
            thread.store(first, "sequence", order)
        thread.jump(replied)
        thread.label(elsewhere)
    thread.label(replied)
    thread.set(f"served {name}", on(lambda served: served + 1, f"served {name}"))
    thread.set("count", 0)
    thread.set("sequence", 0)


def _begin(engine: End, channels: list[Channel]) -> list[str]:
    names = [str(index) for index in range(len(channels))]
    for name in names:
        engine.thread.set(f"seen {name}", 0)
        engine.thread.set(f"served {name}", 0)
    engine.thread.set("rung", 0)
    return names


def _due(names: list[str]) -> On:
    """Whether a request waits in any of these channels."""
    return on(
        lambda *words: words[: len(names)] != words[len(names) :],
        *(f"seen {each}" for each in names),
        *(f"served {each}" for each in names),
    )


def _serve_one(
    engine: End, channels: list[Channel], names: list[str], requests: int, slots: int, otherwise: str
) -> None:
    """EngineLoop._serve_next: one request of those that wait, then the doorbell is looked at or not."""
    thread = engine.thread
    for channel, name in zip(channels, names, strict=True):
        following = thread.unique("none waits")
        thread.jump_if(on(lambda seen, served: seen == served, f"seen {name}", f"served {name}"), following)
        _reply(engine, channel, name, slots)
        thread.jump_if(
            on(lambda *served, most=requests: set(served) == {most}, *(f"served {each}" for each in names)), "end"
        )
        thread.jump(otherwise)
        thread.label(following)


def _named_engine(engine: End, channels: list[Channel], requests: int, slots: int) -> None:
    """EngineLoop.run with SharedDoorbell."""
    thread, given = engine.thread, engine.given
    names = _begin(engine, channels)
    thread.label("loop")
    # _look_at_active: any of the channels, for which of them are active is a matter of time.
    for channel, name in zip(channels, names, strict=True):
        after = f"looked {name}"
        thread.choose(f"active {name}", after)
        thread.label(f"active {name}")
        _look(engine, channel, name, slots, found=after, nothing=after)
        thread.label(after)
    _serve_one(engine, channels, names, requests, slots, otherwise="untaken")
    thread.jump("take")
    thread.label("untaken")
    thread.choose("loop", "take")
    # _take_rings
    thread.label("take")
    if given.keeps("engine: looks after it has taken the tokens"):
        _take_all(engine)
        _scan(engine, channels, names, slots)
    else:
        thread.try_take("token", "engine bell")
        thread.jump_if(lambda token, rung: not token and not rung, "taken")
        _scan(engine, channels, names, slots, always=True)
        _take_all(engine)
        thread.set("rung", 0)
        thread.label("taken")
    thread.jump_if(_due(names), "loop")
    # _idle: a spin looks as the loop does
    thread.choose("loop", "sleep")
    thread.label("sleep")
    thread.at("NamedDoorbell.wait")
    thread.take("engine bell")
    if given.keeps("engine: the token that ended the wait counts as a ring"):
        thread.set("rung", 1)
    thread.jump("loop")


def _take_all(engine: End) -> None:
    thread = engine.thread
    thread.at("SharedDoorbell.take")
    thread.label("tokens")
    thread.try_take("token", "engine bell")
    thread.jump_if(lambda token: not token, "no token")
    thread.set("rung", 1)
    thread.set("token", 0)
    thread.jump("tokens")
    thread.label("no token")


def _scan(engine: End, channels: list[Channel], names: list[str], slots: int, *, always: bool = False) -> None:
    """The scan of all channels: at once after a ring while no request waits, some time after it otherwise."""
    thread = engine.thread
    if not always:
        thread.jump_if(lambda rung: not rung, "scanned")
        thread.jump_if(_due(names), "perhaps scan")
        thread.jump("scan")
        thread.label("perhaps scan")
        thread.choose("scan", "scanned")
        thread.label("scan")
    thread.set("rung", 0)
    for channel, name in zip(channels, names, strict=True):
        after = f"scanned {name}"
        _look(engine, channel, name, slots, found=after, nothing=after)
        thread.label(after)
    thread.label("scanned")


def _sealed_engine(engine: End, channels: list[Channel], requests: int, slots: int) -> None:
    """EngineLoop.run with PipeDoorbells: a pipe names its client, and the wait leaves its token."""
    thread, given = engine.thread, engine.given
    names = _begin(engine, channels)
    thread.label("loop")
    for channel, name in zip(channels, names, strict=True):
        after = f"looked {name}"
        thread.choose(f"active {name}", after)
        thread.label(f"active {name}")
        _look(engine, channel, name, slots, found=after, nothing=after)
        thread.label(after)
    _serve_one(engine, channels, names, requests, slots, otherwise="untaken")
    thread.jump("take")
    thread.label("untaken")
    thread.choose("loop", "take")
    thread.label("take")
    for channel, name in zip(channels, names, strict=True):
        after = f"taken {name}"
        thread.at("PipeDoorbells.take")
        thread.drain("token", channel.request_bell)
        thread.jump_if(lambda token: not token, after)
        thread.set("token", 0)
        if given.keeps("engine: looks at the channel whose pipe it has read"):
            _look(engine, channel, name, slots, found=after, nothing=after)
        thread.label(after)
    thread.jump_if(_due(names), "loop")
    thread.choose("loop", "sleep")
    thread.label("sleep")
    thread.at("PipeDoorbells.wait")
    thread.wait_for_any([channel.request_bell for channel in channels])
    thread.jump("loop")
