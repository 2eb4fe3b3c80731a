"""TorchRL's policy server in a process of its own, with a fixed slot of shared memory for each client.

`ProcessInferenceServer` with `ProcessSlotTransport` (torchrl 0.14): a client copies its tensors into its slot and
releases a semaphore, the server gathers the ready slots into a batch, calls the policy, scatters the results into the
slots, and sets an event for each client. The slots hold tensors of fixed shapes, which must be known before the server
starts (`expect`). A text is a tensor of its bytes here, as its users send it. Weight updates, statistics of the
replies and CUDA are not used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.workloads import Asked

from .peer import HOW_TO_GET, Infer, is_installed
from .policy import ACTIONS_SHAPE, CHECK_MASK, actions_for, checksum

#: One for each client: the most that a run has by default.
SLOTS = 16
#: Requests of one call of the policy; the server keeps memory for as many.
MOST_IN_BATCH = 4
TEXT = "text"


def leaves_of(tree: Any) -> Iterator[Any]:
    """Return the leaves of an observation in order.

    >>> list(leaves_of({"a": 1, "b": {"c": [["x"]]}}))
    [1, 'x']
    """
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves_of(value)
    else:
        yield tree


def tensors_of(observation: dict[str, Any]) -> Any:
    """Return the observation as a flat TensorDict that shares the arrays' memory."""
    import torch
    from tensordict import TensorDict

    tensors = {}
    for index, leaf in enumerate(leaves_of(observation)):
        if isinstance(leaf, np.ndarray):
            tensors[f"array{index}"] = torch.from_numpy(leaf)
        else:
            tensors[f"{TEXT}{index}"] = torch.frombuffer(bytearray(leaf.encode()), dtype=torch.uint8)
    return TensorDict(tensors)


def make_policy() -> Any:
    """Return the policy of the peers as a module of TensorDicts; it takes the requests of a batch one by one."""
    import torch

    torch.set_num_threads(1)  # As in `connect`: torch's threads spin on the processors that both sides need.

    class Served(torch.nn.Module):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            checks = [check_of(row) for row in batch.unbind(0)]
            batch["actions"] = torch.from_numpy(np.stack([actions_for(check) for check in checks]))
            batch["check"] = torch.tensor(checks)
            return batch

    return Served()


def check_of(request: Any) -> int:
    """Return the sum of one request, in which texts are tensors."""
    total = 0
    for key, tensor in request.items():
        if key.startswith(TEXT):
            total += zlib.crc32(tensor.numpy())
        elif key.startswith("array"):
            total += checksum(tensor.numpy())
    return total & CHECK_MASK


class TorchRlSlots:
    """Peer whose server is TorchRL's; the benchmark's process starts it, because only a parent can pass on its locks."""

    name = "torchrl-slots"
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self._observation: dict[str, Any] | None = None
        self._server: Any = None
        self._client: Any = None

    def available(self) -> str | None:
        missing = [package for package in ("torch", "torchrl", "tensordict") if not is_installed(package)]
        return f"not installed: {', '.join(missing)} ({HOW_TO_GET})" if missing else None

    def expect(self, asked: Asked) -> None:
        self._observation = asked.observation

    def start(self) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.modules.inference_server import ProcessInferenceServer, ProcessSlotTransport

        assert self._observation is not None, "the shapes of the slots are not known"
        version = torch.zeros((), dtype=torch.long)
        reply = TensorDict(
            {
                "actions": torch.zeros(ACTIONS_SHAPE),
                "check": torch.zeros((), dtype=torch.long),
                "policy_version": version,
            }
        )
        transport = ProcessSlotTransport(tensors_of(self._observation), reply, num_slots=SLOTS)
        try:
            self._server = ProcessInferenceServer(
                policy_factory=make_policy, transport=transport, max_batch_size=MOST_IN_BATCH
            ).start()
        except RuntimeError as error:
            raise ConnectionError(f"{self.name}: {error}") from error

    def connect(self) -> Infer:
        import torch

        torch.set_num_threads(1)
        client = self._client

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            reply = client(tensors_of(observation))
            return {"actions": reply["actions"].numpy(), "check": int(reply["check"])}

        return infer

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def server_pids(self) -> list[int]:
        return [self._server._process.pid] if self._server is not None else []

    def __getstate__(self) -> dict[str, Any]:
        # Each client process gets a copy of this peer, and with it the next slot.
        client = None if self._server is None else self._server.transport.client()
        return {"_observation": None, "_server": None, "_client": client}
