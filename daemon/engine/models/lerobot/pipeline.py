"""One LeRobot policy between its preprocessor and its postprocessor, and further ones, each with its state."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch

#: Policies that keep all their state in their attributes, so that several can share one network object. Of others the
#: modules are copied, and the parameters shared.
_STATE_OUTSIDE_NETWORK = ("act", "diffusion", "vqbet", "tdmpc", "smolvla", "pi0", "pi05")
#: Tables of nn.Module that copies share.
_SHARED = ("_modules", "_parameters", "_buffers")
#: Of GR00T the postprocessor decodes a chunk as a whole; others take the rows of a chunk as a batch of actions.
_WHOLE_CHUNKS = ("groot",)


class Pipeline:
    """A policy with its processors; the three keep the state of one client."""

    def __init__(
        self,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
        kind: str,
        device: torch.device,
        *,
        amp: bool,
        renames: bool,
    ) -> None:
        self.policy = policy
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor
        self._kind = kind
        self._device = device
        self._amp = amp
        #: Whether the preprocessor renames the robot's entries to those of the policy.
        self.renames = renames
        #: Parts that other pipelines share, by identity, as copy.deepcopy takes them.
        self._memo: dict[int, Any] | None = None

    def chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return a chunk of actions, float32 [steps, numbers]."""
        with self._precision():
            rows = self.policy.predict_action_chunk(self._preprocessor(batch))
            if self._kind in _WHOLE_CHUNKS:
                return _float(self._postprocessor(rows)[0])
            return _float(self._postprocessor(rows[0]))

    def action(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the next action, float32 [numbers]."""
        with self._precision():
            return _float(self._postprocessor(self.policy.select_action(self._preprocessor(batch)))[0])

    def reset(self) -> None:
        for part in (self.policy, self._preprocessor, self._postprocessor):
            part.reset()

    def another(self) -> Pipeline:
        """Return a pipeline with the same weights and a separate state, at the beginning of an episode."""
        if self._memo is None:
            self._memo = {id(shared): shared for shared in self._shared()}
        memo = dict(self._memo)
        if self._shares_network:
            policy = copy.copy(self.policy)
            memo[id(self.policy)] = policy
            own = {key: value for key, value in vars(self.policy).items() if key not in _SHARED}
            vars(policy).update(copy.deepcopy(own, memo))
            before, after = copy.deepcopy((self._preprocessor, self._postprocessor), memo)
        else:
            policy, before, after = copy.deepcopy((self.policy, self._preprocessor, self._postprocessor), memo)
        found = Pipeline(policy, before, after, self._kind, self._device, amp=self._amp, renames=self.renames)
        found.reset()
        return found

    @property
    def _shares_network(self) -> bool:
        return self._kind in _STATE_OUTSIDE_NETWORK

    def _shared(self) -> list[Any]:
        """Return the parts that copies share: the network or its parameters, and tokenizers, which are large and keep nothing."""
        modules = list(self.policy.modules())
        shared = modules[1:] if self._shares_network else list(self.policy.parameters())
        for owner in (*modules, *getattr(self._preprocessor, "steps", ())):
            shared += [value for value in vars(owner).values() if _is_of_transformers(value)]
        return shared

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self._device.type) if self._amp else contextlib.nullcontext()


def _is_of_transformers(value: Any) -> bool:
    library = type(value).__module__.partition(".")[0]
    return library in ("transformers", "tokenizers") and not isinstance(value, torch.nn.Module)


def _float(actions: torch.Tensor) -> torch.Tensor:
    return actions.to(torch.float32)
