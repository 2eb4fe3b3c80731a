"""Messages between a supervisor and its engines, and their encoding.

Each message is a frozen dataclass; `FROM_SUPERVISOR` and `FROM_ENGINE` at the end list them all. On the wire it is one
JSON object with the name of the class as `event`, its fields, and `fds`, the number of descriptors that come with it.
A NUL byte ends it. Both processes are of one release (see release.py), so nothing is optional and nothing unknown is
skipped: a message that does not have exactly its fields, each of its type, is an InvalidMessage. An engine runs the
model's code, which can write to any descriptor of its process.

>>> frame = encode(Detach(channel=3))
>>> frame
b'{"event": "Detach", "channel": 3, "fds": 0}\\x00'
>>> decode(frame[:-1], FROM_SUPERVISOR)
(Detach(channel=3), 0)
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from shmserve.channel import ChannelInfo
from shmserve.spin import SpinSetting


class InvalidMessage(ValueError):
    """A frame is not a message, or not one that this side takes."""


@dataclass(frozen=True)
class Suspicion:
    """A client that may have killed an engine: how long it runs alone and behind the others (s).

    `blamed`: one death was this client's alone.
    """

    left_s: float
    blamed: bool


@dataclass(frozen=True)
class ServingModel:
    """The use that the serving engine makes of its GPU, for an engine that is to share it."""

    device: str
    model_bytes: int
    package: str


# From the supervisor


@dataclass(frozen=True)
class Preload:
    """Import these modules, and then wait for Load; answered by Preloaded, or by Failed if one cannot be imported."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """Load and warm up a model. The first message."""

    serial: int  # of the engine; a daemon's first is 1
    package: str  # directory
    version: str | None  # that the package must have; None: any
    called: str  # name for a package that has none
    device: str
    allow_code: bool
    threads: int | None
    memory_bytes: int | None
    lock_memory: bool
    priority: int  # real-time; 0: normal
    spin_us: SpinSetting
    wake_ahead: bool
    request_bell: str | None  # semaphore of transport `named`
    trusted_transport: bool
    register_bytes: int | None
    device_leaves: bool  # clients may give arrays in GPU memory
    serving_model: ServingModel | None


@dataclass(frozen=True)
class Attach:
    """Serve a channel, or the next generation of one. Its descriptors come with it (transport `sealed`)."""

    channel_info: ChannelInfo
    trusted: bool
    uid: int
    deferred: tuple[int, ...]  # sequences of deferred replies for which the client has made room
    suspicion: Suspicion | None


@dataclass(frozen=True)
class Suspect:
    """A client of a channel that is attached is suspected from now on."""

    channel: int
    suspicion: Suspicion


@dataclass(frozen=True)
class LimitRate:
    """The requests a second that each user may send from now on; None: any."""

    max_rate_per_user: float | None


@dataclass(frozen=True)
class Detach:
    """The client of a channel has left."""

    channel: int


@dataclass(frozen=True)
class AllocateArea:
    """Allocate GPU memory for a channel's slots, `area_bytes` each, and map it; it replaces the channel's earlier memory.

    Answered on the socket that comes with it, by AreaAllocated with the memory's descriptor, or by AreaRefused.
    """

    channel: int
    area_bytes: int
    slots: int


@dataclass(frozen=True)
class MapArea:
    """Map GPU memory of a channel's slots, which another engine has allocated; its descriptor comes with this."""

    channel: int
    area_bytes: int
    slots: int
    bytes: int


@dataclass(frozen=True)
class Lost:
    """The engine that deferred these replies has ended: answer the requests with ENGINE_LOST."""

    channel: int
    generation: int
    deferred: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """Put the requests of a channel, or of all, on the record ring whose descriptor comes with this."""

    channel: int | None


@dataclass(frozen=True)
class EndRecording:
    """Put nothing more on the record ring."""


@dataclass(frozen=True)
class Serve:
    """Take requests; answered by Serving."""


@dataclass(frozen=True)
class Pause:
    """Take no further request; answered by Paused once none is in hand."""


@dataclass(frozen=True)
class GiveExample:
    """Write the warm-up's observation to the memory whose descriptor comes with it; answered by ExampleGiven."""


