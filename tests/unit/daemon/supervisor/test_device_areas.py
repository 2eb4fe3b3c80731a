"""GPU memory for a client: what the supervisor asks the engine, and what becomes of answers that come too late; no engine."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from shmserve.channel import ChannelInfo
from shmserve.daemon.clients import AreaUnavailable, DeviceArea, Lease, Wanted
from shmserve.daemon.config.config import MIB, Config
from shmserve.daemon.ipc.messages import AllocateArea, AreaAllocated, AreaRefused, encode
from shmserve.daemon.supervisor import device_areas
from shmserve.daemon.supervisor.device_areas import DeviceAreas
from shmserve.daemon.varlink.peer import Peer
from shmserve.segment import Identity

GPU = "10" * 16
#: What an engine does with the socket on which it is to answer.
Answer = Callable[[socket.socket, AllocateArea], None]


def lease_of(channel: int = 0, slots: int = 4) -> Lease:
    info = ChannelInfo(Identity(1, channel, 1), None)
    return Lease(info, Peer(1, 0, 0, frozenset(), started=1), "robot", True, 0, Wanted(slots), slots=slots)


class Service:
    """The engines and leases that DeviceAreas sees; `answer` is the serving engine's."""

    def __init__(self, answer: Answer, **settings: Any) -> None:
        settings = {"device": "cuda:0", "device_leaves": True, **settings}
        self.config = Config(runtime_dir=Path("/r"), state_dir=Path("/s"), **settings)
        self.serving: Any = self
        self.channels = self
        self.leases = {0: lease_of()}
        #: What was told to other engines, or to this one again.
        self.told: list[str] = []
        self.orders: list[AllocateArea] = []
        self._answer = answer
        self.areas = DeviceAreas(self.config, cast(Any, self), cast(Any, self))

    # The pool, its channels, the engine, the leases

    def ring(self) -> None:
        pass

    def send(self, order: AllocateArea, *, fds: tuple[int, ...]) -> None:
        self.orders.append(order)
        with socket.socket(fileno=os.dup(fds[0])) as sock:
            self._answer(sock, order)

    def share_area(self, lease: Lease, *, beside: Any) -> None:
        assert beside is self.serving
        self.told.append("shared")

    def restore_area(self, lease: Lease, engine: Any) -> None:
        self.told.append("restored")

    def get(self, channel: int) -> Lease | None:
        return self.leases.get(channel)

    def __iter__(self) -> Any:
        return iter(self.leases.values())

    def share(self, area_bytes: int, lease: Lease | None = None) -> DeviceArea:
        return asyncio.run(self.areas.share(lease or self.leases[0], area_bytes))


