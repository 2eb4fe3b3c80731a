"""The engine: loads a model and serves the channels as its supervisor directs. `main.py` starts its process."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os
import resource
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shmserve.backend import BACKEND
from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.contract import Entries
from shmserve.doorbell import NamedDoorbell
from shmserve.errors import ModelPackageError
from shmserve.record_ring import RecordRingBroken, RecordRingWriter
from shmserve.shortened import shortened
from shmserve.spin import SpinBudget

from ..failpoints import failpoint
from ..host import descriptors
from ..ipc.control import Arrival, ControlSocket
from ..ipc.messages import (
    AllocateArea,
    Attach,
    Broken,
    Detach,
    Drain,
    Drained,
    Draining,
    EndRecording,
    ExampleGiven,
    Failed,
    FirstObservation,
    GiveExample,
    Gpu,
    LimitRate,
    Link,
    Load,
    Loading,
    Lost,
    MapArea,
    Pause,
    Paused,
    Ready,
    Record,
    Serve,
    Stop,
    Suspect,
    Warming,
)
from ..ipc.messages import Serving as ServingMessage
from ..ipc.stats import Stats
from ..packages.package import ModelPackage
from .channel.channel_state import ChannelState
from .channel.mapped_channel import MappedChannel
from .channel.overhead import Overheads
from .channel.request_rate_limit import Rates
from .device import cuda
from .device.area_orders import AreaOrders
from .device.areas import Areas
from .device.availability import DeviceMissing
from .device.context import DeviceContext, open_context
from .device.errors import guarded
from .device.interface import Device
from .device.loop import DeviceLoop, GuardedLoop
from .device.serving import DeviceServing
from .device.waiting import DeviceWait
from .device.warming import warm_up_device
from .device_failure import EXIT_STATUS, DeviceLost
from .error_text import log_message, name_of, text_of
from .loop.channel_setup import TURN_NS, Channels
from .loop.doorbells import Doorbells, SharedDoorbell
from .loop.loop import EngineLoop
from .loop.pipe_doorbells import PipeDoorbells
from .loop.wake_ahead import WakeAhead
from .memory_lock import lock_memory
from .models import load_model
from .models.determinism import deterministic, require_determinism
from .models.model import Model
from .models.remote import RemoteModel
from .real_time_priority import request_priority
from .requests.fast_path import FastPathServing
from .requests.recording import RecordedServing
from .requests.relaying import RelayServing
from .requests.serving import Serving
from .warmup.example import Example, write_example
from .warmup.link import warm_up_link
from .warmup.warmup import warm_up

log = logging.getLogger(__name__)

_ERROR_TEXT = 2000
#: Stack frames logged for a model that cannot be loaded: more than for a request, because libraries load one another.
_LOAD_FRAMES = 64
#: Size limit for the structure of the first observation, whose keys a client chose.
_FIRST_BYTES = 8 << 10
#: Size limit for a model's contract and metadata, which share messages of 64 KiB with the clients.
_READY_BYTES = 32 << 10


class Engine:
    """Wires the model, the loop and the supervisor's messages."""

    def __init__(self, control: ControlSocket, stats: Stats, order: Load, *, channel_turn_ns: int = TURN_NS) -> None:
        self._control = control
        self._messages: deque[Arrival] = deque()
        self._stats = stats
        self._order = order
        self._channel_turn_ns = channel_turn_ns
        self._serial = order.serial
        #: Of the structures of replies to all clients.
        self._schema_numbers = itertools.count((order.serial << 32) + 1)
        self._device = torch.device("cpu")
        #: The device for the tensors of observations; None if the model takes numpy arrays.
        self._tensors_on: torch.device | None = None
        self._in_place = False
        #: This engine's state for its GPU; None on the CPU.
        self._context: DeviceContext | None = None
        self._loop: EngineLoop | None = None
        self._channels: Channels | None = None
        self._rates = Rates(None)
        self._overheads = Overheads(os.getuid())
        self._serving: Serving | None = None
        #: The same, of a link.
        self._relaying: RelayServing | None = None
        self._record_ring: RecordRingWriter | None = None
        self._drains = False
        self._example: Example | None = None

    def load(self) -> bool:
        """Load and warm up the model; return False, after reporting to the supervisor, if it cannot serve."""
        order = self._order
        stage = "load"
        memory_bytes = order.memory_bytes
        try:
            self._device = torch.device(order.device)
            if memory_bytes is not None and self._device.type == "cpu":
                # This limits memory that the process writes to: mapped code, channels and stats do not count.
                resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
            package = ModelPackage.read(Path(order.package), allow_code=order.allow_code)
            if order.version is not None and package.version != order.version:
                raise ModelPackageError(f"{package.path} is no longer version {order.version}: its files were changed")
            self._control.send(Loading(package.version))
            self._failpoint("loading")
            _configure_torch(package, order.threads)
            if self._device.type == "cuda":
                self._context = context = open_context(cuda.CudaDevice(self._device), package, order)
                self._device = context.device.torch_device
            model = load_model(package, self._device)
            if package.deterministic:
                model = deterministic(model)
            self._tensors_on = None if model.takes_numpy else self._device
            remote = model if isinstance(model, RemoteModel) else None
            if model.takes_numpy and self._context is not None:
                model = _guarded(model, self._context.device)
            stage = "warm up"
            self._control.send(Warming())
            self._failpoint("loaded")
            device_arrays = self._context if not model.takes_numpy else None
            if device_arrays is None:
                with torch.no_grad():
                    result = (
                        warm_up_link(remote, self._device, package) if remote else warm_up(model, self._device, package)
                    )
                graphs = None
            else:
                result, graphs = warm_up_device(model, device_arrays, package)
                if order.device_leaves:
                    device_arrays.areas = Areas(device_arrays.device)
            metadata = _plain(model.metadata())
            _check_size(result.contract, metadata)
        except BaseException as error:  # noqa: BLE001  the model's own code may raise anything
            if type(error) is not DeviceMissing:  # its text explains itself without a stack
                log.error("the model cannot be served: %s failed\n%s", stage, log_message(error, _LOAD_FRAMES))
            message = shortened(text_of(error), _ERROR_TEXT)
            if memory_bytes is not None and _is_out_of_memory(error):
                message += f" (engine_memory_bytes is {memory_bytes})"
            self._control.send(Failed(stage, name_of(error), message))
            return False
        self._failpoint("warm")
        self._in_place = package.read_in_place and device_arrays is None and order.trusted_transport
        settings: dict[str, Any] = {
            "version": int(package.version, 16),
            "max_batch": package.max_batch,
            "stateful": package.stateful,
            "real_time_chunking": package.real_time_chunking,
            "checks": package.checks,
        }
        bell: Doorbells = (
            SharedDoorbell(NamedDoorbell(order.request_bell))
            if order.request_bell is not None
            else PipeDoorbells(self._control.fileno())
        )
        budget = SpinBudget(order.spin_us)
        serving: Serving
        left: deque[EngineChannel] = deque()
        ahead = WakeAhead(self._stats.words) if order.wake_ahead else None
        callbacks = (self._handle_messages, self._report_broken, left.append, ahead)
        if device_arrays is None:
            if remote is None:
                serving = FastPathServing(model, self._stats, in_place=self._in_place, **settings)
            else:
                settings["report"] = lambda state: self._control.send(Link(state))
                serving = self._relaying = RelayServing(remote, self._stats, in_place=self._in_place, **settings)
            wiring = (bell, self._stats, serving, budget, *callbacks)
            self._loop = EngineLoop(*wiring) if self._context is None else GuardedLoop(*wiring, context=self._context)
        else:
            wait = DeviceWait(SpinBudget(order.spin_us))
            serving = DeviceServing(model, self._stats, device_arrays, wait, graphs=graphs, **settings)
            self._loop = DeviceLoop(
                bell, self._stats, serving, budget, *callbacks, context=device_arrays, report=self._report_gpu
            )
        self._example = result.example
        if result.observation is None:
            serving.on_first = self._report_first
        self._serving = serving
        self._channels = Channels(
            self._loop,
            self._stats,
            left,
            self._map,
            self._channel_state,
            self._report_broken,
            self._report_gpu,
            turn_ns=self._channel_turn_ns,
        )
        # The model's objects too stay for good (see main.py): no request may wait for a look at all of them.
        gc.collect()
        gc.freeze()
        # Now that nothing is left to load: loading is long, and a lock before it would keep pages that no request needs.
        memory_locked = lock_memory() if order.lock_memory else None
        priority = (order.priority if request_priority(order.priority) else 0) if order.priority else None
        ready = Ready(
            version=package.version,
            # A package without a name has that of its directory, which in the store is only a digest.
            name=package.name if package.name != package.path.name else order.called,
            device=str(self._device),
            request_bytes=result.request_bytes,
            reply_bytes=result.reply_bytes,
            infer_ms=result.infer_ms,
            in_place=self._in_place or (device_arrays is not None and device_arrays.registrar.in_place),
            max_batch=serving.max_batch,
            stateful=package.stateful,
            real_time_chunking=package.real_time_chunking,
            contract=result.contract,
            observation=result.observation,
            action=result.action,
            metadata=metadata,
            gpu=self._context.report() if self._context is not None else None,
            backend=BACKEND,
            memory_locked=memory_locked,
            priority=priority,
            remote=remote.state() if remote is not None else None,
        )
        self._control.send(ready)
        return True

    def _failpoint(self, step: str) -> None:
        """Pass the failpoint `step` of this engine, named with its serial: a daemon's first engine is engine.1."""
        failpoint(f"engine.{self._serial}.{step}")

    def run(self) -> None:
        """Serve until the supervisor sends stop or exits."""
        assert self._loop is not None
        try:
            # Once, not for every request. The policy's other threads could not change a tensor of inference mode, nor
            # use it in a gradient, so models that want inference mode enter it themselves.
            with torch.no_grad():
                self._loop.run()
            if self._drains:
                self._control.send(Drained())
        except DeviceLost as lost:
            log.error("the device is lost to this engine; the next engine answers the waiting requests: %s", lost)
            logging.shutdown()
            os._exit(EXIT_STATUS)  # destructors would call the device

    def _handle_messages(self, timeout_s: float) -> bool:
        """Handle the supervisor's messages, up to the next attach, which takes as long as many requests.

        Returns whether messages or work are left.
        """
        assert self._loop is not None and self._channels is not None
        channels = self._channels
        self._messages += self._control.receive(0.0 if self._messages or channels.busy else timeout_s)
        channels.go_on()
        if self._relaying is not None:
            self._relaying.report_change()
        while self._messages and not channels.busy:
            arrival = self._messages.popleft()
            self._handle(self._loop, channels, arrival)
            channels.go_on()
            if isinstance(arrival.message, Attach):
                break
        if self._control.closed and not self._messages and not channels.busy:
            self._loop.stopped = True
        return bool(self._messages) or channels.busy

    def _handle(self, loop: EngineLoop, channels: Channels, arrival: Arrival) -> None:
        match arrival.message:
            case Attach() as attach:
                channels.attach(attach, arrival.fds)
            case Suspect(channel, suspicion):
                if (state := loop.states.get(channel)) is not None:
                    state.suspect(suspicion)
            case LimitRate(max_rate_per_user):
                self._rates.change(max_rate_per_user)
                for each in loop.states.values():
                    each.rate = self._rates.of(each.uid)
            case AllocateArea() | MapArea() as area_order:
                self._area_orders(loop).carry_out(area_order, arrival.fds)
                self._report_gpu()
            case Detach(channel):
                channels.detach(channel)
                self._area_orders(loop).forget(channel)
                self._report_gpu()
            case Serve():
                self._failpoint("serve")
                loop.serve()
                self._control.send(ServingMessage())
                self._failpoint("serving")
            case Pause():
                self._failpoint("pause")
                loop.pause()
                deferred = [
                    (state.number, sequence) for state in loop.states.values() for sequence in state.deferred_replies
                ]
                self._control.send(Paused(tuple(deferred)))
                self._failpoint("paused")
            case Lost(channel, generation, deferred):
                state = loop.states.get(channel)
                if state is not None and state.channel_info.identity.generation == generation:
                    state.report_lost(deferred, serving=loop.serving)
            case Record(channel):
                self._record(loop, arrival.fds, channel)
            case EndRecording():
                self._end_recording(loop)
            case GiveExample():
                self._control.send(ExampleGiven(*write_example(self._example, arrival.fds)))
            case Drain():
                self._drains = True
                self._control.send(Draining(loop.drain()))
            case Stop():
                loop.stopped = True

    def _area_orders(self, loop: EngineLoop) -> AreaOrders:
        return AreaOrders(self._context.areas if self._context is not None else None, loop, self._report_broken)

    def _map(self, channel_info: ChannelInfo, fds: Sequence[int]) -> MappedChannel:
        descriptors.keep_room()
        # torch has no read-only tensors, and a policy that writes to one must not crash the engine.
        writable = self._in_place and self._tensors_on is not None
        registrar = self._context.registrar if self._context is not None and self._tensors_on is not None else None
        return MappedChannel(channel_info, fds, writable_requests=writable, registrar=registrar)

    def _channel_state(self, mapped: MappedChannel, attach: Attach) -> ChannelState:
        return ChannelState(
            mapped,
            trusted=attach.trusted,
            uid=attach.uid,
            rate=self._rates.of(attach.uid),
            overhead=self._overheads.of(attach.uid),
            suspicion=attach.suspicion,
            tensors_on=self._tensors_on,
            in_place=self._in_place,
            numbers=self._schema_numbers,
            deferred=attach.deferred,
            stats=self._stats,
        )

    def _record(self, loop: EngineLoop, fds: list[int], channel: int | None) -> None:
        assert self._serving is not None
        self._end_recording(loop)
        try:
            if not fds:
                raise RecordRingBroken("the record ring did not arrive: this process has no free descriptor for it")
            self._record_ring = RecordRingWriter(fds[0])
        except (RecordRingBroken, OSError) as error:  # the supervisor has checked the ring, so memory is short
            log.error("nothing is recorded: %s", error)
            return
        finally:
            for descriptor in fds:
                os.close(descriptor)
        loop.serve_through(RecordedServing(self._serving, self._record_ring, channel))

    def _end_recording(self, loop: EngineLoop) -> None:
        record_ring, self._record_ring = self._record_ring, None
        if record_ring is not None:
            assert self._serving is not None
            loop.serve_through(self._serving)
            record_ring.close()

    def _report_gpu(self) -> None:
        if self._context is None:
            return
        try:
            report = self._context.report()
        except RuntimeError as error:  # status keeps the latest report
            log.warning("the device does not report its memory: %s", error)
            return
        self._control.send(Gpu(report))

    def _report_first(self, entries: Entries) -> None:
        if len(json.dumps(entries)) <= _FIRST_BYTES:
            self._control.send(FirstObservation(entries))

    def _report_broken(
        self, channel_info: ChannelInfo, reason: str, *, blame: bool = True, detail: str | None = None
    ) -> None:
        """Report a broken channel; without `blame` the client may attach again at once. `detail` is for the log."""
        self._control.send(Broken(**vars(channel_info.identity), reason=reason, blame=blame, detail=detail))


