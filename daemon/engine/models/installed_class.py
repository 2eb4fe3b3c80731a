"""Policy class that is installed in the daemon's environment; the package has its weights and settings, but no code."""

from __future__ import annotations

from importlib.metadata import entry_points

import torch

from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage
from .policy_object import PythonPolicy
from .python_class import make_policy

#: Distributions register their policies here: [project.entry-points."shmserve.policies"] act = "my_policies.act:Policy"
GROUP = "shmserve.policies"


def load(package: ModelPackage, device: torch.device) -> PythonPolicy:
    """Construct the policy that is registered under the package's entry."""
    registered = {point.name: point for point in entry_points(group=GROUP)}
    point = registered.get(package.entry)
    if point is None:
        known = ", ".join(sorted(registered)) or "none"
        raise ModelPackageError(
            f"no installed policy is named {package.entry!r} (registered in this environment: {known}); install the "
            f"distribution whose entry point in {GROUP!r} has that name"
        )
    return make_policy(point.load(), package, device)