@dataclass(frozen=True)
class Drain:
    """Answer what was published, then end; answered by Draining, and Drained at the end."""


@dataclass(frozen=True)
class Stop:
    """End once no request is in hand."""


# From an engine


@dataclass(frozen=True)
class Preloaded:
    """Torch and the modules are imported, and the process waits for Load."""


@dataclass(frozen=True)
class Accepted:
    """The order to load a model has arrived."""


@dataclass(frozen=True)
class Loading:
    """The package is read, and its model is being loaded."""

    version: str


@dataclass(frozen=True)
class Warming:
    """The model is loaded and warms up."""


@dataclass(frozen=True)
class Ready:
    """The model is warm."""

    version: str
    name: str
    device: str
    request_bytes: int
    reply_bytes: int
    infer_ms: float | None
    in_place: bool
    max_batch: int
    stateful: bool
    real_time_chunking: bool  # the policy takes the entries of shmserve.real_time_chunking
    contract: dict[str, Any]
    observation: Any  # a side of the contract, as the next one
    action: Any
    metadata: dict[str, Any]
    gpu: dict[str, Any] | None
    backend: str
    memory_locked: bool | None  # None: not requested
    priority: int | None  # real-time, 0 where it was refused; None: not requested
    remote: dict[str, Any] | None  # of a link (format remote): its state, as the next message


