"""Fails in ways whose texts hold what clients should not read; `client` and `flood` fail with the client's own text."""

import traceback
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path

    def infer(self, observation: dict[str, Any]) -> Any:
        if "fail" not in observation:
            return {"ok": True}
        return getattr(self, f"_{observation['fail']}")(observation)

    def _path(self, observation: dict[str, Any]) -> Any:
        return (self.path / "no-such-file").read_bytes()

    def _relative(self, observation: dict[str, Any]) -> Any:
        raise ValueError(f"see ~/models/arm/{self.path.name}/joints.json, file://{self.path}, or {self.path}.")

    def _address(self, observation: dict[str, Any]) -> Any:
        raise ValueError(f"no rule for {self!r} and {object()}")

    def _traceback(self, observation: dict[str, Any]) -> Any:
        try:
            return self._path(observation)
        except OSError:
            raise RuntimeError(f"it failed:\n{traceback.format_exc()}") from None

    def _torch(self, observation: dict[str, Any]) -> Any:
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    def _script(self, observation: dict[str, Any]) -> Any:
        return torch.jit.load(str(self.path / "none.pt"))

    def _client(self, observation: dict[str, Any]) -> Any:
        raise LookupError(observation["text"])
