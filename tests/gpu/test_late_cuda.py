"""The late GPU finds what CUDA would let happen, and lets happen what a test asks for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.late_cuda import LateCuda, installed
from tests.gpu.late_streams import Hazard
from tests.gpu.late_tensor import accelerator_error


@pytest.fixture
def gpus() -> Iterator[LateCuda]:
    with installed(devices=2) as gpus:
        yield gpus


def _names() -> list[object]:
    """What the late GPU replaces."""
    owners = (torch.cuda, torch.Tensor, torch.version, torch.__future__)
    return [torch.empty, torch.tensor, torch.as_tensor, *(dict(vars(owner)) for owner in owners)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, or the late one for a rehearsal")
def test_torch_is_as_before_afterwards() -> None:
    before = _names()
    with installed():
        assert torch.cuda.is_available()
    assert _names() == before
    assert not torch.cuda.is_available()
    with pytest.raises(AssertionError, match="not compiled with CUDA"):
        torch.zeros(1, device="cuda")


def test_the_host_cannot_read_memory_of_a_gpu(gpus: LateCuda) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, device="cuda:1")
    assert x.cpu().numpy().tolist() == (x * 1).tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_networks_run_with_gradients_off_and_in_inference_mode(gpus: LateCuda) -> None:
    layers = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        want = layers(x)
        scripted = torch.jit.trace(torch.nn.Linear(8, 2).eval(), x)
        linear = scripted(x)
        torch.jit.save(scripted, saved := io.BytesIO())
        saved.seek(0)
        torch.testing.assert_close(layers.to("cuda")(x.to("cuda")).cpu(), want)
        torch.testing.assert_close(torch.jit.load(saved, map_location="cuda:0")(x.cuda()).cpu(), linear)


def test_work_on_two_streams_that_nothing_orders_is_found(gpus: LateCuda) -> None:
    x, side, event = torch.zeros(4, device="cuda"), torch.cuda.Stream(), torch.cuda.Event()
    event.record()
    side.wait_event(event)
    with torch.cuda.stream(side):
        y = x + 1
        x.add_(0)
    with pytest.raises(Hazard, match="may still write to it"):
        y * 2
    torch.cuda.current_stream().wait_stream(side)
    assert (y * 2).tolist() == [2, 2, 2, 2]


def test_the_host_orders_streams_by_waiting(gpus: LateCuda) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y = torch.ones(4, device="cuda") + 1
    side.synchronize()
    assert (y * 2).tolist() == [4, 4, 4, 4]


def test_host_memory_that_changes_under_a_copy_is_found(gpus: LateCuda) -> None:
    host = torch.ones(4, pin_memory=False).pin_memory()
    x = torch.empty(4, device="cuda").copy_(host, non_blocking=True)
    y = x + 1  # the copy is made, but the host does not know
    host.zero_()
    with pytest.raises(Hazard, match="written to while it was copied"):
        torch.cuda.synchronize()
    assert y.shape == (4,)


def test_bytes_for_the_host_arrive_when_it_waits(gpus: LateCuda) -> None:
    host, event = torch.zeros(4).pin_memory(), torch.cuda.Event()
    host.copy_(torch.ones(4, device="cuda"), non_blocking=True)
    event.record()
    assert not event.query() and host.tolist() != [1, 1, 1, 1]
    event.synchronize()
    assert host.tolist() == [1, 1, 1, 1]


def test_copies_are_part_of_a_recording_from_and_to_page_locked_memory(gpus: LateCuda) -> None:
    host, back, x = torch.ones(4).pin_memory(), torch.zeros(4).pin_memory(), torch.zeros(4, device="cuda")
    graph, event = torch.cuda.CUDAGraph(), torch.cuda.Event()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        x.copy_(host, non_blocking=True)
        back.copy_(x * 2, non_blocking=True)
    assert back.tolist() == [0, 0, 0, 0] and x.tolist() == [0, 0, 0, 0], "recorded work has not run"
    for value in (3.0, 5.0):
        host.fill_(value)
        graph.replay()
        event.record()
        event.synchronize()
        assert back.tolist() == [2 * value] * 4


def test_a_recording_may_fork_to_another_stream_and_must_join_it(gpus: LateCuda) -> None:
    x, side, graph = torch.ones(4, device="cuda"), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    for joins in (True, False):
        with (
            contextlib.nullcontext() if joins else pytest.raises(RuntimeError, match="unjoined"),
            torch.cuda.graph(graph),
        ):
            origin = torch.cuda.current_stream()
            side.wait_stream(origin)
            with torch.cuda.stream(side):
                y = x + 1
            if joins:
                origin.wait_stream(side)
        assert y.shape == (4,)


def test_what_waits_is_refused_in_a_recording(gpus: LateCuda) -> None:
    x = torch.ones(4, device="cuda")
    for wait in (x.sum().item, torch.cuda.synchronize, torch.cuda.Event().query, x.cpu):
        failure = pytest.raises(RuntimeError, match="previous error during capture")
        with failure as raised, torch.cuda.graph(torch.cuda.CUDAGraph()):
            wait()
        assert "when stream is capturing" in str(raised.value.__context__)


def test_the_nth_call_fails_as_a_test_asks(gpus: LateCuda) -> None:
    gpus.fail("memory", lambda: torch.OutOfMemoryError("CUDA out of memory."), after=1)
    torch.empty(3, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(3, device="cuda")
    torch.empty(3, device="cuda")
    gpus.fail("record", lambda: accelerator_error("CUDA error: unspecified launch failure"))
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        torch.cuda.Event().record()
    gpus.runtime.refuse_at = 0
    assert gpus.runtime.cudaHostRegister(1 << 12, 1, 0) == 801


def test_two_gpus_have_streams_of_their_own(gpus: LateCuda) -> None:
    x = torch.ones(4, device="cuda:1")
    with torch.cuda.device(1):
        assert torch.zeros(1, device="cuda").device == x.device
        assert torch.cuda.current_stream().device == 1
    assert (x.to("cuda:0") + 1).device == torch.device("cuda", 0)


def test_a_recording_must_end_on_the_stream_that_it_began_on(gpus: LateCuda) -> None:
    with pytest.raises(RuntimeError, match="same stream"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.cuda.set_device(1)
