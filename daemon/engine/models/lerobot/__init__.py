"""LeRobot checkpoints: the policy and its processors, loaded and called as LeRobot does."""

from __future__ import annotations

import torch

from shmserve.errors import ModelPackageError

from ....packages.package import ModelPackage
from ..per_client import PerClientPolicy
from ..policy_object import PythonPolicy
from .loading import load_pipeline
from .observations import Observations
from .policies import ActionPolicy, ChunkPolicy


def load(package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Load the package's checkpoint; raises ModelPackageError if LeRobot, or a file of the hub that the policy needs, is missing."""
    options = package.lerobot
    if options is None:
        raise ModelPackageError(f"{package.path}: format 'lerobot' needs a package that was read as one")
    pipeline = load_pipeline(package.path, options, device)
    observations = Observations(options, device, renamed=pipeline.renames)
    if options.mode == "chunk":
        return PythonPolicy(ChunkPolicy(pipeline, observations, options), package)
    try:
        policy = ActionPolicy(pipeline, observations, options)
    except TypeError as error:  # of copy.deepcopy
        raise ModelPackageError(
            f"the {options.checkpoint.type} policy cannot be copied for each client ({error}), so it cannot be served by action: "
            "try mode = 'chunk' under [lerobot] in model.toml"
        ) from error
    return PerClientPolicy(policy, package)
