"""LeRobot's protocol: gRPC and pickle, the observation as a stream of 2 MB chunks, the actions by a second call.

Follows LeRobot 0.6's `transport/utils.py`, `transport/services.proto` and `async_inference/policy_server.py`
(Apache-2.0, Hugging Face) on the wire: service transport.AsyncInference, the same messages, chunks, limits and thread
count. Three things are left out, all to its advantage or needed here: the sleep that pads each inference to 33 ms,
the similarity filter that drops observations, and its single queue, which would hand one client's actions to another:
here each client has a queue. The actions are one array, not a list of 16 TimedActions.
"""

from __future__ import annotations

import io
import pickle
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from types import SimpleNamespace
from typing import Any

from .peer import Infer, Ready, ServedPeer
from .policy import Policy

CHUNK_BYTES = 2 << 20
MESSAGE_BYTES = 4 << 20
SERVER_THREADS = 4
QUEUE_TIMEOUT_S = 2.0
BEGIN, MIDDLE, END = 1, 2, 3
SERVICE = "transport.AsyncInference"
OPTIONS = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]


@dataclass
class TimedObservation:
    """Observation as LeRobot's client pickles it."""

    timestamp: float
    timestep: int
    observation: dict[str, Any]
    must_go: bool = True


def messages() -> SimpleNamespace:
    """Build the message classes of services.proto at run time, without protoc."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="shmserve_bench.proto", package="transport", syntax="proto3")
    state = file.enum_type.add(name="TransferState")
    for number, name in enumerate(("TRANSFER_UNKNOWN", "TRANSFER_BEGIN", "TRANSFER_MIDDLE", "TRANSFER_END")):
        state.value.add(name=name, number=number)
    observation = file.message_type.add(name="Observation")
    observation.field.add(name="transfer_state", number=1, label=1, type=14, type_name=".transport.TransferState")
    observation.field.add(name="data", number=2, label=1, type=12)
    file.message_type.add(name="Actions").field.add(name="data", number=1, label=1, type=12)
    file.message_type.add(name="Empty")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("Observation", "Actions", "Empty")
    found = (pool.FindMessageTypeByName(f"transport.{name}") for name in names)
    return SimpleNamespace(**dict(zip(names, map(message_factory.GetMessageClass, found), strict=True)))


def in_chunks(data: bytes, message: Any) -> Iterator[Any]:
    """LeRobot's send_bytes_in_chunks."""
    buffer, sent = io.BytesIO(data), 0
    while sent < len(data):
        state = END if sent + CHUNK_BYTES >= len(data) else MIDDLE if sent else BEGIN
        chunk = buffer.read(CHUNK_BYTES)
        yield message(transfer_state=state, data=chunk)
        sent += len(chunk)


def joined(chunks: Iterable[Any]) -> bytes:
    """LeRobot's receive_bytes_in_chunks."""
    buffer = io.BytesIO()
    for chunk in chunks:
        buffer.write(chunk.data)
        if chunk.transfer_state == END:
            break
    return buffer.getvalue()


class LeRobotGrpc(ServedPeer):
    """Peer with `PolicyServer` and the two calls of `RobotClient`."""

    name = "lerobot-grpc"
    packages = ("grpc", "google.protobuf")

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        import grpc

        types, policy = messages(), Policy()
        latest: defaultdict[str, Queue[TimedObservation]] = defaultdict(lambda: Queue(maxsize=1))

        def send_observations(chunks: Iterable[Any], context: grpc.ServicerContext) -> Any:
            observation, queue = pickle.loads(joined(chunks)), latest[context.peer()]
            try:
                queue.put_nowait(observation)
            except Full:
                queue.get_nowait()
                queue.put_nowait(observation)
            return types.Empty()

        def get_actions(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                timed = latest[context.peer()].get(timeout=QUEUE_TIMEOUT_S)
            except Empty:
                return types.Actions()
            return types.Actions(data=pickle.dumps(policy.infer(timed.observation)))

        def serialize(message: Any) -> bytes:
            data: bytes = message.SerializeToString()
            return data

        handlers = {
            "SendObservations": grpc.stream_unary_rpc_method_handler(
                send_observations, types.Observation.FromString, serialize
            ),
            "GetActions": grpc.unary_unary_rpc_method_handler(get_actions, types.Empty.FromString, serialize),
        }
        server = grpc.server(ThreadPoolExecutor(SERVER_THREADS))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        ready(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        server.wait_for_termination()

    def connect(self) -> Infer:
        import grpc

        types = messages()
        channel = grpc.insecure_channel(self.address, OPTIONS)
        send = channel.stream_unary(f"/{SERVICE}/SendObservations", types.Observation.SerializeToString)
        get = channel.unary_unary(f"/{SERVICE}/GetActions", types.Empty.SerializeToString, types.Actions.FromString)
        step = 0

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            nonlocal step
            step += 1
            timed = TimedObservation(time.time(), step, observation)
            send(in_chunks(pickle.dumps(timed), types.Observation))
            reply: dict[str, Any] = pickle.loads(get(types.Empty()).data)
            return reply

        return infer
