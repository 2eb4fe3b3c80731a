"""Observations that lie on a real GPU already: the driver's own sharing of memory, and its streams. It has not run yet."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import DeviceArrayRefused
from shmserve.cuda_driver import CudaError, driver
from tests.support.daemon_process import Daemon

pytestmark = pytest.mark.gpu

FLAGS = ("--device", "cuda:0", "--device-leaves")


@pytest.fixture
def start(make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts a daemon with its policy on the GPU."""
    try:
        driver().device_count()
    except CudaError as error:  # in a rehearsal on the late GPU
        pytest.skip(f"no driver here: {error}")

    def start(policy: str = "echo", *arguments: str) -> Daemon:
        return make_daemon(policy, arguments=(*FLAGS, *arguments)).start()

    return start


def area_of(client: Any) -> Any:
    return client._pipeline._connector.connection.area


@pytest.mark.parametrize("transport", ["named", "sealed"])
def test_tensors_arrive_as_their_streams_left_them(transport: str, start: Callable[..., Daemon]) -> None:
    daemon = start("echo", "--transport", transport)
    side, busy = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    with daemon.client(check_contract=False) as client:
        for turn in range(20):
            with torch.cuda.stream(side):
                for _ in range(20):
                    busy = busy @ busy * 1e-3  # the tensors below wait for this
                image = torch.full((480, 640, 3), turn, dtype=torch.uint8, device="cuda")
                half = torch.arange(7, device="cuda").to(torch.bfloat16) + turn
                state = np.full(5, turn, np.float32)
                found = client.infer({"image": image, "half": half, "state": state, "empty": image[:0]})
            assert (found["image"] == turn).all() and found["image"].shape == (480, 640, 3)
            assert found["half"].astype(np.float32).tolist() == [turn + index for index in range(7)]
            assert np.array_equal(found["state"], state) and found["empty"].shape == (0, 640, 3)
        assert area_of(client) is not None, "the tensors went through the host"
        assert daemon.status()["model"]["gpu"]["shared_bytes"] > 0


def test_the_memory_outlives_a_killed_engine(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with daemon.client(check_contract=False) as client:
        client.infer({"x": torch.ones(1000, device="cuda")})
        area = area_of(client)
        os.kill(daemon.engine_pid, signal.SIGKILL)

        found = client.infer({"x": torch.full((1000,), 2.0, device="cuda")}, repeatable=True)

        assert found["x"].tolist() == [2.0] * 1000
        assert area_of(client) is area


def test_two_clients_in_flight_share_batches(start: Callable[..., Daemon]) -> None:
    daemon = start("on_device")
    with daemon.client(slots=4) as one, daemon.client(slots=4) as other:
        for turn in range(50):
            values = [torch.full((64 + turn,), float(turn * 10 + row), device="cuda") for row in range(4)]
            pendings = [(one, other)[row % 2].submit({"x": value}) for row, value in enumerate(values)]
            for row, pending in enumerate(pendings):
                assert (pending.result()["y"] == 2.0 * (turn * 10 + row)).all()


def test_larger_arrays_get_more_memory(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with daemon.client(slots=2, check_contract=False) as client:
        for size in (1 << 10, 5 << 20, 9 << 20):
            x = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
            assert np.array_equal(client.infer({"x": x})["x"], x.cpu().numpy())
        with pytest.raises(DeviceArrayRefused, match=r"\.contiguous\(\)"):
            client.infer({"x": torch.ones(3, 4, device="cuda").t()})
