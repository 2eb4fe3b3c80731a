"""Policy with separate state for each client: it is called with the client's id, and notified when a client leaves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage
from .policy_object import PythonPolicy

#: Client id of the warm-up's requests; real ids start at 0.
NOBODY = -1


def wants_client_id(policy: Any) -> bool:
    """Return whether the policy's `infer` takes `client_id`."""
    return _takes(policy.infer, "client_id")


class PerClientPolicy(PythonPolicy):
    """As PythonPolicy; the engine calls `infer_for` instead of `infer`."""

    def __init__(self, policy: Any, package: ModelPackage) -> None:
        super().__init__(policy, package)
        if self._infer_batch is not None and not _takes(self._infer_batch, "client_ids"):
            raise ModelPackageError(
                f"{package.entry}: infer takes client_id, but infer_batch does not take client_ids: it is called as "
                "infer_batch(observations, client_ids=[...])"
            )
        client_left: Callable[[int], Any] | None = getattr(policy, "client_left", None) or self._reset
        if client_left is None:
            raise ModelPackageError(
                f"{package.entry}: infer takes client_id, but the policy has no method to call when a client leaves: add "
                "client_left(client_id), or reset(client_id); the next client may get the same id"
            )
        self._client_left = client_left

    def infer(self, observations: list[Any]) -> list[Any]:
        return self.infer_for(observations, [NOBODY] * len(observations))

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        """Run as `infer`; `client_ids` names the client of each observation."""
        if len(observations) > 1 and self._infer_batch is not None:
            return self._checked(self._infer_batch(observations, client_ids=list(client_ids)), len(observations))
        asked = zip(observations, client_ids, strict=True)
        return [self._infer(observation, client_id=client_id) for observation, client_id in asked]

    def client_left(self, client_id: int) -> None:
        """Discard the state of a client that has left; another client may get its id."""
        self._client_left(client_id)


def _takes(method: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(method).parameters
    except ValueError:  # a builtin without a signature
        return False
