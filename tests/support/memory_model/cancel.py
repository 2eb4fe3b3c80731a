"""Model of a client that withdraws a request while an engine takes it; the engine may die at any step, as in restart.py.

The client stores `cancelled` and looks at `taken`, the engine stores `taken` and looks at `cancelled`: one sees the other.
"""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine
from .restart import mark, may_die

RAN_WITHDRAWN = "a request runs that its client reported as cancelled"
DENIED = "a request that ran is answered as cancelled before it ran"

_OK, _CANCELLED, _LOST = 1, 2, 3


def cancel(given: Given, client_backend: Backend, engine_backend: Backend) -> Machine:
    """One request that is published; it may run again if an engine dies of it."""
    machine = Machine()
    client = End(machine.thread("client"), given, client_backend)
    engine = End(machine.thread("engine"), given, engine_backend)
    _client(client)
    _engine(engine)
    return machine


def _client(client: End) -> None:
    thread, given = client.thread, client.given
    thread.set("reported", 1)
    thread.at("shmserve_cancel" if client.is_native else "RequestControl.cancel")
    thread.load("taken", "taken", client.native("ring_is_taken load taken"))
    thread.jump_if(lambda taken: taken == 1, "is taken")
    thread.at("ring_cancel" if client.is_native else "RequestWriter.cancel")
    thread.store("cancelled", 1, client.store)
    client.full_fence("ring_cancel fence", "RequestWriter.cancel fence")
    if given.keeps("cancel: the client looks after it has withdrawn"):
        thread.at("shmserve_cancel" if client.is_native else "RequestControl.cancel")
        thread.load("taken", "taken", client.native("ring_is_taken load taken"))
        thread.jump_if(lambda taken: taken == 0, "reply")
        thread.at("ring_keep" if client.is_native else "RequestWriter.keep")
        thread.store("cancelled", 0, client.store)
    else:
        thread.jump("reply")
    thread.label("is taken")
    thread.set("reported", 0)
    thread.label("reply")
    thread.at("ring_copy_reply" if client.is_native else "Slots.reply")
    thread.wait_until("head", "reply", lambda head: head == 1, client.native("ring_copy_reply load sequence"))
    if not client.is_native:
        client.fence("Slots.reply fence")
    thread.load("status", "status", client.native("ring_copy_reply load words"))
    thread.load("ran", "ran")
    thread.check(lambda reported, ran: not (reported and ran), RAN_WITHDRAWN)
    thread.check(lambda status, ran: not (status == _CANCELLED and ran), DENIED)


def _engine(engine: End) -> None:
    thread, given = engine.thread, engine.given
    truthful = given.keeps("restart: a request that had begun is not answered as cancelled")
    thread.set("deaths", 0)
    thread.label("open")
    for register in ("cancelled", "attempts", "taken", "sequence", "status"):
        thread.set(register, 0)
    may_die(engine)
    thread.set("sequence", 1)
    thread.at("server_path_try_take" if engine.is_native else "ServerFastPath.try_take")
    thread.load("cancelled", "cancelled", engine.load)
    thread.load("taken", "taken")
    thread.load("attempts", "attempts")
    thread.set("attempts", lambda attempts, taken: attempts + 1 if taken == 1 else 1)
    thread.jump_if(lambda cancelled: cancelled == 1, "withdrawn")
    mark(engine)
    if given.keeps("cancel: the engine looks again after it has taken"):
        thread.load("cancelled", "cancelled", engine.load)
        thread.jump_if(lambda cancelled: cancelled == 1, "withdrawn")
    thread.store("ran", 1, engine.store)
    may_die(engine)
    thread.set("status", _OK)
    thread.jump("reply")
    thread.label("withdrawn")
    thread.set("status", lambda attempts: _LOST if truthful and attempts > 1 else _CANCELLED)
    thread.label("reply")
    thread.at("ring_complete" if engine.is_native else "Slots.complete")
    thread.store("status", "status", given.order("ring_complete store words") if engine.is_native else engine.store)
    may_die(engine)
    if not engine.is_native:
        engine.fence("Slots.complete fence")
    order = given.order("ring_complete store sequence") if engine.is_native else engine.store
    thread.store("reply", 1, order)