def gives(sock: socket.socket, order: AllocateArea) -> None:
    memory = os.memfd_create("gpu")
    size = (order.area_bytes * order.slots + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
    socket.send_fds(sock, [encode(AreaAllocated(size, GPU), 1)], [memory])
    os.close(memory)


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_area_is_kept_with_the_lease_and_given_again() -> None:
    service, before = Service(gives), opened()
    area = service.share(1000)

    assert (area.area_bytes, area.slots, area.bytes, area.gpu) == (1024, 4, 2 * MIB, GPU)
    assert service.share(1024) is area and service.told == ["shared"]
    larger = service.share(1025)
    assert service.leases[0].area is larger and service.leases[0].device_bytes == 2 * MIB
    assert [order.area_bytes for order in service.orders] == [1024, 1280]
    service.leases[0].use_area(None)
    assert opened() == before


def test_more_slots_need_another_area() -> None:
    service = Service(gives)
    area = service.share(1000)
    service.leases[0].slots = 8

    assert service.share(1000).slots == 8 > area.slots
    service.leases[0].use_area(None)


def leaves(service: Service) -> Answer:
    def answer(sock: socket.socket, order: AllocateArea) -> None:
        gives(sock, order)
        service.leases.clear()

    return answer


def hands_over(service: Service) -> Answer:
    def answer(sock: socket.socket, order: AllocateArea) -> None:
        gives(sock, order)
        service.serving = None

    return answer


@pytest.mark.parametrize("meanwhile", [leaves, hands_over])
def test_memory_that_comes_too_late_is_given_back_and_the_earlier_restored(meanwhile: Callable[..., Answer]) -> None:
    service, lease = Service(gives), lease_of()
    service.leases[0] = lease
    area, before = service.share(1000), opened()
    service._answer = meanwhile(service)

    with pytest.raises(AreaUnavailable, match="ask again") as refused:
        service.share(2000, lease)

    assert refused.value.reason == "not_ready"
    assert lease.area is area and lease.reserved_device_bytes == 0
    assert service.told == ["shared", "restored"]
    assert opened() == before
    lease.use_area(None)


def says(answer: AreaRefused | bytes) -> Answer:
    def said(sock: socket.socket, order: AllocateArea) -> None:
        sock.send(answer if isinstance(answer, bytes) else encode(answer))

    return said


def gives_too_little(sock: socket.socket, order: AllocateArea) -> None:
    with open(os.devnull) as memory:
        socket.send_fds(sock, [encode(AreaAllocated(1, GPU), 1)], [memory.fileno()])


@pytest.mark.parametrize(
    ("answer", "reason", "text"),
    [
        (lambda sock, order: None, "not_ready", "the engine died: ask again"),
        (says(AreaRefused("no_memory", "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY")), "no_memory", "cuMemCreate"),
        (says(b"nonsense\0"), "failed", "cannot be read"),
        (says(encode(AreaAllocated(4 * MIB, GPU))), "failed", "no memory of this size"),
        (gives_too_little, "failed", "no memory of this size"),
    ],
)
def test_an_engine_that_gives_none_leaves_the_lease_as_it_was(answer: Answer, reason: str, text: str) -> None:
    service, before = Service(answer), opened()

    with pytest.raises(AreaUnavailable, match=text) as refused:
        service.share(1000)

    assert (refused.value.reason, service.leases[0].area, service.leases[0].device_bytes) == (reason, None, 0)
    assert opened() == before


def test_an_engine_that_is_busy_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[socket.socket] = []
    service = Service(lambda sock, order: kept.append(sock.dup()))
    monkeypatch.setattr(device_areas, "_LIMIT_S", 0.0)

    with pytest.raises(AreaUnavailable, match="the engine is busy: ask again"):
        service.share(1000)

    with pytest.raises(BrokenPipeError):
        kept[0].send(b"late")
    kept[0].close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"device_leaves": False}, "off"), ({"device": "cpu"}, "no_gpu"), ({"device": "cpu:0"}, "no_gpu")],
)
def test_a_service_that_shares_none_asks_no_engine(settings: dict[str, Any], reason: str) -> None:
    service = Service(gives, **settings)

    with pytest.raises(AreaUnavailable) as refused:
        service.share(1000)

    assert refused.value.reason == reason and service.orders == []


def test_the_limits_count_what_is_being_allocated() -> None:
    service = Service(gives, max_device_bytes=6 * MIB, max_device_bytes_per_client=4 * MIB)
    other = service.leases[1] = lease_of(1)
    other.reserved_device_bytes = 4 * MIB

    with pytest.raises(AreaUnavailable, match="max_device_bytes_per_client is 4194304") as refused:
        service.share(2 * MIB)
    assert (refused.value.reason, refused.value.facts) == (
        "too_large",
        {"needed_bytes": 8 * MIB, "limit_bytes": 4 * MIB},
    )
    with pytest.raises(AreaUnavailable, match="other clients have 4194304 bytes") as refused:
        service.share(MIB)
    assert (refused.value.reason, refused.value.facts["limit_bytes"]) == ("too_many_bytes", 2 * MIB)
    other.reserved_device_bytes = 0
    service.share(MIB)
    service.leases[0].use_area(None)
