"""The memory between slots and a device: where rows go, when they are copied, and what a policy may keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.codec import Encoder, SlotMemory
from shmserve.daemon.engine.device.arena import Arena
from shmserve.daemon.engine.device.context import DeviceContext
from shmserve.daemon.engine.device.pinned_pool import PinnedPool
from shmserve.daemon.engine.device.readback import Readback, private
from shmserve.daemon.engine.models.rows import stacked
from shmserve.schema import Schema
from tests.gpu.late_streams import Hazard
from tests.gpu.late_tensor import raw
from tests.support.keeping import WAYS_OF_KEEPING, WAYS_OF_NOT_KEEPING, state_in
from tests.support.late_device import LateDevice

#: Ways of keeping that a torch without CUDA has only for tensors of the host, which share the memory here.
OF_HOST = {"own kind of tensor", "dlpack", "capsule", "numpy", "slice of numpy", "memoryview", "ctypes of numpy"}
ROW = {"image": np.arange(192, dtype=np.uint8).reshape(8, 8, 3), "state": np.arange(7, dtype=np.float32), "step": 5}


def slot_with(tree: Any) -> tuple[Schema, SlotMemory, int]:
    """A slot that holds `tree`, the schema that its reader has of it, and the bytes of its payload."""
    slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(1 << 16, np.uint8))
    encoded = Encoder().encode(tree, slot)
    return Schema(slot.metadata[: encoded.metadata_bytes].tobytes()), slot, encoded.payload_bytes


@pytest.fixture
def device() -> Iterator[LateDevice]:
    with LateDevice() as device:
        yield device


@pytest.fixture
def arena(device: LateDevice) -> Arena:
    made = Arena(device, PinnedPool(device))
    made.reserve(4096)
    return made


def place(arena: Arena, tree: Any, *, ahead: bool = False) -> Any:
    schema, slot, payload_bytes = slot_with(tree)
    observation = arena.place(schema, slot.payload, payload_bytes, ahead=ahead)
    slot.payload[:] = 0xEE  # the client may write there again
    return observation


def assert_is(observation: Any, tree: Any) -> None:
    assert observation.keys() == tree.keys()
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(observation[name].cpu().numpy(), value)
            assert observation[name].cpu().numpy().dtype == value.dtype
        else:
            assert observation[name] == value


def finish(arena: Arena) -> None:
    arena.computed()
    arena.finished.synchronize()
    arena.done()


def changed(row: int) -> dict[str, Any]:
    return {"image": ROW["image"] + row, "state": ROW["state"] * row, "step": row}  # type: ignore[operator]


def test_a_batch_reaches_the_device_in_one_copy(arena: Arena, device: LateDevice) -> None:
    observations = [place(arena, changed(row)) for row in range(4)]
    assert device.gpus.copies_in == []
    arena.send(ahead=False)

    for row in range(4):
        assert_is(observations[row], changed(row))
    (size, ahead), *more = device.gpus.copies_in
    assert not more and not ahead
    assert size == 4 * 256  # image 192, state 28, and to the next line; sizes and numbers stay on the host


def test_sent_bytes_are_not_copied_again(arena: Arena, device: LateDevice) -> None:
    place(arena, changed(1), ahead=True)
    arena.send(ahead=True)
    arena.send(ahead=False)
    arena.arrived()

    assert len(device.gpus.copies_in) == 1


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_policy_may_change_its_tensors_and_ask_for_gradients(arena: Arena, mode: Any) -> None:
    with mode():
        state = place(arena, changed(1))["state"]
        arena.send(ahead=False)

    with torch.enable_grad():
        state.mul_(2.0)
        state.requires_grad_()
        assert (state * state).grad_fn is not None

    np.testing.assert_array_equal(state.detach().cpu().numpy(), 2 * changed(1)["state"])


def test_a_value_that_is_not_an_array_stays_on_the_host(arena: Arena) -> None:
    tree = {"text": "x" * 300, "raw": b"y" * 40, "many": list(range(20)), "one": np.float32(2.5), "a": np.ones(3)}
    observation = place(arena, tree)
    arena.send(ahead=False)

    assert isinstance(observation.pop("a"), torch.Tensor)
    assert observation == {name: value for name, value in tree.items() if name != "a"}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int64", "float16", "float64", "complex128"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 5, 2)])
def test_every_dtype_and_shape(arena: Arena, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2, dtype)
    observation = place(arena, {"x": array, "y": np.ones(1)})
    arena.send(ahead=False)

    assert_is(observation, {"x": array, "y": np.ones(1)})
    assert observation["x"].shape == shape


def test_bfloat16(arena: Arena) -> None:
    tensor = torch.tensor([1.5, -2.25, 1e30], dtype=torch.bfloat16)
    observation = place(arena, {"x": tensor})
    arena.send(ahead=False)

    assert observation["x"].dtype == torch.bfloat16
    assert torch.equal(observation["x"].cpu(), tensor)


def test_rows_of_one_array_are_stacked_without_a_copy(arena: Arena) -> None:
    images = [np.random.default_rng(row).integers(0, 255, (8, 8, 3), np.uint8) for row in range(4)]
    rows = [place(arena, {"image": image})["image"] for image in images]
    arena.send(ahead=False)

    batch = stacked(rows)

    assert batch.data_ptr() == rows[0].data_ptr()
    assert batch.is_contiguous()
    np.testing.assert_array_equal(batch.cpu().numpy(), np.stack(images))
    for others in ([rows[1], rows[0]], [rows[0], rows[2]], [rows[0], rows[0]], [row.transpose(0, 1) for row in rows]):
        np.testing.assert_array_equal(stacked(others).cpu().numpy(), np.stack([row.cpu().numpy() for row in others]))


def test_rows_of_several_arrays_are_stacked_right(arena: Arena) -> None:
    rows = [place(arena, changed(row)) for row in range(4)]
    arena.send(ahead=False)

    for name in ("image", "state"):
        batch = stacked([row[name] for row in rows])
        np.testing.assert_array_equal(batch.cpu().numpy(), np.stack([changed(row)[name] for row in range(4)]))


def test_rows_of_several_structures_share_a_batch(arena: Arena) -> None:
    trees: list[dict[str, Any]] = [{"x": np.arange(n, dtype=np.int32)} for n in (3, 100, 1)]
    observations = [place(arena, tree) for tree in trees]
    arena.send(ahead=False)

    for observation, tree in zip(observations, trees, strict=True):
        assert_is(observation, tree)
    with pytest.raises(RuntimeError):
        stacked([observation["x"] for observation in observations])


def test_bytes_copied_ahead_are_in_place_when_the_model_runs(arena: Arena, device: LateDevice) -> None:
    observation = place(arena, changed(1), ahead=True)
    arena.send(ahead=True)
    joined = place(arena, changed(2))
    arena.send(ahead=False)

    assert_is(observation, changed(1))
    assert_is(joined, changed(2))
    assert [ahead for _, ahead in device.gpus.copies_in] == [True, False]


def test_the_next_batch_waits_until_the_host_memory_is_free(arena: Arena, device: LateDevice) -> None:
    place(arena, changed(1))
    arena.send(ahead=False)
    arena.computed()
    arena.done()

    place(arena, changed(2))

    assert device.gpus.waits == 1


def test_a_missing_wait_is_found(arena: Arena, device: LateDevice) -> None:
    place(arena, changed(1))
    arena.send(ahead=False)
    arena.host.fill_(0)

    with pytest.raises(Hazard, match="host memory"):
        device.synchronize()


def test_a_copy_over_what_a_model_reads_is_found(device: LateDevice) -> None:
    memory, host = device.memory(64), device.pinned(64)
    memory * 2

    with pytest.raises(Hazard, match="may still read"):
        device.copy_in(memory, host, ahead=True)


def test_two_arenas_in_turn_have_no_race(device: LateDevice) -> None:
    arenas = [Arena(device, PinnedPool(device)) for _ in range(2)]
    for arena in arenas:
        arena.reserve(4096)
    results = Readback(device, PinnedPool(device))
    for turn in range(20):
        arena = arenas[turn % 2]
        ahead = turn % 3 > 0
        observation = place(arena, changed(turn), ahead=ahead)
        arena.send(ahead=ahead)
        results.begin()
        action = results.fetch({"y": observation["state"] * 2, "n": turn, "same": observation["image"]})
        arena.computed()
        if turn % 4:  # the fourth has an answer of the host's own, and nobody waits
            arena.finished.synchronize()
            np.testing.assert_array_equal(action["y"].cpu().numpy(), changed(turn)["state"] * 2)
            np.testing.assert_array_equal(action["same"].cpu().numpy(), changed(turn)["image"])
            assert action["n"] == turn
        del action, observation
        arena.done()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("way", WAYS_OF_KEEPING)
def test_memory_that_a_policy_keeps_is_not_written_again(arena: Arena, way: str, mode: Any) -> None:
    with mode():
        where = arena.memory.data_ptr()
        observation = place(arena, changed(3))
        arena.send(ahead=False)
        kept = WAYS_OF_KEEPING[way](raw(observation["state"]) if way in OF_HOST else observation["state"])
        del observation
        finish(arena)
        device_memory = arena.memory.data_ptr()

        for row in range(4, 7):
            place(arena, changed(row))
            arena.send(ahead=False)
            finish(arena)

        assert device_memory != where, "the arena has let go of it"
        np.testing.assert_array_equal(state_in(kept), changed(3)["state"])


@pytest.mark.parametrize("way", WAYS_OF_NOT_KEEPING)
def test_memory_that_a_policy_does_not_keep_is_reused(arena: Arena, way: str) -> None:
    where = arena.memory.data_ptr()
    for row in range(4):
        observation = place(arena, changed(row))
        arena.send(ahead=False)
        left = WAYS_OF_NOT_KEEPING[way](observation["state"])
        del observation
        finish(arena)
        assert arena.memory.data_ptr() == where
    del left


def test_many_structures_do_not_look_like_a_policy_that_keeps_them(arena: Arena) -> None:
    where = arena.memory.data_ptr()
    for length in range(300):
        place(arena, {"x": np.zeros(length + 1, np.uint8)})
        arena.send(ahead=False)
        finish(arena)

    assert arena.memory.data_ptr() == where


def test_growing_lengths_allocate_rarely(device: LateDevice) -> None:
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    sizes = set()
    for length in range(1000, 101_000, 1000):
        context.make_room(length)
        sizes.add(context.arenas[0].size)
        assert context.arenas[0].size == context.arenas[1].size >= length

    assert len(sizes) <= 13, "each half as large again as the memory before it"


def test_a_device_without_memory_for_headroom_gives_what_is_needed(device: LateDevice) -> None:
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    context.make_room(4096)
    device.gpus.memory_limit = 5000
    context.make_room(4992)

    assert [arena.size for arena in context.arenas] == [4992, 4992]
    with pytest.raises(torch.OutOfMemoryError):
        context.make_room(6000)
    assert [arena.size for arena in context.arenas] == [4992, 4992]


@pytest.mark.parametrize("ahead", [False, True])
def test_memory_that_grew_is_not_given_away_under_a_copy(arena: Arena, device: LateDevice, ahead: bool) -> None:
    place(arena, changed(1), ahead=ahead)
    arena.send(ahead=ahead)
    arena.computed()
    arena.done()
    where = arena.host.data_ptr()
    arena.reserve(1 << 15)

    given = device.pinned(4096).fill_(1)

    assert given.data_ptr() == where, "freed memory is handed out again"
    device.synchronize()


def test_new_memory_is_not_copied_to_before_its_previous_use_has_ended(device: LateDevice) -> None:
    arena = Arena(device, PinnedPool(device))
    used = device.memory(4096)
    where = used.data_ptr()
    used * 2
    del used
    arena.reserve(4096)
    assert arena.memory.data_ptr() == where, "freed memory is handed out again"

    place(arena, changed(1), ahead=True)
    arena.send(ahead=True)
    device.synchronize()


def test_growing_keeps_nothing_under_a_copy(arena: Arena) -> None:
    place(arena, changed(1))
    arena.send(ahead=False)
    arena.computed()
    arena.done()
    arena.reserve(1 << 15)

    assert arena.size >= 1 << 15
    observation = place(arena, {"x": np.arange(4000, dtype=np.int64)})
    arena.send(ahead=False)
    assert_is(observation, {"x": np.arange(4000, dtype=np.int64)})


def test_large_rows_are_copied_from_where_they_are(arena: Arena, device: LateDevice) -> None:
    schema, slot, payload_bytes = slot_with(changed(2))
    memory = torch.from_numpy(slot.payload)
    device.register(memory.data_ptr(), memory.numel())
    for seen in (True, False):
        staged = place(arena, changed(1))
        direct = arena.place(schema, slot.payload, payload_bytes, directly=memory, ahead=False)
        more = place(arena, changed(3))
        arena.send(ahead=False)
        if seen:
            for row, observation in enumerate((staged, direct, more), 1):
                assert_is(observation, changed(row))
            finish(arena)
    slot.payload[:] = 0
    with pytest.raises(Hazard):  # the slot is under a copy until its event has passed
        device.synchronize()


def test_an_action_is_nonsense_until_its_event_has_passed(device: LateDevice) -> None:
    results, event = Readback(device, PinnedPool(device)), device.event()
    results.begin()
    of_device = {"a": torch.arange(5, device="cuda"), "b": [torch.ones(2, 3, dtype=torch.bfloat16, device="cuda")]}
    found = results.fetch({**of_device, "c": "text"})
    device.record(event)
    assert results.pending
    assert found["a"][0] != 0

    event.synchronize()

    assert torch.equal(found["a"], torch.arange(5))
    assert torch.equal(found["b"][0], torch.ones(2, 3, dtype=torch.bfloat16))
    assert found["c"] == "text"


def test_actions_of_any_number_and_size_come_back(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    for size in (10, 100_000, 7):
        results.begin()
        tensors = [torch.full((size + n,), n, dtype=torch.float64, device="cuda") for n in range(4)]
        found = results.fetch([*tensors, torch.empty(0, device="cuda"), torch.ones(3, 4, device="cuda").t()])
        device.synchronize()
        for have, want in zip(found, [*tensors, torch.empty(0), torch.ones(4, 3)], strict=True):
            assert torch.equal(have, want.cpu())


def test_actions_of_any_number_of_batches_use_the_same_memory(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    sizes = set()
    for turn in range(50):
        results.begin()
        found = results.fetch(
            [torch.full((size,), value, device="cuda") for size, value in ((3000, turn), (700, -turn))]
        )
        device.synchronize()
        assert [int(tensor[0]) for tensor in found] == [turn, -turn]
        sizes.add(results.size)

    assert len(sizes) == 1


def test_results_that_grow_are_in_the_new_memory(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    results.begin()
    found = results.fetch([torch.full((256,), float(value), device="cuda") for value in range(100)])
    device.synchronize()

    assert [float(tensor[-1]) for tensor in found] == [float(value) for value in range(100)]


def test_an_action_of_the_hosts_own_is_not_waited_for(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    results.begin()

    assert results.fetch({"a": np.ones(3), "b": 7})["b"] == 7
    assert not results.pending


def test_a_private_copy_outlives_the_batch(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    results.begin()
    found = results.fetch({"a": (torch.ones(3, device="cuda"), 1)})
    device.synchronize()
    kept = private(found)
    results.begin()
    results.fetch({"a": (torch.zeros(3, device="cuda"), 2)})
    device.synchronize()

    assert torch.equal(kept["a"][0], torch.ones(3))
    assert kept["a"][1] == 1


def test_memory_that_cannot_be_locked_is_said_and_used(device: LateDevice, caplog: pytest.LogCaptureFixture) -> None:
    device.gpus.runtime.limit = 5000
    host = PinnedPool(device)
    arena, other = Arena(device, host), Arena(device, host)
    arena.reserve(4096)
    other.reserve(4096)
    observation = place(other, changed(1))
    other.send(ahead=False)

    assert_is(observation, changed(1))
    assert (host.pinned_bytes, host.pageable_bytes) == (4096, 4096)
    (warning,) = host.warnings
    assert "4096 bytes" in warning and "free memory of the host" in warning
    assert "MEMLOCK" not in warning, "no limit that NVIDIA's driver knows"
    assert caplog.text.count("page-locked") == 1
