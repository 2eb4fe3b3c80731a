"""Export of a recording to MCAP, for Foxglove, PlotJuggler and Rerun.

Frames are messages of Foxglove's RawImage in protobuf, the encoding that all viewers of images read. The other values are
JSON with a JSON schema: names of entries may be any text, which protobuf does not allow. Topics of a recording of several
clients begin with /client_N, N as the recording counts them:

    /observation/NAME    a frame, at the time when the request was sent
    /observation         the observation without its frames
    /action              the action, at the time when the service had it
    /request             the facts: kind, status, error, model version, times inside the service
    /log                 failed requests and resets
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import RecordingError
from .export_source import ExportSource, SplitRequest
from .frames import Frame
from .plain_json import Schema, plain_json, schema_of
from .recording import RequestFacts

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
    from mcap.writer import Writer
except ModuleNotFoundError as error:
    raise RecordingError(f"{error.name} is not installed here: pip install 'shmserve[export]'") from error

#: Fields of foxglove.RawImage: name, number, type.
_FIXED32, _STRING, _BYTES, _MESSAGE = 7, 9, 12, 11
_RAW_IMAGE = (
    ("timestamp", 1, _MESSAGE),
    ("frame_id", 7, _STRING),
    ("width", 2, _FIXED32),
    ("height", 3, _FIXED32),
    ("encoding", 4, _STRING),
    ("step", 5, _FIXED32),
    ("data", 6, _BYTES),
)
_TIME: Schema = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_LOG: Schema = {
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "level": {"type": "integer"},
        "message": {"type": "string"},
        "name": {"type": "string"},
        "file": {"type": "string"},
        "line": {"type": "integer"},
    },
}
_INFO, _ERROR = 2, 4
#: A file has room for 65,535; an observation whose keys are data would use them up.
_MOST_SCHEMAS = 1000
_REQUEST: Schema = {
    "type": "object",
    "properties": {
        **{key: {"type": "integer"} for key in ("number", "client", "lease", "sequence")},
        **{key: {"type": "string"} for key in ("kind", "status", "model_version", "error")},
        **{key: {"type": "number"} for key in ("at_s", "queued_us", "staged_us", "infer_us", "copied_us")},
    },
}


def export_mcap(source: ExportSource, out: Path) -> dict[str, int]:
    """Write the recording to the new file `out`; return counts. Raises RecordingError or OSError."""
    with out.open("xb", buffering=1 << 20) as stream:
        writer = Writer(stream)
        writer.start(library="shmserve")
        writer.add_metadata("shmserve", _about(source))
        counts = _Mcap(writer, source).run()
        writer.finish()  # type: ignore[no-untyped-call]
    return counts


def _about(source: ExportSource) -> dict[str, str]:
    model = source.about.get("model")
    model = model if isinstance(model, dict) else {}
    found = {**source.about, "model": model.get("name"), "model_version": model.get("version")}
    return {key: str(value) for key, value in found.items() if value is not None}


def _image_classes() -> tuple[Any, bytes]:
    """Return the class of RawImage messages, and their schema for the file."""
    field = descriptor_pb2.FieldDescriptorProto
    described = descriptor_pb2.FileDescriptorProto(
        name="foxglove/RawImage.proto",
        package="foxglove",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )
    message = described.message_type.add(name="RawImage")
    for name, number, kind in _RAW_IMAGE:
        added = message.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
        if kind == _MESSAGE:
            added.type_name = ".google.protobuf.Timestamp"
    time = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(time)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(time)
    pool.Add(described)
    image = message_factory.GetMessageClass(pool.FindMessageTypeByName("foxglove.RawImage"))
    return image, descriptor_pb2.FileDescriptorSet(file=[time, described]).SerializeToString()


class _Mcap:
    """An MCAP file that is being written: its channels, each made at its first message."""

    def __init__(self, writer: Writer, source: ExportSource) -> None:
        self._writer = writer
        self._source = source
        self._several = len(source.leases) > 1
        self._image, image_schema = _image_classes()
        self._image_schema = writer.register_schema("foxglove.RawImage", "protobuf", image_schema)
        self._schemas: dict[tuple[str, str], int] = {}
        self._channels: dict[tuple[str, int], int] = {}
        self._counts = {"requests": 0, "frames": 0, "actions": 0, "failed": 0, "resets": 0}

    def run(self) -> dict[str, int]:
        for request in self._source.requests():
            self._add(request)
        return self._counts

    def _add(self, request: SplitRequest) -> None:
        facts = request.facts
        at_ns = max(0, self._source.began_ns + round(facts.at_s * 1e9))
        done_ns = at_ns + round((facts.service_us or 0.0) * 1e3)
        top = f"/client_{facts.lease}" if self._several else ""
        self._counts["requests"] += 1
        for frame in request.frames:
            self._frame(f"{top}/observation/{_topic(frame.name)}", frame, at_ns, facts)
        if facts.kind == "infer":
            self._json(f"{top}/observation", "observation", _named(request.observation, "observation"), at_ns, facts)
        if facts.kind == "infer" and facts.status == "ok":
            self._json(f"{top}/action", "action", _named(request.action, "action"), done_ns, facts)
            self._counts["actions"] += 1
        self._json(f"{top}/request", "shmserve.Request", asdict(facts), done_ns, facts, _REQUEST)
        if facts.kind == "reset":
            self._counts["resets"] += 1
            self._log(top, _INFO, "reset", done_ns, facts)
        if facts.status != "ok":
            self._counts["failed"] += 1
            text = f"request {facts.number}: {facts.status}{f': {facts.error}' if facts.error else ''}"
            self._log(top, _ERROR, text, done_ns, facts)

    def _frame(self, topic: str, frame: Frame, at_ns: int, facts: RequestFacts) -> None:
        pixels = frame.pixels.astype(frame.pixels.dtype.newbyteorder("<"), copy=False)
        message = self._image(
            frame_id=_topic(frame.name),
            width=pixels.shape[1],
            height=pixels.shape[0],
            encoding=frame.encoding,
            step=pixels.strides[0],
            data=pixels.tobytes(),
        )
        message.timestamp.FromNanoseconds(at_ns)
        self._message(topic, "protobuf", self._image_schema, message.SerializeToString(), at_ns, facts)
        self._counts["frames"] += 1

    def _log(self, top: str, level: int, text: str, at_ns: int, facts: RequestFacts) -> None:
        time = {"sec": at_ns // 1_000_000_000, "nsec": at_ns % 1_000_000_000}
        name = f"client {facts.lease}"
        message = {"timestamp": time, "level": level, "message": text, "name": name, "file": "", "line": 0}
        self._json(f"{top}/log", "foxglove.Log", message, at_ns, facts, _LOG)

    def _json(
        self, topic: str, name: str, content: Any, at_ns: int, facts: RequestFacts, schema: Schema | None = None
    ) -> None:
        if schema is None:
            schema = schema_of(content) if len(self._schemas) < _MOST_SCHEMAS else {"type": "object"}
        text = json.dumps({"title": name, **schema})
        if (name, text) not in self._schemas:
            self._schemas[name, text] = self._writer.register_schema(name, "jsonschema", text.encode())
        data = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        self._message(topic, "json", self._schemas[name, text], data, at_ns, facts)

    def _message(self, topic: str, encoding: str, schema: int, data: bytes, at_ns: int, facts: RequestFacts) -> None:
        channel = self._channels.get((topic, schema))
        if channel is None:
            channel = self._channels[topic, schema] = self._writer.register_channel(topic, encoding, schema)
        self._writer.add_message(channel, at_ns, data, at_ns, facts.sequence & 0xFFFFFFFF)


def _named(tree: Any, name: str) -> dict[str, Any]:
    """The tree as a JSON object: one that is not a dict is the only entry of one."""
    content = plain_json(tree)
    return content if isinstance(content, dict) else {name: content}


def _topic(name: str) -> str:
    """The end of a topic for an entry.

    >>> _topic("images.front"), _topic("observation.images.front"), _topic("history[2]")
    ('images/front', 'images/front', 'history/2')
    """
    return name.removeprefix("observation.").replace(".", "/").replace("[", "/").replace("]", "")
