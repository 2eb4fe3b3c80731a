"""PolicyClient: GR00T's client by name and signature, over shared memory.

Before: `from gr00t.policy.server_client import PolicyClient`
After:  `from shmserve.client.compat.gr00t import PolicyClient`

A call that is more than an observation travels as GR00T's own request does, {"endpoint": ..., "data": ...}, to a
policy that is served in GR00T's style; an observation alone, to a policy of any style.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from shmserve.errors import ContractMismatch, RequestTimeout, ShmServeError

from ..arguments import number, seconds
from .drop_in import DropInClient

_PING_S = 1.0


@dataclass
class ModalityConfig:
    """The fields of `gr00t.data.types.ModalityConfig`, for where gr00t is not installed."""

    delta_indices: list[int]
    modality_keys: list[str]
    sin_cos_embedding_keys: list[str] | None = None
    mean_std_embedding_keys: list[str] | None = None
    action_configs: list[dict[str, Any]] | None = None


class _EndpointClient(DropInClient):
    """Base of the clients of N1.5 and N1.6; every call ends within `timeout_ms`."""

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5555,
        timeout_ms: int = 15000,
        api_token: str | None = None,
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout_ms = timeout_ms
        self.api_token = api_token  # not used: the permissions of the socket decide about access
        timeout_s = seconds("timeout_ms / 1000", number("timeout_ms", timeout_ms) / 1e3)
        super().__init__(host, port, timeout_s, runtime_dir)
        self._model: dict[str, Any] | None = None
        self._version = ""  # of the model that gave the latest reply

    def ping(self) -> bool:
        """Return within a second whether the service is available and has a model."""
        try:
            self._describe(min(self.timeout_ms / 1e3, _PING_S))
        except ShmServeError:
            return False
        return True

    def kill_server(self) -> None:
        """Raise RuntimeError: a robot must not end a service that others use."""
        raise RuntimeError(
            f"{self._address} serves every robot of this host and is not stopped by one of them: stop it where it was "
            "started (systemctl stop, or SIGTERM to shmserved)"
        )

    def call_endpoint(self, endpoint: str, data: dict[str, Any] | None = None, requires_input: bool = True) -> Any:
        """Call an endpoint of the policy.

        Raises RequestTimeout (a TimeoutError) after `timeout_ms`, else RuntimeError with the typed error as its cause.
        """
        if endpoint == "kill":
            self.kill_server()
        try:
            if endpoint == "ping":
                self._describe(self.timeout_ms / 1e3)
                return {"status": "ok", "message": "Server is running"}
            if endpoint == "get_modality_config":
                return _modality_configs(self._describe(self.timeout_ms / 1e3))
            return self._call(endpoint, (data or {}) if requires_input else {})
        except RequestTimeout:
            raise
        except ShmServeError as error:
            raise RuntimeError(f"Server error: {error}") from error

    def get_modality_config(self) -> dict[str, Any]:
        """Return the entries of the policy's observation and action by modality; empty if it declares none."""
        config: dict[str, Any] = self.call_endpoint("get_modality_config", requires_input=False)
        return config

    def _call(self, endpoint: str, data: dict[str, Any]) -> Any:
        deadline = time.monotonic() + self.timeout_ms / 1e3
        if endpoint == "get_action" and set(data) <= {"observation", "options"} and data.get("options") is None:
            return self._infer(data.get("observation"))
        if self._known_model()["metadata"].get("style") != "gr00t":
            if endpoint == "reset" and data.get("options") is None:
                self._client.reset(timeout=_until(deadline))
                return {}
            raise RuntimeError(
                f"Server error: {self._address} serves a policy that is not one of GR00T's, which has no "
                f"{endpoint} with {', '.join(data) or 'nothing'}: serve it in style gr00t, or give an observation alone"
            )
        # A reset may run twice; the effect of any other endpoint is unknown.
        return self._infer(
            {"endpoint": endpoint, "data": data}, timeout=_until(deadline), repeatable=endpoint == "reset"
        )

    def _infer(self, observation: Any, **options: Any) -> Any:
        reply = self._client.request(observation, **options)
        self._version = reply.model_version
        return reply.action

    def _known_model(self) -> dict[str, Any]:
        """Return the description of the model that gave the latest reply, fetched once."""
        if self._model is None or self._version not in ("", self._model["version"]):
            return self._describe(self.timeout_ms / 1e3)
        return self._model

    def _describe(self, timeout_s: float) -> dict[str, Any]:
        """Return the service's model as soon as it has one; raises ServiceUnavailable after the timeout."""
        self._model = self._await_model(time.monotonic_ns() + timeout_s * 1e9)
        return self._model


