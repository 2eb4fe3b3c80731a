"""Loads a LeRobot policy and its processors from a checkpoint; the one place that calls LeRobot's functions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from shmserve.errors import ModelPackageError

from ....packages.lerobot_checkpoint import ADAPTER, CONFIG, WEIGHTS, LerobotCheckpoint, step_of
from ....packages.lerobot_options import LerobotOptions
from .hub import missing_files
from .pipeline import Pipeline

log = logging.getLogger(__name__)

_INSTALL = "pip install 'shmserve[lerobot]'"
#: Missing weights that an error names.
_NAMED = 5


def load_pipeline(package: Path, options: LerobotOptions, device: torch.device) -> Pipeline:
    """Return the checkpoint's policy between its processors, on `device` and in evaluation mode."""
    checkpoint = options.checkpoint
    api = _Lerobot()
    if options.plugins:
        api.register_plugins()
    with _explained(checkpoint, api):
        config = api.config(checkpoint, device)
        policy_class = api.policy_class(checkpoint, plugins=options.plugins)
        policy = _policy(package, options, policy_class, config, api)
        policy.to(device).eval()
        moved = {"device_processor": {"device": str(device)}}
        before, after = (_of_steps(steps, moved) for steps in (checkpoint.preprocessor, checkpoint.postprocessor))
        renames = step_of(checkpoint.preprocessor, "rename_observations_processor") is not None
        if renames and options.rename_map is not None:
            before["rename_observations_processor"] = {"rename_map": dict(options.rename_map)}
        preprocessor, postprocessor = api.processors(
            config,
            pretrained_path=str(checkpoint.path),
            preprocessor_overrides=before,
            postprocessor_overrides=after,
        )
    # LeRobot itself switches to automatic mixed precision on CUDA alone.
    amp = device.type == "cuda" and bool(checkpoint.setting("use_amp"))
    return Pipeline(policy, preprocessor, postprocessor, checkpoint.type, device, amp=amp, renames=renames)


class _Lerobot:
    """The functions of LeRobot that are used, imported when a checkpoint is loaded."""

    def __init__(self) -> None:
        try:
            from lerobot.configs.policies import PreTrainedConfig
            from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "lerobot":
                raise
            raise ModelPackageError(
                f"format 'lerobot' needs LeRobot in the daemon's environment: {_INSTALL} ({error})"
            ) from error
        self._config: Any = PreTrainedConfig
        self._policy_class: Any = get_policy_class
        self.processors: Any = make_pre_post_processors
        try:
            self.version = metadata.version("lerobot")
        except metadata.PackageNotFoundError:
            self.version = "of an unknown version"

    def register_plugins(self) -> None:
        try:
            from lerobot.utils.import_utils import register_third_party_plugins
        except ImportError:  # LeRobot 0.4 and earlier
            raise ModelPackageError(f"[lerobot] plugins = true: LeRobot {self.version} has no plugins") from None
        register_third_party_plugins()

    def config(self, checkpoint: LerobotCheckpoint, device: torch.device) -> Any:
        config = self._config.from_pretrained(str(checkpoint.path))
        config.device = str(device)
        # The checkpoint holds the backbone's weights; LeRobot would download them first, to overwrite them then.
        if getattr(config, "pretrained_backbone_weights", None) is not None:
            config.pretrained_backbone_weights = None
        return config

    def policy_class(self, checkpoint: LerobotCheckpoint, *, plugins: bool) -> Any:
        try:
            return self._policy_class(checkpoint.type)
        except ValueError as error:
            hint = (
                "no installed plugin (lerobot_policy_*) registers it"
                if plugins
                else "if it is a plugin's, install the plugin and set plugins = true under [lerobot] in model.toml"
            )
            raise ModelPackageError(
                f"{CONFIG}: LeRobot {self.version} knows no policy {checkpoint.type!r}: {hint}"
            ) from error


@contextlib.contextmanager
def _explained(checkpoint: LerobotCheckpoint, api: _Lerobot) -> Iterator[None]:
    """Explain errors of LeRobot whose text does not say what an operator can do."""
    try:
        yield
    except ModelPackageError:
        raise
    except Exception as error:
        if (text := missing_files(error, checkpoint)) is not None:
            raise ModelPackageError(text) from error
        if type(error).__module__.partition(".")[0] == "draccus":
            raise ModelPackageError(
                f"{CONFIG} does not fit LeRobot {api.version}: {error}; install the version that saved it"
            ) from error
        raise


def _policy(package: Path, options: LerobotOptions, policy_class: Any, config: Any, api: _Lerobot) -> Any:
    checkpoint = options.checkpoint
    if checkpoint.adapter is None:
        policy = policy_class.from_pretrained(str(checkpoint.path), config=config)
        _check_weights(policy_class, policy, checkpoint.weights)
        return policy
    try:
        from peft import PeftConfig, PeftModel
    except ModuleNotFoundError as error:
        raise ModelPackageError(f"the checkpoint is a PEFT adapter: pip install 'lerobot[peft]' ({error})") from error
    adapter = PeftConfig.from_pretrained(str(checkpoint.path))
    base = str(package / options.base) if options.base is not None else adapter.base_model_name_or_path
    if not base:
        raise ModelPackageError(
            f"{ADAPTER} names no base_model_name_or_path: put the checkpoint that the adapter "
            "changes into the package, and name its directory: base under [lerobot] in model.toml"
        )
    adapter.base_model_name_or_path = base
    policy = policy_class.from_pretrained(base, config=config)
    _check_weights(policy_class, policy, Path(base) / WEIGHTS)
    PeftModel.from_pretrained(policy, str(checkpoint.path), config=adapter)  # puts its layers into this policy
    return policy


def _check_weights(policy_class: Any, policy: Any, file: Path) -> None:
    """Refuse a file that lacks weights of the policy: LeRobot logs a warning, and keeps random numbers in their place."""
    from lerobot.policies.pretrained import PreTrainedPolicy
    from safetensors import safe_open

    for method in ("from_pretrained", "_load_as_safetensor"):
        if getattr(policy_class, method).__func__ is not getattr(PreTrainedPolicy, method).__func__:
            return  # it names the weights differently
    if not file.is_file():
        return  # of the hub
    with safe_open(file, framework="pt") as weights:
        stored = set(weights.keys())
    tensors = policy.state_dict(keep_vars=True)
    held = {tensor.data_ptr() for name, tensor in tensors.items() if name in stored}  # the others may share these
    missing = [name for name, tensor in tensors.items() if name not in stored and tensor.data_ptr() not in held]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelPackageError(
            f"{file.name} lacks weights of the policy that {CONFIG} describes ({', '.join(missing[:_NAMED])}{more}): it would act "
            "on random numbers; save both with policy.save_pretrained"
        )


def _of_steps(steps: Any, overrides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the overrides for steps that a processor has; LeRobot refuses others."""
    return {name: settings for name, settings in overrides.items() if step_of(steps, name) is not None}
