"""Computes on its device, and brings it down when asked; on a late GPU as on a real one."""

import threading
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        self._two = torch.full((), 2.0, device=device)
        self._late = getattr(torch.cuda, "late", None)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for observation in observations:
            getattr(self, f"_{observation.get('do', 'nothing')}")()
        rows = [observation["x"] * self._two for observation in observations]
        return [{"y": row, "where": str(row.device), "batch": len(observations)} for row in rows]

    def _nothing(self) -> None:
        pass

    def _raise(self) -> None:
        raise LookupError("asked to")

    def _oom(self) -> None:
        torch.empty(1 << 42, dtype=torch.uint8, device=self._device)

    def _assert(self) -> None:
        if self._late is not None:
            self._late.poison = "device-side assert triggered"
        else:
            # Nothing of it is seen here: it happens on the device, later.
            torch.zeros(4, device=self._device)[torch.tensor([9], device=self._device)]

    def _lose_later(self) -> None:
        assert self._late is not None
        threading.Timer(0.2, setattr, (self._late, "poison", "unspecified launch failure")).start()