class PolicyClient(_EndpointClient):
    """GR00T N1.6's and N1.7's client of one policy; no BasePolicy of theirs, whose import brings torch.

    `host` is `shm://NAME` or `unix:DIRECTORY/NAME`; a network host and `port` are accepted and mean service
    "default". It attaches with the first call. With `strict`, observations and actions are compared with the policy's
    modality config, and ValueError lists every difference.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5555,
        timeout_ms: int = 15000,
        api_token: str | None = None,
        strict: bool = False,
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(host, port, timeout_ms, api_token, runtime_dir=runtime_dir)
        self.strict = strict

    def get_action(
        self, observation: dict[str, Any], options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(action, info): arrays float32 (B, T, D) for an observation of (B, T, ...), owned and writable.

        Raises RequestTimeout (a TimeoutError), else RuntimeError with the typed error as its cause.
        """
        if self.strict:
            self.check_observation(observation)
        answer = self.call_endpoint("get_action", {"observation": observation, "options": options})
        if not isinstance(answer, (tuple, list)):
            answer = (answer, {})  # a policy of another style returns the action alone
        action, info = answer
        if self.strict:
            self.check_action(action)
        return action, info

    def reset(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Reset the policy for a new episode; return its reply."""
        answer = self.call_endpoint("reset", {"options": options})
        return answer if isinstance(answer, dict) else {}

    def check_observation(self, observation: dict[str, Any]) -> None:
        """Compare with the policy's modality config; raises ValueError with every difference."""
        wrong = []
        for modality, config in _modality_configs(self._known_model()).items():
            if modality == "action":
                continue
            given = observation.get(modality)
            if not isinstance(given, dict):
                wrong.append(f"{modality} is missing" if given is None else f"{modality} is not a dict")
                continue
            for key in config.modality_keys:
                wrong += _differences(f"{modality}.{key}", modality, given.get(key), len(config.delta_indices))
        if wrong:
            raise ContractMismatch(
                f"the observation does not match the modality config of {self._address}: {'; '.join(wrong)}"
            )

    def check_action(self, action: dict[str, Any]) -> None:
        """Compare with the policy's modality config; raises ValueError with every difference."""
        config = _modality_configs(self._known_model()).get("action")
        if config is None:
            return
        wrong = []
        for key in config.modality_keys:
            wrong += _differences(f"action.{key}", "action", action.get(key), len(config.delta_indices))
        if wrong:
            raise ContractMismatch(
                f"the action does not match the modality config of {self._address}: {'; '.join(wrong)}"
            )


class ExternalRobotInferenceClient(_EndpointClient):
    """GR00T N1.5's client: flat observations (`video.front`, `state.arm`) and flat actions."""

    def get_action(self, observations: dict[str, Any]) -> dict[str, Any]:
        """Return the action for `observations`. Raises as `PolicyClient.get_action`."""
        answer = self.call_endpoint("get_action", {"observation": observations})
        action: dict[str, Any] = answer[0] if isinstance(answer, (tuple, list)) else answer
        return action


#: dtype and dimensions of GR00T's arrays: video (B, T, H, W, C), state and action (B, T, D).
_ARRAYS = {"video": (np.uint8, 5), "state": (np.float32, 3), "action": (np.float32, 3)}


def _differences(name: str, modality: str, value: Any, horizon: int) -> list[str]:
    if value is None:
        return [f"{name} is missing"]
    if modality == "language":
        texts = isinstance(value, list) and all(isinstance(row, list) and len(row) == horizon for row in value)
        return [] if texts else [f"{name} is not a list of lists of {horizon} texts"]
    if modality not in _ARRAYS:
        return []
    dtype, dimensions = _ARRAYS[modality]
    found = np.asarray(value)
    if found.dtype == dtype and found.ndim == dimensions and found.shape[1] == horizon:
        return []
    wanted = f"{np.dtype(dtype).name} of {dimensions} dimensions, the second {horizon}"
    return [f"{name} must be {wanted}, and is {found.dtype.name}{list(found.shape)}"]


def _modality_configs(model: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's modality configs, as objects of gr00t's class where it is installed."""
    own: Any = None
    with contextlib.suppress(ImportError):
        own = importlib.import_module("gr00t.data.types").ModalityConfig
    known = {field.name for field in fields(ModalityConfig)}
    return {
        modality: own(**given) if own else ModalityConfig(**{key: given[key] for key in given if key in known})
        for modality, given in model["metadata"].get("modality_config", {}).items()
    }


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
