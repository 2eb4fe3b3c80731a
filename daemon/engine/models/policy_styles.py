"""Adapters for policies written for other servers, openpi's and GR00T's; the policies stay unmodified.

| style    | constructed with                | called by                                            | arrays arrive as |
|----------|---------------------------------|------------------------------------------------------|------------------|
| shmserve | (path, device, **arguments)     | infer(observation), reset(client_id)                 | tensors          |
| openpi   | (**arguments)                   | infer(obs), reset()                                  | numpy arrays     |
| gr00t    | (**arguments)                   | get_action(observation, options), reset(options), ...| numpy arrays     |

`arguments` is the table [model.arguments] of model.toml; in its strings {path} stands for the package's directory and
{device} for the device. A numpy array is a view of the staging memory, without a copy, whatever the policy's device.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage

#: Optional methods that are passed on from the policy if it has them.
_OPTIONAL = ("example_observation",)
#: Keys of a GR00T request that calls another endpoint than get_action(observation).
_CALL = {"endpoint", "data"}


def styled_policy(policy_class: Callable[..., Any], package: ModelPackage, device: torch.device) -> Any:
    """Construct the policy by its style; the returned object has the methods of shmserve's own style.

    Raises ModelPackageError if the style or the arguments do not fit the class; exceptions of its constructor propagate.
    """
    arguments = _filled(package.arguments, package.path, device)
    style = package.style or _recognised(policy_class, package, device, arguments)
    positional = (package.path, device) if style == "shmserve" else ()
    _check_arguments(policy_class, package, style, positional, arguments)
    policy = policy_class(*positional, **arguments)
    method = "get_action" if style == "gr00t" else "infer"
    if not callable(getattr(policy, method, None)):
        raise ModelPackageError(f"{package.entry} has no method {method}(observation), which style {style!r} needs")
    if style == "shmserve":
        return policy
    return Gr00tStyle(policy) if style == "gr00t" else OpenpiStyle(policy)


def made_for_numpy(policy: Any) -> bool:
    """Return whether a policy from `styled_policy` expects numpy arrays in its observations."""
    return isinstance(policy, _Styled)


def has_reset(policy: Any) -> bool:
    """Return whether the author's policy has a `reset`."""
    return callable(getattr(policy.policy if isinstance(policy, _Styled) else policy, "reset", None))


def _recognised(
    policy_class: Callable[..., Any], package: ModelPackage, device: torch.device, arguments: Mapping[str, Any]
) -> str:
    """Recognise the style of a class whose manifest does not name it."""
    if hasattr(policy_class, "get_action") and not hasattr(policy_class, "infer"):
        return "gr00t"
    if any(base.__module__.partition(".")[0] == "openpi_client" for base in getattr(policy_class, "__mro__", ())):
        return "openpi"
    fits = _misfit(policy_class, (package.path, device), arguments) is None
    return "shmserve" if fits or not hasattr(policy_class, "infer") else "openpi"


def _check_arguments(
    policy_class: Callable[..., Any],
    package: ModelPackage,
    style: str,
    positional: tuple[Any, ...],
    arguments: Mapping[str, Any],
) -> None:
    misfit = _misfit(policy_class, positional, arguments)
    if misfit is not None:
        given = [*(["path", "device"] if positional else []), *(f"{name}=" for name in arguments)]
        raise ModelPackageError(
            f"{package.entry}{inspect.signature(policy_class)} cannot be called with ({', '.join(given)}), as a policy of "
            f"style {style!r} is ({misfit}): give its arguments in [model.arguments] of model.toml, or its style in "
            "[model], shmserve, openpi or gr00t"
        )


def _misfit(policy_class: Callable[..., Any], positional: tuple[Any, ...], arguments: Mapping[str, Any]) -> str | None:
    """Return why the class does not accept these arguments; None if it does, or if its signature is unknown."""
    try:
        signature = inspect.signature(policy_class)
    except ValueError:
        return None
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        return str(error)
    return None


def _filled(value: Any, path: Path, device: torch.device) -> Any:
    if isinstance(value, str):
        return value.replace("{path}", str(path)).replace("{device}", str(device))
    if isinstance(value, dict):
        return {key: _filled(inner, path, device) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, path, device) for inner in value]
    return value


class _Styled:
    """Common part of the two adapters."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        for name in _OPTIONAL:
            if callable(getattr(policy, name, None)):
                setattr(self, name, getattr(policy, name))

    def metadata(self) -> dict[str, Any]:
        """Return the policy's own `metadata`, which is a property in openpi."""
        found = getattr(self.policy, "metadata", None)
        return dict((found() if callable(found) else found) or {})


class OpenpiStyle(_Styled):
    """A policy written for openpi's `BasePolicy`."""

    def infer(self, observation: Any) -> Any:
        return self.policy.infer(observation)

    def reset(self, client_id: int) -> None:
        reset = getattr(self.policy, "reset", None)
        if reset is not None:
            reset()


class Gr00tStyle(_Styled):
    """A policy written for GR00T's `BasePolicy`: `get_action(observation, options)`, N1.5's `get_action(observation)`.

    Further endpoints are the functions in its `endpoints`, a dict by name, if it has one.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        parameters = inspect.signature(policy.get_action).parameters.values()
        self._takes_options = any(one.name == "options" or one.kind == one.VAR_KEYWORD for one in parameters)
        self._endpoints: dict[str, Callable[..., Any]] = {
            "get_action": self._get_action,
            "reset": self._reset,
            "ping": lambda: {"status": "ok", "message": "Server is running"},
            "get_modality_config": self._modality_config,
            **getattr(policy, "endpoints", {}),
        }

    def infer(self, observation: Any) -> Any:
        if not isinstance(observation, dict) or observation.keys() != _CALL:
            return self._get_action(observation)
        endpoint = self._endpoints.get(observation["endpoint"])
        if endpoint is None:
            raise ValueError(f"Unknown endpoint: {observation['endpoint']} (there are {', '.join(self._endpoints)})")
        return endpoint(**(observation["data"] or {}))

    def reset(self, client_id: int) -> None:
        self._reset()

    def metadata(self) -> dict[str, Any]:
        # compat.gr00t relies on these two keys, so the policy cannot override them.
        return {**super().metadata(), "style": "gr00t", "modality_config": self._modality_config()}

    def _get_action(self, observation: Any, options: Any = None) -> Any:
        if self._takes_options:
            return self.policy.get_action(observation, options=options)
        if options is not None:
            raise ValueError(f"{type(self.policy).__name__}.get_action takes no options")
        return self.policy.get_action(observation)

    def _reset(self, options: Any = None) -> Any:
        reset = getattr(self.policy, "reset", None)
        if reset is None:
            return {}
        takes_options = "options" in inspect.signature(reset).parameters
        return (reset(options=options) if takes_options else reset()) or {}

    def _modality_config(self) -> dict[str, Any]:
        get = getattr(self.policy, "get_modality_config", None)
        return {} if get is None else {str(name): _plain(config) for name, config in get().items()}


def _plain(value: Any) -> Any:
    """Convert a config to JSON types; enum members become their names, as in GR00T's own serialiser."""
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # N1.5's are pydantic models
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(inner) for inner in value]
    return value