@dataclass(frozen=True)
class Link:
    """The state of the link to the remote model has changed."""

    remote: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The model cannot be served; the engine ends."""

    stage: str
    error: str
    message: str


@dataclass(frozen=True)
class Serving:
    """The engine takes requests."""


@dataclass(frozen=True)
class Paused:
    """The engine has no request in hand. `deferred`: (channel, sequence) of each reply that it has deferred."""

    deferred: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Broken:
    """The engine has given up a channel."""

    epoch: int
    channel: int
    generation: int
    reason: str  # for the client
    blame: bool  # False: the client may attach again at once
    detail: str | None  # for the log


@dataclass(frozen=True)
class Gpu:
    """The use of the GPU has changed."""

    gpu: dict[str, Any]


@dataclass(frozen=True)
class FirstObservation:
    """A model without an example has answered its first request: the entries of that observation, without their values."""

    entries: dict[str, Any]


@dataclass(frozen=True)
class ExampleGiven:
    """The observation is written, its metadata and then its payload; 0 bytes: the model has none, or memory is short."""

    metadata_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Draining:
    """The engine answers what was published before Drain."""

    waiting: int


@dataclass(frozen=True)
class Drained:
    """All of it is answered; the engine ends."""


# On the socket of AllocateArea


@dataclass(frozen=True)
class AreaAllocated:
    """The memory is mapped in this engine."""

    bytes: int  # of whole pages of the GPU
    gpu: str  # its UUID, in hexadecimal


@dataclass(frozen=True)
class AreaRefused:
    """There is no such memory: `reason` is "numpy", "no_memory" or "failed"."""

    reason: str
    message: str


SupervisorMessage: TypeAlias = "Preload | Load | Attach | Suspect | LimitRate | Detach | AllocateArea | MapArea | Lost | Record | EndRecording | GiveExample | Serve | Pause | Drain | Stop"
EngineMessage: TypeAlias = (
    "Preloaded | Accepted | Loading | Warming | Ready | Failed | Serving | Paused | Broken | Gpu | Link | FirstObservation | ExampleGiven | Draining "
    "| Drained"
)
AreaAnswer: TypeAlias = "AreaAllocated | AreaRefused"
Message: TypeAlias = "SupervisorMessage | EngineMessage | AreaAnswer"

# Encoding


def encode(message: Message, fds: int = 0) -> bytes:
    """One message with the number of descriptors that go with it, and the NUL that ends it."""
    return json.dumps({"event": type(message).__name__, **vars(message), "fds": fds}, default=_plain).encode() + b"\0"


def decode(frame: bytes | bytearray, kinds: Mapping[str, _Reader]) -> tuple[Any, int]:
    """The message in a frame without its NUL, and how many descriptors it has; raises InvalidMessage.

    `kinds` is FROM_SUPERVISOR or FROM_ENGINE.
    """
    try:
        return _decoded(frame, kinds)
    except RecursionError:
        raise InvalidMessage("a message that is nested too deeply") from None


def _decoded(frame: bytes | bytearray, kinds: Mapping[str, _Reader]) -> tuple[Any, int]:
    try:
        content = json.loads(frame)
    except ValueError as error:
        raise InvalidMessage(f"a message that is not JSON: {error}") from None
    if type(content) is not dict:
        raise InvalidMessage("a message that is not a JSON object")
    event, descriptors = content.pop("event", None), content.pop("fds", None)
    if type(event) is not str or event not in kinds:
        raise InvalidMessage(f"a message of unknown event {event!r:.60}")
    if type(descriptors) is not int or descriptors < 0:
        raise InvalidMessage(f"{event}: fds must be a count, not {descriptors!r:.60}")
    return kinds[event](event, content), descriptors


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return vars(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a message")


#: Makes a value of a type out of JSON; `place` names it in an InvalidMessage.
_Reader: TypeAlias = "Callable[[str, Any], Any]"


def _object_reader(kind: type[Any]) -> _Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}

    def read(place: str, value: Any) -> Any:
        if type(value) is not dict:
            raise InvalidMessage(f"{place} must be an object, not {value!r:.60}")
        if value.keys() != readers.keys():
            expected, given = ", ".join(readers) or "none", ", ".join(value) or "none"
            raise InvalidMessage(f"{place} has the fields {expected}, not {given:.200}")
        return kind(**{name: reader(f"{place}: {name}", value[name]) for name, reader in readers.items()})

    return read


def _reader(hint: Any) -> _Reader:
    if hint is Any:
        return lambda place, value: value
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _object_reader(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    allowed = {float: (float, int), dict: (dict,)}.get(origin or hint, (hint,))

    def read(place: str, value: Any) -> Any:
        if type(value) not in allowed:  # not isinstance: True is an int
            raise InvalidMessage(f"{place} must be {(origin or hint).__name__}, not {value!r:.60}")
        return value

    return read


def _union_reader(arguments: tuple[Any, ...]) -> _Reader:
    readers = [_reader(each) for each in arguments if each is not types.NoneType]

    def read(place: str, value: Any) -> Any:
        if value is None and types.NoneType in arguments:
            return None
        for reader in readers[:-1]:
            try:
                return reader(place, value)
            except InvalidMessage:
                continue
        return readers[-1](place, value)

    return read


def _literal_reader(allowed: tuple[Any, ...]) -> _Reader:
    def read(place: str, value: Any) -> Any:
        if value not in allowed:
            raise InvalidMessage(f"{place} must be {' or '.join(map(repr, allowed))}, not {value!r:.60}")
        return value

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> _Reader:
    any_length = arguments[-1] is Ellipsis
    readers = [_reader(each) for each in arguments if each is not Ellipsis]

    def read(place: str, value: Any) -> Any:
        if type(value) is not list or not (any_length or len(value) == len(readers)):
            raise InvalidMessage(
                f"{place} must be a list{'' if any_length else f' of {len(readers)}'}, not {value!r:.60}"
            )
        each: Iterable[_Reader] = readers * len(value) if any_length else readers
        return tuple(reader(place, item) for reader, item in zip(each, value, strict=True))

    return read


def _readers(*kinds: type[Any]) -> dict[str, _Reader]:
    return {kind.__name__: _object_reader(kind) for kind in kinds}


#: Every message, by its event and its direction.
FROM_SUPERVISOR = _readers(
    Preload,
    Load,
    Attach,
    Suspect,
    LimitRate,
    Detach,
    AllocateArea,
    MapArea,
    Lost,
    Record,
    EndRecording,
    GiveExample,
    Serve,
    Pause,
    Drain,
    Stop,
)
AREA_ANSWERS = _readers(AreaAllocated, AreaRefused)
FROM_ENGINE = _readers(
    Preloaded,
    Accepted,
    Loading,
    Warming,
    Ready,
    Failed,
    Serving,
    Paused,
    Broken,
    Gpu,
    Link,
    FirstObservation,
    ExampleGiven,
    Draining,
    Drained,
)
