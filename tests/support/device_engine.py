"""What serves on a device, in this process: channels of clients that do as they are told, and no loop around it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch

from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder, Encoder
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.channel.mapped_channel import MappedChannel
from shmserve.daemon.engine.device.context import DeviceContext
from shmserve.daemon.engine.device.graphs import Graphs
from shmserve.daemon.engine.device.serving import DeviceServing
from shmserve.daemon.engine.device.waiting import DeviceWait
from shmserve.daemon.engine.device.warming import warm_up_device
from shmserve.daemon.engine.models.model import Model
from shmserve.daemon.engine.models.python_class import make_policy
from shmserve.daemon.ipc.stats import Stats, create_stats_memory
from shmserve.daemon.packages.package import ModelPackage
from shmserve.layout import Geometry, number_of, sequence_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead, RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from shmserve.spin import SpinBudget
from tests.support.late_device import LateDevice

_SLOTS = 4


class Client:
    """One channel, both ends."""

    def __init__(self, number: int, engine: DeviceEngine, payload_bytes: int) -> None:
        geometry = Geometry(slots=_SLOTS, metadata_bytes=4096, payload_bytes=payload_bytes)
        self._sealed = SealedChannelFds()
        channel_info = ChannelInfo(Identity(number + 1, number, 1), None)
        self.channel = ClientChannel(channel_info, self._sealed.create(channel_info.identity, geometry, geometry))
        ends = [os.dup(descriptor) for descriptor in self._sealed.engine_ends()]
        self.state = ChannelState(
            MappedChannel(channel_info, ends, registrar=engine.context.registrar),
            trusted=True,
            uid=0,
            rate=None,
            tensors_on=engine.device.torch_device,
            numbers=itertools.count(1),
            deferred=(),
            stats=engine.stats,
        )
        self.state.open()
        self._encoder, self._decoder = Encoder(allow_pickle=True), Decoder(allow_pickle=True)

    def submit(self, tree: Any, **words: int) -> int:
        """Publish an observation; its sequence. `words` are of its head."""
        number = number_of(self.channel.requests.published()) + 1
        sequence = sequence_of(number, number % _SLOTS)
        encoded = self._encoder.encode(tree, self.channel.requests.memory(sequence))
        flags = Flag.PICKLED if encoded.pickled else 0
        head = RequestHead(sequence, Kind.INFER, flags, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0)
        self.channel.requests.publish(tuple(head._replace(**words)))
        return sequence

    def head(self, sequence: int) -> ReplyHead | None:
        """The head of the reply; None before there is one."""
        return self.channel.replies.try_head(sequence)

    def status(self, sequence: int) -> Status:
        """Of the reply, which there is."""
        head = self.head(sequence)
        assert head is not None, "there is no reply"
        return Status(head.status)

    def reply(self, sequence: int) -> Any:
        """What the reply holds: an action, or (type, text) of an error."""
        head = self.head(sequence)
        assert head is not None, "there is no reply"
        memory = self.channel.replies.memory(sequence)
        return self._decoder.decode(memory, head.schema, head.metadata_bytes, head.payload_bytes)

    def close(self) -> None:
        self.state.close()
        self.channel.close()
        self._sealed.close()


def _loaded(package: ModelPackage, device: torch.device) -> Model:
    """The policy of a package, whose module is nobody else's afterwards."""
    spec = importlib.util.spec_from_file_location(f"policy_{id(package)}", package.path / "policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return make_policy(module.Policy, package, device)


class DeviceEngine:
    """`stage` what clients have published, `launch`, `wait`, `finish`; or `run` all of it."""

    def __init__(
        self,
        model: Model | Path,
        *,
        clients: int = 3,
        device: LateDevice | None = None,
        payload_bytes: int = 4096,
        register_bytes: int | None = None,
        in_place: bool = False,
        max_batch: int = 4,
        settled: bool = True,
    ) -> None:
        """`model`: a package is loaded and warmed up as an engine does it. Closes `device` in the end.

        `in_place`: the policy reads the clients' memory. `settled`: wait for the registration of the clients' memory.
        """
        self.device = device or LateDevice()
        self.stats = Stats(create_stats_memory())
        self.context = DeviceContext(self.device, max_batch=max_batch, register_bytes=register_bytes, in_place=in_place)
        graphs: Graphs | None = None
        if isinstance(model, Path):
            package = ModelPackage.read(model)
            model = _loaded(package, self.device.torch_device)
            _, graphs = warm_up_device(model, self.context, package)
        self.context.make_room(payload_bytes)
        self.serving = DeviceServing(
            model,
            self.stats,
            self.context,
            DeviceWait(SpinBudget(0)),
            version=7,
            max_batch=max_batch,
            stateful=False,
            checks={},
            graphs=graphs,
        )
        self.clients = [Client(number, self, payload_bytes) for number in range(clients)]
        if settled:
            self.settle()

    def settle(self) -> None:
        """Wait until clients' memory is registered or given up as far as that was asked for."""
        done = threading.Event()
        self.context.registrar.submit(done.set)
        assert done.wait(20), "the thread of registrations ended or hangs"

    def stage(self, *, ahead: bool = False) -> None:
        """Take over what was published and not looked at yet."""
        for client in self.clients:
            client.state.look(time.monotonic_ns())
            while client.state.waiting:
                self.serving.stage(client.state, client.state.waiting.popleft(), ahead=ahead)
        if ahead:
            self.serving.send_ahead()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def launch(self) -> bool:
        """Start the model on what is staged."""
        return self.serving.launch()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Wait for the device, and answer."""
        self.serving.wait(lambda: None, lambda ns: None)
        self.serving.finish()

    def run(self) -> None:
        """Answer all that was published."""
        self.stage()
        if self.serving.staged and self.launch():
            self.finish()

    def close(self) -> None:
        """End it; nothing may be left registered."""
        for client in self.clients:
            client.close()
        self.settle()
        self.stats.close()
        self.device.close()
        assert self.device.gpus.registered == {}
