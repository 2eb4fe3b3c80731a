"""Observations that lie on the GPU already: given to a real daemon on the late GPU, whose driver processes share memory by."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import AsyncShmClient, DeviceArrayRefused, RequestRejected, ServiceUnavailable, ShmClient
from shmserve.cuda_driver import driver
from shmserve.directories import CLIENT_SOCKET
from shmserve.layout import MAX_PAYLOAD_BYTES
from shmserve.protocol import WIRE_VERSION
from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.gpu.late_cuda import installed
from tests.support import late_driver
from tests.support.admin_command import rollback, update
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.gate import Gate
from tests.support.late_driver import GpuArray, loaded

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this process has a real driver")

FLAGS = ("--device", "cuda:0", "--device-leaves")
Start = Callable[..., Daemon]


def on_late_gpu(daemon: Daemon, **settings: Any) -> Daemon:
    """Start a daemon on the late GPU; `settings` are of the engines' driver."""
    daemon.use_late_cuda()
    daemon.environment.update(late_driver.environment(**settings))
    return daemon.start()


@pytest.fixture
def start(make_daemon: Callable[..., Daemon]) -> Start:
    """Starts a daemon with its policy; `driver` are settings of its engines' driver."""

    def start(
        policy: str | Path = "echo",
        *,
        flags: tuple[str, ...] = FLAGS,
        driver: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Daemon:
        daemon = make_daemon(policy, arguments=(*flags, *settings.pop("arguments", ())), **settings)
        return on_late_gpu(daemon, **(driver or {}))

    return start


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One daemon of the echo policy for all tests that do not harm it."""
    daemon = Daemon("echo", arguments=FLAGS)
    try:
        yield on_late_gpu(daemon)
    finally:
        daemon.dismiss()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """The tests' clients unmap what they mapped, and close every descriptor."""
    before = loaded().late_mapped_bytes()
    yield
    assert loaded().late_mapped_bytes() == before, "a client left GPU memory mapped"


def image(seed: int, shape: tuple[int, ...] = (48, 64, 3)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def on_gpu(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor of torch's late GPU in the driver's memory."""
    flat = torch.as_tensor(GpuArray(values.reshape(-1).view(np.uint8)), device="cuda")
    return flat.view(torch.from_numpy(values).dtype).view(values.shape)


def gpu(daemon: Daemon) -> dict[str, Any]:
    found = daemon.status()["model"]["gpu"]
    assert isinstance(found, dict)
    return found


def client_bytes(daemon: Daemon) -> list[int]:
    return [client["device_bytes"] for client in daemon.status()["clients"]]


@pytest.mark.parametrize("transport", [pytest.param("named", marks=pytest.mark.long), "sealed"])
def test_arrays_of_the_gpu_and_of_the_host_arrive_in_one_observation(transport: str, start: Start) -> None:
    daemon = start(arguments=("--transport", transport))
    with daemon.client() as client:
        for turn in range(8):
            state, pixels = np.arange(7, dtype=np.float32) + turn, image(turn)
            depth = np.full((3, 5), turn, np.float64)
            observation = {
                "image": GpuArray(pixels),
                "state": state,
                "nested": [GpuArray(depth), {"empty": GpuArray(np.zeros((0, 4), np.float32)), "step": turn}],
                "task": "fold",
                "scalar": GpuArray(np.array(turn, np.int32)),
            }
            found = client.infer(observation)

            assert np.array_equal(found["image"], pixels)
            assert np.array_equal(found["state"], state)
            assert np.array_equal(found["nested"][0], depth)
            assert found["nested"][1]["empty"].shape == (0, 4) and found["nested"][1]["step"] == turn
            assert (found["task"], int(found["scalar"])) == ("fold", turn)
        assert gpu(daemon)["device_leaves"] is True
        assert gpu(daemon)["shared_bytes"] == 2 << 20 == sum(client_bytes(daemon))
    wait_until("the memory is given back", lambda: gpu(daemon)["shared_bytes"] == 0)


def test_work_of_the_arrays_stream_comes_before_the_copy(shared: Daemon) -> None:
    with driver().current(0):
        stream = driver().stream()
    with shared.client() as client:
        for turn in range(1, 6):
            array = GpuArray(np.zeros(4096, np.uint8), stream=stream)
            array.fill_late(turn, stream)  # the camera's kernel has not run yet
            default = GpuArray(np.zeros(64, np.uint8), stream=1)
            default.fill_late(turn + 1, 1)
            older = GpuArray(np.zeros(64, np.uint8), version=2)
            older.fill_late(turn + 2, 0)
            settled = GpuArray(np.full(64, turn + 3, np.uint8), stream=None)

            found = client.infer({"stream": array, "default": default, "older": older, "settled": settled})

            assert {name: set(values.tolist()) for name, values in found.items()} == {
                "stream": {turn},
                "default": {turn + 1},
                "older": {turn + 2},
                "settled": {turn + 3},
            }


def test_requests_in_flight_of_two_clients_share_batches(start: Start) -> None:
    daemon = start("on_device")
    with daemon.client(slots=4) as one, daemon.client(slots=4) as other:
        batches = []
        for turn in range(10):
            wanted = [np.full(32 + turn % 3, turn * 10 + row, np.float32) for row in range(4)]
            pendings = []
            for row, values in enumerate(wanted):
                given = GpuArray(values) if row % 2 or turn % 2 else values
                pendings.append((client := (one, other)[row % 2]).submit({"x": given}))
                del client
            for values, pending in zip(wanted, pendings, strict=True):
                found = pending.result()
                assert found["where"] == "cuda:0"
                assert np.array_equal(found["y"], 2 * values)
                batches.append(found["batch"])
        assert max(batches) > 1


def test_a_recorded_graph_takes_them_and_refuses_others(start: Start) -> None:
    daemon = start("recordable")
    with daemon.client(check_contract=False) as client:
        values = np.arange(24, dtype=np.float32).reshape(3, 8)
        on_host = client.infer({"x": values})

        assert np.array_equal(client.infer({"x": GpuArray(values)})["y"], on_host["y"])
        assert np.array_equal(client.infer({"x": GpuArray(values + 1)})["y"], client.infer({"x": values + 1})["y"])
        with pytest.raises(RequestRejected, match=r"observation\.x: float32\[3, 8\] -> float32\[4, 8\]"):
            client.infer({"x": GpuArray(np.zeros((4, 8), np.float32))})
    with daemon.client() as client:  # which compares with the contract
        with pytest.raises(RequestRejected, match=r"observation\.x: float32\[3, 8\] -> float64\[3, 8\]"):
            client.infer({"x": GpuArray(np.zeros((3, 8)))})
        assert client.infer({"x": GpuArray(np.ones((3, 8), np.float32))})["y"].shape == (4,)


@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
def test_the_memory_outlives_a_killed_engine(transport: str, start: Start) -> None:
    daemon = start(arguments=("--transport", transport))
    with daemon.client() as client:
        client.infer({"image": GpuArray(image(1))})
        area = client._pipeline._connector.connection.area  # type: ignore[union-attr]
        for turn in range(2):
            os.kill(daemon.engine_pid, signal.SIGKILL)
            pixels = image(2 + turn)

            assert np.array_equal(client.infer({"image": GpuArray(pixels)}, repeatable=True)["image"], pixels)
            assert client._pipeline._connector.connection.area is area  # type: ignore[union-attr]
            daemon.wait_ready()
        assert gpu(daemon)["shared_bytes"] == 2 << 20


def test_the_next_model_maps_the_memory_before_it_serves(start: Start, tmp_path: Path) -> None:
    daemon = start("on_device")
    package = shutil.copytree(POLICIES / "on_device", tmp_path / "next")
    (package / "policy.py").write_text((package / "policy.py").read_text().replace("2.0", "3.0"))
    ends, factors = threading.Event(), set()
    wrong: list[float] = []

    def ask(client: ShmClient, number: int) -> None:
        turn = 0
        while not ends.is_set():
            turn += 1
            values = np.full(8 + turn % 5, number * 1000 + turn % 100, np.float32)
            found = client.infer({"x": GpuArray(values)})["y"] / values
            factors.update(found.tolist())
            wrong.extend(set(found.tolist()) - {2.0, 3.0})

    with daemon.client() as one, daemon.client() as other, ThreadPoolExecutor(2) as robots:
        running = [robots.submit(ask, client, number) for number, client in enumerate((one, other), 1)]
        try:
            wait_until("the first model answers", lambda: 2.0 in factors)
            update(daemon, package)
            wait_until("the next model answers", lambda: 3.0 in factors)
        finally:
            ends.set()
        for each in running:
            each.result()
        assert not wrong
        wait_until("the new engine has mapped it", lambda: gpu(daemon)["shared_bytes"] == 4 << 20)
    with daemon.client() as client:
        # The warm standby maps what a client got after the update, for a rollback.
        assert client.infer({"x": GpuArray(np.ones(5, np.float32))})["y"].tolist() == [3.0] * 5
        rollback(daemon)
        assert client.infer({"x": GpuArray(np.ones(5, np.float32))})["y"].tolist() == [2.0] * 5


def test_a_larger_array_gets_a_larger_area(shared: Daemon) -> None:
    with shared.client(slots=2) as client:
        for size in (1 << 10, 3 << 20, 3 << 20, 1 << 10, 10 << 20):
            pixels = image(size, (size,))
            assert np.array_equal(
                client.infer({"image": GpuArray(pixels), "rest": image(1, (size // 4,))})["image"], pixels
            )
        assert client_bytes(shared) == [20 << 20]


def test_a_killed_client_gives_its_memory_back(shared: Daemon) -> None:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            client = ShmClient("t", runtime_dir=shared.runtime_dir, timeout=60.0)
            client.infer({"image": GpuArray(image(1))})
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    _, status = os.waitpid(child, 0)

    assert os.WTERMSIG(status) == signal.SIGKILL
    wait_until("its memory is gone", lambda: gpu(shared)["shared_bytes"] == 0 and not shared.status()["clients"])


@pytest.mark.long
def test_a_restarted_daemon_shares_memory_anew(start: Start) -> None:
    daemon = start()
    with daemon.client() as client:
        client.infer({"image": GpuArray(image(1))})
        daemon.stop()
        daemon.start()
        pixels = image(2)

        assert np.array_equal(client.infer({"image": GpuArray(pixels)})["image"], pixels)


def test_an_async_client_gives_them_too(shared: Daemon) -> None:

    async def ask() -> None:
        async with AsyncShmClient(shared.name, runtime_dir=shared.runtime_dir, timeout=60.0) as client:
            images = [image(seed) for seed in range(6)]
            found = await asyncio.gather(*(client.infer({"image": GpuArray(each)}) for each in images))
            assert all(np.array_equal(one["image"], each) for one, each in zip(found, images, strict=True))

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("flags", "reason", "text"),
    [
        (("--device", "cuda:0"), "off", "device_leaves is false"),
        pytest.param(
            ("--device", "cpu", "--device-leaves"), "no_gpu", "the service runs on cpu", marks=pytest.mark.long
        ),
    ],
)
def test_a_service_that_takes_none_says_so_with_the_remedy(
    flags: tuple[str, ...], reason: str, text: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start(flags=flags)
    with daemon.client() as client:
        for _ in range(2):
            with pytest.raises(
                DeviceArrayRefused, match=rf"observation\['image'\].*{text}.*\.cpu\(\)\.numpy\(\)"
            ) as refused:
                client.infer({"image": GpuArray(image(1))})
            assert refused.value.reason == reason
        assert np.array_equal(client.infer({"image": image(1)})["image"], image(1))
    with daemon.client() as hostile:
        monkeypatch.setattr(hostile._pipeline._on_device, "give", lambda area, slot, on_loan: None)
        with pytest.raises(RequestRejected, match=r"lies in GPU memory.*from the host"):
            hostile.infer({"image": GpuArray(image(1))})
        assert np.array_equal(hostile.infer({"image": image(2)})["image"], image(2))


def test_a_policy_of_numpy_arrays_takes_none(start: Start) -> None:
    daemon = start("numpy_arrays")
    with daemon.client(check_contract=False) as client:
        with pytest.raises(DeviceArrayRefused, match="takes numpy arrays") as refused:
            client.infer({"image": GpuArray(image(1))})
        assert refused.value.reason == "numpy"


def test_the_limits_are_errors_with_numbers_and_leave_the_client_usable(start: Start) -> None:
    limits = f"max_device_bytes_per_client = {4 << 20}\nmax_device_bytes = {5 << 20}\n"
    daemon = start(config=limits)
    large, small = np.zeros(3 << 20, np.uint8), np.zeros(1 << 20, np.uint8)
    with daemon.client(slots=2) as one, daemon.client(slots=2) as other:
        with pytest.raises(DeviceArrayRefused, match=r"max_device_bytes_per_client is 4194304") as refused:
            one.infer({"image": GpuArray(large)})
        assert refused.value.reason == "too_large"
        assert one.infer({"image": GpuArray(small)})["image"].shape == small.shape
        with pytest.raises(DeviceArrayRefused, match=r"other clients have 2097152 bytes.*max_device_bytes is 5242880"):
            other.infer({"image": GpuArray(np.zeros((1 << 20) + 1, np.uint8))})
        assert other.infer({"image": GpuArray(small)})["image"].shape == small.shape
        assert sorted(client_bytes(daemon)) == [2 << 20, 2 << 20]
    with daemon.client(slots=2) as client:  # half as much again would be too much
        for size in (3 << 19, 7 << 18):
            assert client.infer({"image": GpuArray(np.zeros(size, np.uint8))})["image"].shape == (size,)


@pytest.mark.long
def test_no_memory_on_the_gpu_is_an_error_with_cudas_name(start: Start) -> None:
    daemon = start(driver={"FAIL": "cuMemCreate=2"})
    with daemon.client() as client:
        with pytest.raises(DeviceArrayRefused, match="cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY") as refused:
            client.infer({"image": GpuArray(image(1))})
        assert refused.value.reason == "no_memory"
        assert client.infer({"image": image(1)})["image"].shape == (48, 64, 3)


def test_an_array_on_another_gpu_is_refused(shared: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATE_DRIVER_DEVICES", "2")
    with shared.client() as client:
        with pytest.raises(
            DeviceArrayRefused, match=r"GPU-11111111-\S+ and the service runs on GPU-10101010"
        ) as refused:
            client.infer({"image": GpuArray(image(1), device=1)})
        assert refused.value.reason == "other_gpu"
        assert np.array_equal(client.infer({"image": GpuArray(image(2))})["image"], image(2))


def test_a_client_that_does_not_see_the_services_gpu_is_told(shared: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATE_DRIVER_DEVICES", "2")
    monkeypatch.setenv("LATE_DRIVER_FIRST", "1")  # as CUDA_VISIBLE_DEVICES=1
    with shared.client() as client, pytest.raises(DeviceArrayRefused, match="CUDA_VISIBLE_DEVICES"):
        client.infer({"image": GpuArray(image(1))})


@pytest.mark.long
def test_the_same_gpu_has_another_number_in_a_client(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = start(arguments=(), driver={"DEVICES": 2, "FIRST": 1})
    monkeypatch.setenv("LATE_DRIVER_DEVICES", "2")
    with daemon.client() as client:
        pixels = image(3)
        assert np.array_equal(client.infer({"image": GpuArray(pixels, device=1)})["image"], pixels)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        ({"strides": (8, 4)}, r"\.contiguous\(\)"),
        ({"typestr": "<V2"}, "send bfloat16 as a torch tensor"),
        ({"typestr": ">f4"}, "convert it"),
        ({"stream": 0}, "its stream cannot be 0"),
        ({"mask": object()}, "its mask would be lost"),
        ({"shape": ("x",)}, "cannot be read"),
    ],
)
def test_an_array_that_cannot_be_taken_says_what_to_do(array: dict[str, Any], text: str, shared: Daemon) -> None:
    with shared.client() as client:
        with pytest.raises(DeviceArrayRefused, match=rf"observation\['a'\]\[1\].*{text}"):
            client.infer({"a": [1, GpuArray(np.zeros((4, 4), np.float32), **array)]})
        assert client.infer({"a": GpuArray(np.ones(3, np.float32), strides=(4,))})["a"].tolist() == [1, 1, 1]


def test_tensors_of_torch_are_taken_on_their_current_stream(shared: Daemon) -> None:
    with driver().current(0):
        stream = driver().stream()
    # check_contract=False: the late GPU's own type of tensor has attributes, which a comparison refuses.
    with installed() as gpus, shared.client(check_contract=False) as client:
        half, pixels = torch.arange(6).to(torch.bfloat16), image(4)
        late = GpuArray(np.zeros(16, np.uint8))
        filled = torch.as_tensor(late, device="cuda")
        late.fill_late(7, stream)
        other = torch.cuda.Stream()
        other.cuda_stream = stream
        with torch.cuda.stream(other):
            found = client.infer(
                {
                    "half": on_gpu(half.view(torch.uint8).numpy()).view(torch.bfloat16).view(2, 3),
                    "image": on_gpu(pixels),
                    "filled": filled,
                    "host": torch.ones(2),
                }
            )
        assert gpus.copies_out == 0, "bytes went through the host"
    assert found["half"].astype(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.array_equal(found["image"], pixels)
    assert (found["filled"].tolist(), found["host"].tolist()) == ([7] * 16, [1, 1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.view(torch.float32).view(4, 4).t(), r"\.contiguous\(\)"),
        (lambda x: x.view(torch.float8_e5m2), "no dtype that is carried"),
    ],
)
def test_a_tensor_that_cannot_be_taken_says_what_to_do(change: Callable[[Any], Any], text: str, shared: Daemon) -> None:
    with (
        installed(),
        shared.client() as client,
        pytest.raises(DeviceArrayRefused, match=rf"observation\['x'\]: .*{text}"),
    ):
        client.infer({"x": change(on_gpu(np.zeros(64, np.uint8)))})


def test_memory_that_cannot_be_mapped_is_not_mistaken_for_the_earlier_one(
    shared: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared.client() as client:
        client.infer({"image": GpuArray(image(1))})
        monkeypatch.setenv("LATE_DRIVER_FAIL", "cuMemMap=1")
        with pytest.raises(DeviceArrayRefused, match=r"cannot be mapped \(cuMemMap") as refused:
            client.infer({"image": GpuArray(image(1, (1 << 20,)))})
        assert refused.value.reason == "failed"
        monkeypatch.delenv("LATE_DRIVER_FAIL")
        assert np.array_equal(client.infer({"image": GpuArray(image(2))})["image"], image(2))


def test_a_failed_copy_is_an_error_and_the_next_request_works(shared: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared.client() as client:
        client.infer({"image": GpuArray(image(1))})
        monkeypatch.setenv("LATE_DRIVER_FAIL", "cuMemcpyDtoDAsync=700")
        with pytest.raises(DeviceArrayRefused, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            client.infer({"image": GpuArray(image(1))})
        monkeypatch.delenv("LATE_DRIVER_FAIL")
        assert np.array_equal(client.infer({"image": GpuArray(image(2))})["image"], image(2))


def test_a_loan_does_not_take_them(shared: Daemon) -> None:
    with shared.client() as client:
        client.infer({"image": GpuArray(image(1))})
        with pytest.raises(RequestRejected, match=r"send those with infer\(\) or submit\(\)"):
            client.loan({"image": GpuArray(image(1))})
        with client.loan({"image": image(1)}) as loan:
            loan["image"] = GpuArray(image(1))
            with pytest.raises(DeviceArrayRefused, match=r"infer\(\) or submit\(\)"):
                loan.send()
        assert np.array_equal(client.infer({"image": GpuArray(image(3))})["image"], image(3))


def test_a_recording_skips_and_counts_them(shared: Daemon, tmp_path: Path) -> None:
    from shmserve.client.recordings import Recording  # a bare machine lacks what it needs
    from tests.support.recordings import recording

    with recording(shared, tmp_path / "a.rec"), shared.client() as client:
        client.infer({"image": image(1)})
        assert np.array_equal(client.infer({"image": GpuArray(image(2))})["image"], image(2))
        client.infer({"image": image(3)})
    with Recording(tmp_path / "a.rec") as found:
        recorded = [request.observation["image"] for request in found]
    assert len(recorded) == 2
    assert np.array_equal(recorded[1], image(3))


def call(connection: VarlinkConnection, method: str, parameters: dict[str, Any]) -> Any:
    return connection.call(f"io.shmserve.Client.{method}", parameters, timeout_s=20.0)


def test_hostile_calls_are_refused_and_keep_no_descriptor(shared: Daemon) -> None:
    opened = Path(f"/proc/{shared.pid}/fd")
    before = len(list(opened.iterdir()))
    with VarlinkConnection.connect(shared.service_dir / CLIENT_SOCKET, 5.0, accept_fds=4) as connection:
        with pytest.raises(VarlinkError, match="NotAttached"):
            call(connection, "ShareDeviceMemory", {"area_bytes": 1})
        wanted = {"slots": 4, "request_metadata": 0, "request_bytes": 0, "reply_metadata": 0, "reply_bytes": 0}
        call(connection, "Attach", {"wire_version": WIRE_VERSION, "wanted": wanted, "program": "x"})
        for area_bytes in (0, -1, 1 << 62, MAX_PAYLOAD_BYTES + 1, "1", None, 1.5):
            with pytest.raises(VarlinkError, match="InvalidParameter"):
                call(connection, "ShareDeviceMemory", {"area_bytes": area_bytes})
        with pytest.raises(VarlinkError, match="DeviceMemoryRefused"):
            call(connection, "ShareDeviceMemory", {"area_bytes": MAX_PAYLOAD_BYTES})
        for turn in range(60):
            for descriptor in call(connection, "ShareDeviceMemory", {"area_bytes": 1 + turn * 65536}).fds:
                os.close(descriptor)
    wait_until("nothing is kept", lambda: len(list(opened.iterdir())) <= before and gpu(shared)["shared_bytes"] == 0)


@pytest.mark.long
def test_a_client_waits_for_the_engine_that_gives_the_memory(make_daemon: Callable[..., Daemon], gate: Gate) -> None:
    daemon = make_daemon("slow_start", arguments=FLAGS)
    daemon.environment["GATE"] = str(gate.path)
    gate.open()
    on_late_gpu(daemon)
    gate.path.unlink()
    os.kill(daemon.engine_pid, signal.SIGKILL)
    wait_until("no engine serves", lambda: daemon.status()["engine"] is None)
    with daemon.client(check_contract=False) as client:
        with pytest.raises(ServiceUnavailable, match="no model serves now: ask again") as refused:
            client.infer({"value": GpuArray(image(1))}, timeout=0.3)
        assert refused.value.reason == "not_ready"
        gate.open()
        assert np.array_equal(client.infer({"value": GpuArray(image(1))}), image(1))
