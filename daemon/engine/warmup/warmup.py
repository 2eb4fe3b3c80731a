"""Warm-up: runs a model as a request would before it serves, and rejects it if its actions are invalid."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from shmserve.base_values import plain_tree
from shmserve.codec import Encoder, SlotMemory, described
from shmserve.contract import Entries, contract_differences, contract_of
from shmserve.errors import ModelPackageError, ValueOutOfRange
from shmserve.real_time_chunking import without_entries
from shmserve.schema import Schema

from ...packages.package import ModelPackage
from ..channel.staging import Staging, aligned_bytes
from ..models.example_files import read_recorded
from ..models.host_arrays import on_host
from ..models.model import Model, PerClient
from ..models.range_checks import RangeChecks
from ..models.repeatability import Leaves, leaves_of, unlike, warning
from ..models.validation import deviations, not_finite
from .declared_contract import declared_contract
from .example import Example

log = logging.getLogger(__name__)

#: The first calls allocate, choose kernels and compile; later ones show the duration of a request.
_ROUNDS = 3
#: A slow model's third round is left out once the first two took this long: robots may be waiting.
_SLOW_NS, _SLOW_ROUNDS = 1_000_000_000, 2
#: Client id of the warm-up; a stateful model is reset for it before each round and before it serves.
_CLIENT = -1


@dataclass(frozen=True)
class WarmupResult:
    """Measurements of the warm-up."""

    request_bytes: int  # payload of the example; 0 without one
    reply_bytes: int
    infer_ms: float | None
    #: `{"observation": ..., "action": ...}`, see shmserve.contract; each None without an example. With `meaning`, if stated.
    contract: dict[str, Any]
    #: The example as in a slot: its schema and its payload.
    example: Example | None = None

    @property
    def observation(self) -> Entries | None:
        return self.contract["observation"]  # type: ignore[no-any-return]

    @property
    def action(self) -> Entries | None:
        return self.contract["action"]  # type: ignore[no-any-return]


class _ArraysOf(Protocol):
    """Staging of the warm-up's observations, and readback of its actions."""

    def observation(
        self, schema: Schema, slot: SlotMemory, payload_bytes: int, *, in_place: bool, pickled: bool
    ) -> Any:
        """Return the tree in `slot` as the model takes it."""

    def settle(self, action: Any) -> Any:
        """Wait for the action and return it on the host."""


class HostStaging(Staging):
    """Staging for a model that takes its arrays on the host, or gets copies of them by ordinary means."""

    def settle(self, action: Any) -> Any:
        return on_host(action)


def warm_up(
    model: Model, device: torch.device, package: ModelPackage, *, staging: _ArraysOf | None = None
) -> WarmupResult:
    """Run the package's example, or the model's own, a few times; `staging` is for a device other than the CPU.

    Raises ModelPackageError for an action that holds NaN or infinity, differs from the expected one, or has another
    structure in a batch; exceptions of the model propagate.
    """
    example = _example(model, package)
    if example is None:
        log.warning("the model has no example observation: the first request pays for the warm-up")
        return WarmupResult(0, 0, None, declared_contract({"observation": None, "action": None}, package.contract))
    example = plain_tree(example, "example observation")
    schema, request_bytes = described(example, "example observation")
    staging = staging or HostStaging(None if model.takes_numpy else device)
    slot = _slot_with(example, request_bytes)
    action: Any = None
    answers: list[Leaves] = []
    infer_ns = 0
    rounds = package.rounds or _ROUNDS
    first_ns = time.monotonic_ns()
    for number in range(rounds):
        if package.rounds is None and number >= _SLOW_ROUNDS and time.monotonic_ns() - first_ns > _SLOW_NS:
            break
        _forget(model, package)
        observation = staging.observation(schema, slot, request_bytes, in_place=False, pickled=False)
        began_ns = time.monotonic_ns()
        (action,) = model.infer([observation])
        action = staging.settle(action)
        infer_ns = time.monotonic_ns() - began_ns
        action = plain_tree(action, "action")
        if number == 0:
            _judge(action, package)
            _check_numbers(example, action, package)
        with contextlib.suppress(Exception):  # types that cannot be copied are not checked
            answers.append(leaves_of(action))

    def again() -> Leaves:
        observation = staging.observation(schema, slot, request_bytes, in_place=False, pickled=False)
        return leaves_of(staging.settle(model.infer([observation])[0]))

    if not package.stateful and not package.sampling and not isinstance(model, PerClient):
        _warn_of_state(answers, again, package)
    # An observation without an earlier chunk lacks these entries, and none is refused for their sizes.
    shown = without_entries(example) if package.real_time_chunking else example
    contract = declared_contract(contract_of(shown, action), package.contract)
    if model.batches and package.max_batch > 1:
        _forget(model, package)
        observation = staging.observation(schema, slot, request_bytes, in_place=False, pickled=False)
        _check_batch(model, staging, observation, contract, package.max_batch)
    _forget(model, package)
    _, reply_bytes = described(action, "action")
    return WarmupResult(request_bytes, reply_bytes, infer_ns / 1e6, contract, (schema, slot.payload))


