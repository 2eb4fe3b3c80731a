"""Policies written for other servers: which style a class is of, and what it is constructed with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models.policy_styles import Gr00tStyle, OpenpiStyle, styled_policy
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import POLICIES, Daemon

pytestmark = [pytest.mark.long, pytest.mark.sealed_too]

CPU = torch.device("cpu")


def package(folder: Path, policy: str = "", manifest: str = "[model]\n") -> Path:
    """A package with this policy.py and model.toml."""
    (folder / "policy.py").write_text(policy)
    (folder / "model.toml").write_text(manifest)
    return folder


def styled(policy_class: Any, folder: Path, manifest: str = "[model]\n") -> Any:
    return styled_policy(policy_class, ModelPackage.read(package(folder, manifest=manifest)), CPU)


class PathAndDevice:
    def __init__(self, path: Path, device: torch.device) -> None: ...

    def infer(self, observation: Any) -> Any:
        return type(observation["x"]).__name__


class NoArguments:
    def infer(self, obs: Any) -> Any:
        return type(obs["x"]).__name__


class Defaults:
    def __init__(self, horizon: int = 4, width: int = 2, depth: int = 1) -> None:
        self.given = horizon, width, depth

    def infer(self, obs: Any) -> Any:
        return self.given


class Gr00t:
    def __init__(self, embodiment_tag: str = "x", strict: bool = True) -> None:
        self.embodiment_tag = embodiment_tag

    def get_action(self, observation: Any, options: Any = None) -> Any:
        return observation, {"options": options}


class Gr00tN15:
    def get_action(self, observations: Any) -> Any:
        return {"action.arm": observations["state.arm"]}


@pytest.mark.parametrize(
    ("policy_class", "kind"),
    [(PathAndDevice, PathAndDevice), (NoArguments, OpenpiStyle), (Gr00t, Gr00tStyle), (Gr00tN15, Gr00tStyle)],
)
def test_a_style_is_recognised_by_the_methods_and_the_constructor(
    policy_class: type, kind: type, tmp_path: Path
) -> None:
    assert type(styled(policy_class, tmp_path)) is kind


def test_a_style_that_is_named_needs_no_recognising(tmp_path: Path) -> None:
    policy = styled(Defaults, tmp_path, '[model]\nstyle = "openpi"\n[model.arguments]\nwidth = 7\n')

    assert policy.infer({}) == (4, 7, 1)


def test_the_entry_may_be_a_function_that_makes_the_policy(tmp_path: Path) -> None:
    def create(config: str, checkpoint_dir: str) -> Defaults:
        return Defaults(len(config), len(checkpoint_dir))

    manifest = '[model]\nstyle = "openpi"\n[model.arguments]\nconfig = "pi05"\ncheckpoint_dir = "{path}"\n'
    policy = styled(create, tmp_path, manifest)

    assert policy.infer({}) == (4, len(str(tmp_path)), 1)


@pytest.mark.parametrize(
    ("policy_class", "manifest", "message"),
    [
        (PathAndDevice, '[model]\nstyle = "openpi"\n', "cannot be called with ().*style 'openpi' is .*missing.*'path'"),
        (PathAndDevice, "[model]\n[model.arguments]\nspeed = 1\n", "cannot be called with .speed=.*'path'"),
        (NoArguments, '[model]\nstyle = "gr00t"\n', "has no method get_action.observation., which style 'gr00t' needs"),
        (object, "[model]\n", "cannot be called with .path, device., as a policy of style 'shmserve' is"),
        (Gr00t, "[model]\n[model.arguments]\ntag = 1\n", "unexpected keyword argument 'tag'.*\\[model.arguments\\]"),
    ],
)
def test_a_class_that_does_not_fit_its_style_is_refused_with_the_remedy(
    policy_class: type, manifest: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelPackageError, match=message):
        styled(policy_class, tmp_path, manifest)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('[model]\nstyle = "opnepi"\n', "style = 'opnepi' must be one of shmserve, openpi, gr00t"),
        ("[model]\nstyle = 3\n", "style = 3 must be a string"),
        ('[model]\narrays = "jax"\n', "arrays = 'jax' must be one of torch, numpy"),
        ('[model]\nformat = "torchscript"\narrays = "numpy"\n', "arrays is for format python or installed"),
        ("[model]\narguments = 3\n", "arguments = 3 must be a table"),
        ('[model]\nformat = "torchscript"\nstyle = "openpi"\n', "style is for format python or installed"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(manifest: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=message):
        ModelPackage.read(package(tmp_path, manifest=manifest))


def test_n15s_get_action_is_called_without_options(tmp_path: Path) -> None:
    policy = styled(Gr00tN15, tmp_path)

    assert policy.infer({"state.arm": 3}) == {"action.arm": 3}
    with pytest.raises(ValueError, match="takes no options"):
        policy.infer({"endpoint": "get_action", "data": {"observation": {"state.arm": 3}, "options": {"gain": 2}}})


@pytest.mark.parametrize("policy", ["openpi_style", "gr00t_style"])
def test_the_policies_of_these_tests_know_nothing_of_shmserve(policy: str) -> None:
    assert "shmserve" not in (POLICIES / policy / "policy.py").read_text()


def test_a_subclass_of_the_openpi_base_class_is_recognised_with_any_constructor(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    # A package may bring its own modules: here the one file of openpi_client that such a policy imports, in miniature.
    (tmp_path / "openpi_client").mkdir()
    (tmp_path / "openpi_client" / "__init__.py").touch()
    (tmp_path / "openpi_client" / "base_policy.py").write_text("class BasePolicy:\n    def reset(self): ...\n")
    (tmp_path / "policy.py").write_text(
        "import numpy as np\n"
        "from openpi_client import base_policy as _base_policy\n\n"
        "class Policy(_base_policy.BasePolicy):\n"
        "    def __init__(self, horizon=4, width=2):\n"
        "        self.shape = horizon, width\n\n"
        "    def infer(self, obs, *, noise=None):\n"
        "        return {'actions': np.full(self.shape, obs['x'].sum()), 'kind': type(obs['x']).__name__}\n"
    )
    daemon = make_daemon(tmp_path).start()
    with daemon.client() as client:
        client.reset()
        found = client.infer({"x": np.ones(3)})

    assert found["kind"] == "ndarray"
    np.testing.assert_array_equal(found["actions"], np.full((4, 2), 3.0))


def test_arguments_of_shmserves_own_style_follow_path_and_device(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    source = (
        "class Policy:\n"
        "    def __init__(self, path, device, *, gains, nested):\n"
        "        self.found = {'path': str(path), 'gains': gains, 'nested': nested}\n\n"
        "    def infer(self, observation):\n"
        "        return self.found\n"
    )
    manifest = "[model]\n[model.arguments]\ngains = [1, 2]\nnested = { weights = '{path}/w', where = '{device}' }\n"
    daemon = start_daemon(package(tmp_path, source, manifest))
    with daemon.client() as client:
        found = client.infer({})

    assert found["gains"] == [1, 2]
    assert found["nested"] == {"weights": f"{found['path']}/w", "where": "cpu"}