def _configure_torch(package: ModelPackage, threads: int | None) -> None:
    # Half of the CPUs: the robot's other processes need the rest, and torch's threads spin while they wait, so that
    # two processes with a thread for each CPU slow each other down ten times.
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // 2))
    if package.deterministic:
        require_determinism()  # before CUDA starts


def _guarded(model: Model, device: Device) -> Model:
    """Wrap a model that takes numpy arrays so that it raises DeviceLost; of a link, the model that runs here."""
    if not isinstance(model, RemoteModel):
        return guarded(model, device)
    if model.fallback is not None:
        guard = guarded(model.fallback, device)
        guard.takes_numpy = model.fallback.takes_numpy
        model.fallback = guard
    return model


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises a RuntimeError where other libraries raise a MemoryError.
    return issubclass(type(error), MemoryError) or "allocate memory" in text_of(error)


def _check_size(contract: dict[str, Any], metadata: dict[str, Any]) -> None:
    # The contract is sent twice: as a whole, and as observation and action.
    size = 2 * len(json.dumps(contract)) + len(json.dumps(metadata))
    if size > _READY_BYTES:
        raise ModelPackageError(
            f"the model's contract and metadata have {size} bytes of JSON, more than {_READY_BYTES}: shorten "
            "metadata(), or the names of its observation and action"
        )


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the model's metadata as values of JSON: arrays as lists, other objects as their text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if hasattr(value, "tolist"):
            return plain(value.tolist())
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no infinity, which a space often has as a bound
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    found = plain(metadata)
    assert isinstance(found, dict)
    return found