def _example(model: Model, package: ModelPackage) -> Any:
    if package.example is not None:
        return read_recorded(package.path / package.example)
    example = model.example_observation()
    if example is None and package.expected is not None:
        raise ModelPackageError(
            f"{package.path}: expected = {package.expected!r} is an expected action, but the model has no example: "
            "add [warmup] example"
        )
    return example


def _warn_of_state(answers: list[Leaves], again: Callable[[], Leaves], package: ModelPackage) -> None:
    with contextlib.suppress(Exception):  # types that cannot be compared are not checked
        if found := unlike(answers, package):
            log.warning("%s", warning(found, again, package))


def _forget(model: Model, package: ModelPackage) -> None:
    """Reset the model, so that each round starts like a client's first request and clients see no state of the warm-up."""
    if package.stateful:
        model.reset(_CLIENT)
    if isinstance(model, PerClient):
        model.client_left(_CLIENT)


def _judge(action: Any, package: ModelPackage) -> None:
    if not package.allow_nonfinite and (wrong := not_finite(action)):
        raise ModelPackageError(
            f"the action for the example cannot be used: {'; '.join(wrong)} (if that is intended, set allow_nonfinite = "
            "true under [warmup])"
        )
    if package.expected is not None:
        expected = read_recorded(package.path / package.expected)
        if wrong := deviations(action, expected, atol=package.atol, rtol=package.rtol):
            raise ModelPackageError(
                f"the action for the example is not the one recorded in {package.expected}: {'; '.join(wrong)}"
            )


def _check_numbers(example: Any, action: Any, package: ModelPackage) -> None:
    """Raise ModelPackageError unless the package's range checks hold for its example and name entries that exist."""
    for side, tree in (("observation", example), ("action", action)):
        try:
            RangeChecks(side, package.checks.get(side, {})).apply(tree)
        except ValueOutOfRange as error:
            raise ModelPackageError(f"the example does not pass [checks] of model.toml: {error}") from error


def _check_batch(model: Model, staging: _ArraysOf, observation: Any, contract: dict[str, Any], count: int) -> None:
    """Raise ModelPackageError unless the largest batch runs and each of its actions has a single request's structure."""
    for given in staging.settle(list(model.infer([observation] * count))):
        action = plain_tree(given, "action")
        differences = contract_differences({"action": contract["action"]}, contract_of(None, action))
        if differences:
            raise ModelPackageError(
                f"the action's structure differs, alone -> in a batch of {count}: {'; '.join(differences)}"
            )


def _slot_with(example: Any, payload_bytes: int) -> SlotMemory:
    slot = SlotMemory(np.zeros(1 << 16, np.uint8), aligned_bytes(payload_bytes))
    Encoder(name="example observation").encode(example, slot)
    return slot
