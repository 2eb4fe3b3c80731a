"""CUDA graphs for `cuda_graph = true`: the model's work is recorded once and then launched as a whole.

A graph reads the arenas and writes its results at fixed addresses, and runs none of the policy's Python code. It
therefore suits only policies whose work depends on the bytes of tensors alone. A policy that cannot be recorded, or
whose recording gives other actions, is rejected before it serves.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass
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
from .arena import Arena, torch_dtype
from .context import DeviceContext
from .errors import raise_if_lost
from .interface import Captured

_ADVICE = (
    "a recorded policy may not wait for the device (.item(), .cpu(), .numpy(), print of a tensor, `if` on a tensor), nor "
    "create a tensor from host data; without cuda_graph = true it runs unchanged"
)


@dataclass(frozen=True)
class _Recorded:
    """The graphs for one arena and number of rows."""

    captured: Captured
    #: As `captured`, with the copy of the rows to the device before it; None: no copies could be recorded.
    with_rows: Captured | None = None
    #: Bytes of the host that the copies of the results fill. Without `with_rows` there are none: the output is the device's.
    filled: int = 0


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
        #: By arena and number of rows.
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._records_copies = True

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

    def sends(self, arena: int) -> bool:
        """Return whether the graph for this arena's rows copies them to the device, so that the caller does not send them."""
        rows = self._context.arenas[arena]
        return rows.is_unsent and self._recorded[arena, rows.rows].with_rows is not None

    def run(self, arena: int) -> list[Any]:
        """Launch the graph for this arena's rows, and the readback; return the actions, valid until the next graph runs.

        Their copies to the host are not yet complete. Raises DeviceLost if earlier work has ended the device's context.
        """
        rows, results = self._context.arenas[arena], self._context.results
        recorded = self._recorded[arena, rows.rows]
        if self._seeded:
            seed()
        results.begin()
        captured = recorded.captured
        if rows.is_unsent and recorded.with_rows is not None:
            captured = recorded.with_rows
        try:
            captured.replay()
        except RuntimeError as error:
            raise_if_lost(self._context.device, error)
            raise
        if captured is recorded.with_rows:
            rows.sent_by_graph()
        if recorded.with_rows is None:
            return list(results.fetch(captured.output))
        results.replayed(recorded.filled)
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
            for items in range(self._context.max_batch, 0, -1):  # the largest first: its results need the most memory
                observations = self._placed(arena, payload, items)
                arena.send(ahead=False)
                try:
                    self._recorded[index, items] = self._record(arena, lambda: list(model.infer(observations)))  # noqa: B023
                except Exception as error:  # the policy's libraries may raise anything
                    own, place = _own_line(error, package.path)
                    raise ModelPackageError(
                        f"cuda_graph = true, but this policy's work cannot be recorded{place}: {_first_line(own)}; "
                        f"{_ADVICE}"
                    ) from error
                arena.fixed = True
                self._settle(arena)
                self._compare(model, index, items, payloads, package)
        self._context.graphs = self._context.max_batch

    def _placed(self, arena: Arena, payload: Any, items: int) -> list[Any]:
        return [arena.place(self._schema, payload, self._payload_bytes, ahead=False) for _ in range(items)]

    def _record(self, arena: Arena, infer: Callable[[], list[Any]]) -> _Recorded:
        """Record a call of the model with the copies around it, or the call alone if that does not work."""
        device, host, results = self._context.device, self._context.host, self._context.results

        def with_results() -> Any:
            results.begin()
            return results.fetch(infer())

        def with_all() -> Any:
            arena.copy_all()
            return with_results()

        device.prepare_capture(with_results)  # it allocates the results' memory as well
        results.begin()
        if not self._records_copies or host.pageable_bytes:  # CUDA records no copy of pageable memory
            return _Recorded(device.capture(infer))
        try:
            # The second recording takes one more call of the policy; what takes long are the preparing calls.
            return _Recorded(device.capture(with_results), device.capture(with_all), results.filled)
        except Exception as error:  # noqa: BLE001  whatever it is, the recording alone may succeed
            refused = error
        # Without preparing calls: after a recording that failed, only another one can draw random numbers.
        alone = _Recorded(device.capture(infer))
        self._records_copies = False
        host.warn(
            f"the copies of a request cannot be recorded with the policy's work ({_first_line(_origin(refused))}): cuda_graph = true "
            "records the work alone, and a request costs the engine a few more calls of CUDA"
        )
        return alone

    def _settle(self, arena: Arena) -> None:
        arena.computed()
        self._context.device.synchronize()
        arena.done()

    def _compare(self, model: Model, index: int, items: int, payloads: list[Any], package: ModelPackage) -> None:
        arena, results, device = self._context.arenas[index], self._context.results, self._context.device

        def called(observations: list[Any]) -> list[Any]:
            arena.send(ahead=False)
            results.begin()
            actions = list(model.infer(observations))
            device.rejoin()
            return list(results.fetch(actions))

        def sent_before(_: list[Any]) -> list[Any]:
            arena.send(ahead=False)
            return self.run(index)

        def sends(_: list[Any]) -> list[Any]:
            if not self.sends(index):
                arena.send(ahead=False)
            return self.run(index)

        def run(how: Callable[[list[Any]], list[Any]]) -> list[Any]:
            """Return the actions for each payload; each finds the other payload on the device."""
            found = []
            for payload in payloads:
                # Noise drawn on the device is the same in all runs. Noise drawn on the host was fixed in the graph when
                # it was recorded.
                seed()
                actions = how(self._placed(arena, payload, items))
                self._settle(arena)
                found += [dict(_owned(action)) for action in actions]
            return found

        with generators_apart(device.torch_device):
            eager = run(called)
            graphs = run(sent_before), run(sends)
        for have, want in ((have, want) for found in graphs for have, want in zip(found, eager, strict=True)):
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


def _origin(error: BaseException) -> BaseException:
    """Return the error that came first: after a failed recording torch raises a further one, which does not mention it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _own_line(error: BaseException, package: Path) -> tuple[BaseException, str]:
    """Return the error that was raised in the policy (see `_origin`), and the innermost of the policy's lines in its traceback."""
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
