"""CUDA graphs for `cuda_graph = true`: the model's work is recorded once and then launched as a whole.

A graph reads the arenas and writes its results at fixed addresses, and runs none of the policy's Python code. It
therefore suits only policies whose work depends on the bytes of tensors alone. A policy that cannot be recorded, or
whose recording gives other actions, is rejected before it serves.
"""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shmserve.contract import Entries, contract_differences, contract_of, flatten_with_path
from shmserve.errors import ContractMismatch, ModelPackageError
from shmserve.schema import LeafPlace, Schema

from ...packages.package import ModelPackage
from ..models.determinism import generators_apart, seed
from ..models.model import Model
from ..models.validation import deviations
from .arena import torch_dtype
from .context import DeviceContext
from .interface import Captured

_ADVICE = (
    "a recorded policy may not wait for the device (.item(), .cpu(), .numpy(), print of a tensor, `if` on a tensor), nor "
    "create a tensor from host data; without cuda_graph = true it runs unchanged"
)


class Graphs:
    """Graphs for one structure of observations: one for each arena and each batch size."""

    def __init__(
        self, context: DeviceContext, schema: Schema, observation: Entries | None, *, seeded: bool = False
    ) -> None:
        """Create it; `observation` is the example's contract for error texts, `seeded` seeds each run as `Deterministic` does."""
        self._seeded = seeded
        self._context = context
        self._schema = schema
        self._places: list[LeafPlace] = []
        self._payload_bytes = 0
        self._observation = observation
        self._graphs: dict[tuple[int, int], Captured] = {}

    def check(self, schema: Schema, payload: Any, payload_bytes: int, *, pickled: bool) -> None:
        """Raise ContractMismatch for an observation that the graphs were not recorded for."""
        if pickled:
            raise ContractMismatch("a pickled object: this policy runs as a CUDA graph, which takes only arrays")
        schema, places = schema.as_arrays(payload, payload_bytes)
        if schema.metadata == self._schema.metadata and places == self._places:
            return
        differences = contract_differences(
            {"observation": self._observation},
            {"observation": contract_of(_example(schema, places), None)["observation"]},
        )
        raise ContractMismatch(
            "this policy runs as a CUDA graph, which takes only observations like the one it was recorded with: "
            f"{'; '.join(differences) or 'the same entries in another order, or other text'}"
        )

    def run(self, arena: int, items: int) -> list[Any]:
        """Launch the graph for this many rows; its actions are valid until the next graph runs."""
        captured = self._graphs[arena, items]
        if self._seeded:
            seed()
        captured.replay()
        return list(captured.output)

    def record(self, model: Model, payload: Any, package: ModelPackage) -> None:
        """Record every graph with the example's `payload`, and compare its actions with the model's.

        Raises ModelPackageError for a model that cannot be recorded, or whose recording gives other actions.
        """
        self._payload_bytes = payload_bytes = payload.size
        self._places = places = self._schema.layout(payload, payload_bytes)
        _check_static(self._schema, places)
        self._context.make_room(payload_bytes)
        if self._context.arenas[0].size < self._context.max_batch * payload_bytes:
            raise ModelPackageError(
                f"cuda_graph = true, but {self._context.max_batch} requests of {payload_bytes} bytes need more "
                f"than {self._context.arenas[0].size} bytes of staging: lower max_batch"
            )
        payloads = _variations(places, payload)
        for index, arena in enumerate(self._context.arenas):
            for items in range(1, self._context.max_batch + 1):
                observations = [
                    arena.place(self._schema, payload, self._payload_bytes, ahead=False) for _ in range(items)
                ]
                arena.send(ahead=False)

                def call(observations: list[Any] = observations) -> list[Any]:
                    return list(model.infer(observations))

                try:
                    self._context.device.prepare_capture(call)
                    self._graphs[index, items] = self._context.device.capture(call)
                except Exception as error:  # the policy's libraries may raise anything
                    own, place = _own_line(error, package.path)
                    raise ModelPackageError(
                        f"cuda_graph = true, but this policy's work cannot be recorded{place}: {_first_line(own)}; "
                        f"{_ADVICE}"
                    ) from error
                arena.computed()
                self._context.device.synchronize()
                arena.fixed = True
                arena.done()
                for changed in payloads:
                    self._compare(model, index, items, changed, package)
        self._context.graphs = self._context.max_batch

    def _compare(self, model: Model, index: int, items: int, payload: Any, package: ModelPackage) -> None:
        arena, results, device = self._context.arenas[index], self._context.results, self._context.device

        def run(how: Any) -> list[Any]:
            results.begin()
            actions = list(how())
            device.rejoin()
            found = results.fetch(actions)
            arena.computed()
            device.synchronize()
            return [dict(_owned(action)) for action in found]

        observations = [arena.place(self._schema, payload, self._payload_bytes, ahead=False) for _ in range(items)]
        arena.send(ahead=False)
        with generators_apart(device.torch_device):
            # Noise drawn on the device is the same in both runs. Noise drawn on the host was fixed in the graph when it
            # was recorded.
            seed()
            eager = run(lambda: model.infer(observations))
            seed()
            graph = run(lambda: self.run(index, items))
        arena.done()
        for have, want in zip(graph, eager, strict=True):
            if wrong := deviations(have, want, atol=package.atol, rtol=package.rtol):
                raise ModelPackageError(
                    f"cuda_graph = true, but the recorded policy gives another action than a direct call: {'; '.join(wrong)}; "
                    f"its action depends on more than the observation's tensors. {_ADVICE}"
                )


def _check_static(schema: Schema, places: list[LeafPlace]) -> None:
    if schema.reader.numbers_count:
        raise ModelPackageError(
            "cuda_graph = true, but the observation has plain numbers, which a recorded policy would see only once: send "
            "them as arrays (np.float32(x) becomes np.array([x], np.float32))"
        )
    kinds = sorted({place.kind for place in places if place.kind != "array"})
    if kinds:
        raise ModelPackageError(
            f"cuda_graph = true, but the observation has leaves of kind {', '.join(kinds)}, which stay on the host and "
            "which a recorded policy would see only once: send them as arrays"
        )


def _variations(places: list[LeafPlace], payload: Any) -> list[Any]:
    """Return the example, and a copy with every float halved; integers stay, as they may be indices with a limited range."""
    changed = payload.copy()
    for place in places:
        if torch_dtype(place).is_floating_point:
            tensor = torch.from_numpy(changed[place.offset : place.offset + place.size]).view(torch_dtype(place))
            tensor.mul_(0.5)
    return [payload, changed]


def _example(schema: Schema, places: list[LeafPlace]) -> Any:
    """Return an observation of this structure."""
    arrays = [np.zeros(place.shape, place.stored_as) for place in places]
    return schema.reader.unflatten([0] * schema.reader.numbers_count, arrays)


def _owned(action: Any) -> list[tuple[str, Any]]:
    return [(name, v.clone() if isinstance(v, torch.Tensor) else v) for name, v in flatten_with_path(action)]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _own_line(error: BaseException, package: Path) -> tuple[BaseException, str]:
    """Return the error that was raised in the policy, and the innermost of the policy's own lines in its traceback.

    After a failed recording torch raises a further error, whose text does not mention the first one.
    """
    each: BaseException | None = error
    while each is not None:
        if place := _place(each, package):
            return each, place
        each = each.__cause__ or each.__context__
    return error, ""


def _place(error: BaseException, package: Path) -> str:
    """Return the innermost of the policy's own lines in the error's traceback, as text."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(package):
            line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
            return f" (line {frame.lineno} of {Path(frame.filename).name}, `{line}`)"
    return ""
