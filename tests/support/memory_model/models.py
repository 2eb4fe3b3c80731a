"""Models of the shared memory's protocols, and the negative controls that each of them must find."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .cancel import DENIED, RAN_WITHDRAWN, cancel
from .cut_through import MISCOUNTED, MIXED, cut_through
from .doorbell import named, named_in_flight, sealed, sealed_in_flight
from .exchange import LOST, MISSED, WRONG_SLOTS, counted_reply, one_slot, several_slots
from .given import Backend, Given
from .machine import Machine, Order, Result, explore
from .record_ring import TORN, record_ring
from .requests import TORN_REPLY, TORN_REQUEST
from .restart import ANSWERED_TWICE, RAN_TWICE, restart
from .source import orders

STUCK = "a thread waits for ever"
NATIVE, PURE, X86 = Backend.NATIVE, Backend.PURE, Backend.PURE_X86


class Model(NamedTuple):
    """A protocol with the backends of its two ends."""

    build: Callable[[Given], Machine]
    #: Whether its exploration takes seconds.
    long: bool = False


def _pair(
    name: str, build: Callable[..., Machine], ends: tuple[str, str], *, long: bool = False, **size: int
) -> dict[str, Model]:
    """The model with each backend at each end."""

    def built(first: Backend, second: Backend) -> Callable[[Given], Machine]:
        return lambda given: build(given, first, second, **size)

    return {
        f"{name}, {first.value} {ends[0]}, {second.value} {ends[1]}": Model(built(first, second), long)
        for first in Backend
        for second in Backend
    }


_CHANNEL = ("client", "engine")
MODELS: Mapping[str, Model] = {
    **_pair("one slot", one_slot, _CHANNEL, requests=3),
    **_pair("counted reply", counted_reply, _CHANNEL),
    **_pair("two slots", several_slots, _CHANNEL, slots=2),
    **_pair("three slots", several_slots, _CHANNEL, slots=3, long=True),
    "cut-through": Model(lambda given: cut_through(given, NATIVE)),
    "cut-through, pure engine": Model(lambda given: cut_through(given, PURE)),
    **_pair("restart", restart, _CHANNEL),
    **_pair("cancel", cancel, _CHANNEL),
    **_pair("doorbells named", named, _CHANNEL, clients=1, requests=2),
    **_pair("doorbells sealed", sealed, _CHANNEL, clients=1, requests=2),
    **_pair("doorbells named, two in flight", named_in_flight, _CHANNEL, long=True),
    **_pair("doorbells sealed, two in flight", sealed_in_flight, _CHANNEL),
    **_pair("doorbells named, three requests", named, _CHANNEL, clients=1, requests=3, long=True),
    **_pair("doorbells sealed, three requests", sealed, _CHANNEL, clients=1, requests=3, long=True),
    **_pair("doorbells named, two clients", named, _CHANNEL, clients=2, requests=1, long=True),
    **_pair("doorbells sealed, two clients", sealed, _CHANNEL, clients=2, requests=1, long=True),
    **{
        name: model
        for name, model in _pair("record ring", record_ring, ("engine", "recorder")).items()
        if "native" not in name  # both of its ends are Python code in either backend
    },
}


class Control(NamedTuple):
    """A weaker order or a wrong step, and the property that its model must then find violated."""

    model: str
    violates: str


def _native(name: str) -> str:
    return f"{name}, native client, native engine"


def _pure(name: str) -> str:
    return f"{name}, pure client, pure engine"


def _x86(name: str) -> str:
    return f"{name}, pure on x86-64 client, pure on x86-64 engine"


_RECORD = "record ring, pure engine, pure recorder"
#: The name of a site of source.py, which becomes relaxed; or of a step, which is left out or comes too early.
CONTROLS: Mapping[str, Control] = {
    # Orders of the native core
    "ring_publish store counter": Control(_native("one slot"), TORN_REQUEST),
    "ring_copy_request fence": Control(_native("two slots"), TORN_REQUEST),
    "ring_complete store sequence": Control(_native("one slot"), TORN_REPLY),
    "ring_complete store counter": Control(_native("counted reply"), MISSED),
    "ring_copy_reply load sequence": Control(_native("one slot"), TORN_REPLY),
    "has_moved load counter": Control(_native("counted reply"), MISSED),
    "poller_load load counter": Control(_native("doorbells sealed, two in flight"), STUCK),
    "announce_write store write_id": Control("cut-through", MISCOUNTED),
    "announce_write fence": Control("cut-through", MISCOUNTED),
    "announce_progress store written_bytes": Control("cut-through", MISCOUNTED),
    "cut_through_advance load write_id": Control("cut-through", MISCOUNTED),
    "cut_through_advance load written_bytes": Control("cut-through", MISCOUNTED),
    "cut_through_advance fence": Control("cut-through", MISCOUNTED),
    "ring_cancel fence": Control(_native("cancel"), RAN_WITHDRAWN),
    "ring_take fence": Control(_native("cancel"), RAN_WITHDRAWN),
    # Fences of Python code
    "Slots.publish fence": Control(_pure("one slot"), TORN_REQUEST),
    "Slots.request fence": Control(_pure("two slots"), TORN_REQUEST),
    "Slots.complete fence": Control(_pure("one slot"), TORN_REPLY),
    "Slots.complete fence#2": Control(_pure("counted reply"), MISSED),
    "Slots.reply fence": Control(_pure("one slot"), TORN_REPLY),
    "RequestReader.between fence": Control(_native("two slots"), WRONG_SLOTS),
    "_order fence": Control(_pure("doorbells sealed, two in flight"), STUCK),
    "RequestWriter.cancel fence": Control(_x86("cancel"), RAN_WITHDRAWN),
    "Slots.take fence": Control(_x86("cancel"), RAN_WITHDRAWN),
    "RecordRingWriter.write fence": Control(_RECORD, TORN),
    "RecordRingReader.try_next fence": Control(_RECORD, TORN),
    "RecordRingReader.try_next fence#2": Control(_RECORD, TORN),
    # Steps in a wrong order, or left out
    "publish: the payload before the counter": Control(_native("one slot"), TORN_REQUEST),
    "publish: the head before the counter": Control(_native("one slot"), TORN_REQUEST),
    "complete: the payload before the sequence": Control(_native("one slot"), TORN_REPLY),
    "complete: the head before the sequence": Control(_native("one slot"), TORN_REPLY),
    "complete: the sequence before the counter": Control(_native("counted reply"), MISSED),
    "reply: only under the sequence that is expected": Control(_native("one slot"), TORN_REPLY),
    "slot: used again only after its reply is read": Control(_native("one slot"), LOST),
    "between: no sequence behind the counter": Control(_native("three slots"), WRONG_SLOTS),
    "cut-through: the byte count of 0 before the write id": Control("cut-through", MISCOUNTED),
    "cut-through: the write id before any byte": Control("cut-through", MISCOUNTED),
    "cut-through: bytes before their number": Control("cut-through", MISCOUNTED),
    "cut-through: the write id again after the copy": Control("cut-through", MISCOUNTED),
    "cut-through: only bytes of the write that the head names": Control("cut-through", MIXED),
    "client: the count of replies is noted before the request is published": Control(
        _native("doorbells sealed"), STUCK
    ),
    "client: rings after the counter": Control(_native("doorbells named"), STUCK),
    "client: takes the leftover token before it polls": Control(_native("doorbells sealed"), STUCK),
    "engine: rings after the counter": Control(_native("doorbells named"), STUCK),
    "engine: looks after it has taken the tokens": Control(_native("doorbells named"), STUCK),
    "engine: the token that ended the wait counts as a ring": Control(_native("doorbells named"), STUCK),
    "engine: looks at the channel whose pipe it has read": Control(_native("doorbells sealed"), STUCK),
    "restart: a request is marked as taken before it runs": Control(_native("restart"), RAN_TWICE),
    "restart: a request that had begun is not answered as cancelled": Control(_native("cancel"), DENIED),
    "cancel: the client looks after it has withdrawn": Control(_native("cancel"), RAN_WITHDRAWN),
    "cancel: the engine looks again after it has taken": Control(_native("cancel"), RAN_WITHDRAWN),
    "restart: answered requests are left alone": Control(_native("restart"), ANSWERED_TWICE),
    "record ring: a full ring drops the entry": Control(_RECORD, TORN),
    "record ring: the entry before its count": Control(_RECORD, TORN),
    "record ring: the copy before its place is given back": Control(_RECORD, TORN),
}
#: Orders of the source that no model needs, and why they stay.
SURPLUS: Mapping[str, str] = {
    "ring_take store taken": "the next engine starts after the kernel has reported the end of the first, and a client "
    "reads the sequence alone",
    "ring_is_taken load taken": "as ring_take",
}


def run(model: str, changed: str = "") -> Result:
    """Explore a model, with one of the sites or steps changed."""
    return explore(MODELS[model].build(Given(orders(), changed)))


def asked(model: str) -> Given:
    """The sites and the steps of a model."""
    given = Given(orders())
    MODELS[model].build(given)
    return given


def ordered_sites() -> set[str]:
    """The sites of the source whose order is more than relaxed."""
    return {site for site, order in orders().items() if order is not Order.RELAXED}


def report() -> str:
    """Explore every model and every control; a line for each."""
    lines = []
    for name in MODELS:
        began = time.perf_counter()
        result = run(name)
        found = "; ".join(result.violations) or "nothing"
        lines.append(f"{name}: {result.states} states, {time.perf_counter() - began:.1f} s, violated: {found}")
    for change, control in CONTROLS.items():
        result = run(control.model, change)
        found = "violated as it must be" if control.violates in result.violations else "NOT NOTICED"
        lines.append(f"control {change!r} in {control.model}: {found}: {control.violates}")
    return "\n".join(lines)
