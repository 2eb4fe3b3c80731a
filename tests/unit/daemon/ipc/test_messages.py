"""Messages between supervisor and engine: as they were after the wire, and refused where they are not whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shmserve.channel import ChannelInfo, ChannelNames
from shmserve.daemon.ipc.control import MESSAGE_LIMIT, take_messages
from shmserve.daemon.ipc.messages import (
    AREA_ANSWERS,
    FROM_ENGINE,
    FROM_SUPERVISOR,
    Accepted,
    AllocateArea,
    AreaAllocated,
    AreaAnswer,
    AreaRefused,
    Attach,
    Broken,
    Detach,
    Drain,
    Drained,
    Draining,
    EndRecording,
    EngineMessage,
    ExampleGiven,
    Failed,
    FirstObservation,
    GiveExample,
    Gpu,
    InvalidMessage,
    LimitRate,
    Link,
    Load,
    Loading,
    Lost,
    MapArea,
    Pause,
    Paused,
    Preload,
    Preloaded,
    Ready,
    Record,
    Serve,
    Serving,
    ServingModel,
    Stop,
    SupervisorMessage,
    Suspect,
    Suspicion,
    Warming,
    encode,
)
from shmserve.segment import Identity

_NAMES = ChannelNames("/requests", "/replies", "/request-bell", "/reply-bell")
_LOAD = Load(
    serial=7,
    package="/models/arm",
    version="0123456789abcdef",
    called="arm",
    device="cuda:0",
    allow_code=False,
    threads=4,
    memory_bytes=1 << 33,
    lock_memory=True,
    priority=10,
    spin_us="adaptive",
    wake_ahead=True,
    request_bell="/bell",
    trusted_transport=True,
    register_bytes=0,
    device_leaves=True,
    serving_model=ServingModel("cuda:0", 1 << 30, "/models/before"),
)
_READY = Ready(
    version="0123456789abcdef",
    name="arm \u00fc",
    device="cpu",
    request_bytes=921600,
    reply_bytes=0,
    infer_ms=0.25,
    in_place=False,
    max_batch=8,
    stateful=True,
    real_time_chunking=False,
    contract={"observation": [["x", "<f4", [3]]], "action": None},
    observation=[["x", "<f4", [3]]],
    action=None,
    metadata={"nested": {"list": [1, None, "a\\u0000"]}},
    gpu={"free_bytes": 1},
    backend="native",
    memory_locked=False,
    priority=10,
    remote={"source": "fallback", "reason": None},
)
SUPERVISOR: list[SupervisorMessage] = [
    _LOAD,
    Load(1, "p", None, "c", "cpu", True, None, None, False, 0, 12, False, None, False, None, False, None),
    Attach(ChannelInfo(Identity(1, 2, 3), None), trusted=False, uid=1000, deferred=(), suspicion=None),
    Attach(
        ChannelInfo(Identity(1, 2, 3), _NAMES), trusted=True, uid=0, deferred=(64, 129), suspicion=Suspicion(12.5, True)
    ),
    Suspect(3, Suspicion(60, False)),
    LimitRate(None),
    LimitRate(0.5),
    Detach(255),
    AllocateArea(3, 921_600, 4),
    MapArea(3, 921_600, 4, 4 << 20),
    Lost(1, 2, (64,)),
    Record(None),
    Record(3),
    EndRecording(),
    GiveExample(),
    Serve(),
    Pause(),
    Drain(),
    Stop(),
    Preload(("torchvision", "lerobot.policies")),
]
ENGINE: list[EngineMessage] = [
    Loading("0123456789abcdef"),
    Warming(),
    _READY,
    Failed("load", "ValueError", "a\nb"),
    Serving(),
    Paused(()),
    Paused(((0, 64), (3, 1 << 60))),
    Broken(1, 2, 3, "reason", True, None),
    Broken(1, 2, 3, "reason", False, "detail"),
    Gpu({}),
    Link({"source": "remote"}),
    FirstObservation({"state": {"dtype": "float32", "shape": [7]}}),
    ExampleGiven(96, 1 << 20),
    Draining(3),
    Drained(),
    Preloaded(),
    Accepted(),
]


AREA: list[AreaAnswer] = [AreaAllocated(4 << 20, "10" * 16), AreaRefused("no_memory", "cuMemCreate: ...")]


@pytest.mark.parametrize("fds", [0, 4])
@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        *((message, FROM_SUPERVISOR) for message in SUPERVISOR),
        *((message, FROM_ENGINE) for message in ENGINE),
        *((message, AREA_ANSWERS) for message in AREA),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: Any, kinds: Any, fds: int) -> None:
    received = bytearray(encode(message, fds) + b'{"event": "Det')

    assert take_messages(received, kinds) == [(message, fds)]
    assert received == b'{"event": "Det'


def test_each_message_of_the_list_is_tried_here() -> None:
    assert {type(message).__name__ for message in SUPERVISOR} == set(FROM_SUPERVISOR)
    assert {type(message).__name__ for message in ENGINE} == set(FROM_ENGINE)
    assert {type(message).__name__ for message in AREA} == set(AREA_ANSWERS)


@pytest.mark.parametrize(("messages", "others"), [(SUPERVISOR, FROM_ENGINE), (ENGINE, FROM_SUPERVISOR)])
def test_a_message_of_the_other_direction_is_refused(messages: list[Any], others: Any) -> None:
    for message in messages:
        with pytest.raises(InvalidMessage, match="unknown event"):
            take_messages(bytearray(encode(message)), others)


def _broken(**fields: Any) -> bytes:
    whole = json.loads(encode(Broken(1, 2, 3, "reason", True, None))[:-1])
    return json.dumps({**whole, **fields}).encode()


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "unknown event None"),
        (b'{"event": ["Broken"], "fds": 0}', "unknown event"),
        (b'{"event": "broken", "fds": 0}', "unknown event 'broken'"),
        (b'{"event": "Serving"}', "Serving: fds must be a count, not None"),
        (b'{"event": "Serving", "fds": -1}', "Serving: fds must be a count, not -1"),
        (b'{"event": "Serving", "fds": true}', "Serving: fds must be a count, not True"),
        (b'{"event": "Serving", "fds": 0, "more": 1}', "Serving has the fields none, not more"),
        (b'{"event": "Broken", "fds": 0}', "Broken has the fields epoch, channel, .*, not none"),
        (_broken(channel="2"), "Broken: channel must be int, not '2'"),
        (_broken(channel=2.0), "Broken: channel must be int, not 2.0"),
        (_broken(channel=True), "Broken: channel must be int, not True"),
        (_broken(channel=None), "Broken: channel must be int, not None"),
        (_broken(channel=[[[]]]), "Broken: channel must be int"),
        (_broken(blame=1), "Broken: blame must be bool, not 1"),
        (_broken(detail=5), "Broken: detail must be str, not 5"),
        (_broken(reason={"a": 1}), "Broken: reason must be str"),
        (_broken(extra=1), "Broken has the fields"),
        (b'{"event": "Paused", "fds": 0, "deferred": 3}', "Paused: deferred must be a list, not 3"),
        (b'{"event": "Paused", "fds": 0, "deferred": [[1]]}', "Paused: deferred must be a list of 2, not"),
        (b'{"event": "Paused", "fds": 0, "deferred": [[1, "2"]]}', "Paused: deferred must be int, not '2'"),
        (b'{"event": "Gpu", "fds": 0, "gpu": []}', "Gpu: gpu must be dict"),
        (b'{"event": "Draining", "fds": 0, "waiting": NaN}', "Draining: waiting must be int, not nan"),
    ],
)
def test_a_frame_that_is_not_a_whole_message_is_refused(frame: bytes, text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        take_messages(bytearray(frame + b"\0"), FROM_ENGINE)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("channel_info",), None, "Attach: channel_info must be an object, not None"),
        (("channel_info", "names"), [], "Attach: channel_info: names must be an object"),
        (("channel_info", "identity", "epoch"), "1", "Attach: channel_info: identity: epoch must be int, not '1'"),
        (("deferred",), [1, None], "Attach: deferred must be int, not None"),
        (("suspicion",), {"left_s": 1.0}, "Attach: suspicion has the fields left_s, blamed, not left_s"),
        (("uid",), 0.5, "Attach: uid must be int, not 0.5"),
    ],
)
def test_a_field_inside_a_message_is_looked_at_as_well(path: tuple[str, ...], value: Any, text: str) -> None:
    content = json.loads(encode(SUPERVISOR[2])[:-1])
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value

    with pytest.raises(InvalidMessage, match=text):
        take_messages(bytearray(json.dumps(content).encode() + b"\0"), FROM_SUPERVISOR)


def test_a_message_without_an_end_is_refused_at_a_limit() -> None:
    received = bytearray(MESSAGE_LIMIT)
    received[:] = b"x" * MESSAGE_LIMIT

    assert take_messages(received, FROM_ENGINE) == []
    with pytest.raises(InvalidMessage, match="more than 1048576 bytes"):
        take_messages(received + b"x", FROM_ENGINE)


def test_a_value_that_json_cannot_carry_is_an_error_of_the_sender() -> None:
    with pytest.raises(TypeError, match="object cannot be part of a message"):
        encode(Gpu({"x": object()}))


@pytest.mark.parametrize("spin_us", ["always", 1.5, True, None, [1]])
def test_a_setting_is_one_of_its_values(spin_us: Any) -> None:
    content = {**json.loads(encode(_LOAD)[:-1]), "spin_us": spin_us}

    with pytest.raises(InvalidMessage, match="Load: spin_us must be 'adaptive', not"):
        take_messages(bytearray(json.dumps(content).encode() + b"\0"), FROM_SUPERVISOR)
