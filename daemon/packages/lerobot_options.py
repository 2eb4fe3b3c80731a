"""Options of a LeRobot package, `[lerobot]` in model.toml, and what its policy allows: chunks or actions, its state, its code."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shmserve.errors import ModelPackageError

from .lerobot_checkpoint import CONFIG, IMAGES, STATE, LerobotCheckpoint, read_checkpoint, step_of

MODES = ("chunk", "action")
FRAMES = ("uint8", "float32")
_KEYS: dict[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "base": (str,),
    "mode": (str,),
    "joints": (list,),
    "rename_map": (dict,),
    "task": (str,),
    "robot_type": (str,),
    "frames": (str,),
    "frame_sizes": (dict,),
    "plugins": (bool,),
}
_SHOWN = {str: "a string", list: "a list", dict: "a table", bool: "true or false"}

#: Policies whose `select_action` alone collects the observations that they look at.
_OBSERVATION_QUEUES = ("diffusion", "vqbet", "tdmpc", "multi_task_dit", "lingbot_va")
#: Policies that sample their actions.
_SAMPLING = ("diffusion", "vqbet", "tdmpc", "multi_task_dit", "smolvla", "pi0", "pi05", "pi0_fast", "groot", "xvla")
#: Policies of LeRobot that read the instruction. Of others a step that tokenizes it tells.
_READING_TASK = (
    "eo1",
    "evo1",
    "fastwam",
    "groot",
    "lingbot_va",
    "molmoact2",
    "multi_task_dit",
    "pi0",
    "pi05",
    "pi0_fast",
    "smolvla",
    "vla_jepa",
    "wall_x",
    "xvla",
)
#: Policies that resize frames themselves, and the setting that turns this on (None: always).
_RESIZING = {
    "smolvla": "resize_imgs_with_padding",
    "xvla": "resize_imgs_with_padding",
    "diffusion": "resize_shape",
    "pi0": None,
    "pi05": None,
    "pi0_fast": None,
}
#: Policies whose code reads JSON and safetensors alone. Others may run code that they find beside a model of the hub.
_DATA_ONLY = ("act", "diffusion", "vqbet", "tdmpc", "smolvla", "pi0", "pi05")


@dataclass(frozen=True)
class LerobotOptions:
    """How a LeRobot checkpoint is served."""

    checkpoint: LerobotCheckpoint
    mode: str  # chunk or action
    base: str | None = None  # PEFT: a directory of the package with the checkpoint that the adapter changes
    joints: tuple[str, ...] = ()  # the robot's names of the numbers in observation.state
    rename_map: Mapping[str, str] | None = (
        None  # instead of the checkpoint's own: the robot's name of a feature, and its name
    )
    task: str | None = None  # the instruction of observations that have none
    robot_type: str = ""
    frames: str = "uint8"  # dtype of the robots' frames
    frame_sizes: Mapping[str, tuple[int, int]] | None = None  # height and width, of a policy that resizes them
    plugins: bool = False  # import the installed distributions lerobot_policy_*
    #: How the package could run code, None if it cannot.
    runs_code: str | None = None

    @property
    def uses_task(self) -> bool:
        """Whether the policy reads the instruction."""
        names = [str(step.get("registry_name", "")) for step in self.checkpoint.preprocessor]
        return self.checkpoint.type in _READING_TASK or any("tokenizer" in name for name in names)

    @property
    def resizes(self) -> bool:
        """Whether the policy resizes frames itself."""
        return _resizes(self.checkpoint)

    @property
    def robot_names(self) -> dict[str, str]:
        """The robot's name of each input feature, by the policy's name of it."""
        renamed = self.checkpoint.rename_map if self.rename_map is None else self.rename_map
        theirs = {policy: robot for robot, policy in renamed.items()}
        return {name: theirs.get(name, name) for name in self.checkpoint.inputs}


def read_options(manifest: Path, table: Mapping[str, Any]) -> LerobotOptions:
    """Return the options of the package beside `manifest`; raises ModelPackageError naming key and remedy."""
    _check_types(manifest, table)
    checkpoint = read_checkpoint(_folder(manifest, "checkpoint", table.get("checkpoint", ".")))
    if "base" in table:
        _folder(manifest, "base", table["base"])
        if checkpoint.adapter is None:
            raise ModelPackageError(f"{manifest}: [lerobot] base is for a PEFT adapter, which {checkpoint.path} is not")
    _check_renames(manifest, table, checkpoint)
    return LerobotOptions(
        checkpoint=checkpoint,
        mode=_mode(manifest, table, checkpoint),
        base=table.get("base"),
        joints=_joints(manifest, table, checkpoint),
        rename_map=table.get("rename_map"),
        task=table.get("task"),
        robot_type=table.get("robot_type", ""),
        frames=_one_of(manifest, "frames", table.get("frames", FRAMES[0]), FRAMES),
        frame_sizes=_frame_sizes(manifest, table, checkpoint),
        plugins=table.get("plugins", False),
        runs_code=_runs_code(checkpoint, table.get("plugins", False)),
    )


def lerobot_settings(manifest: Path, table: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a package that follow from its checkpoint; `model` has those that model.toml sets."""
    options = read_options(manifest, table)
    stateful = options.mode == "action"
    if stateful and not model.get("stateful", True):
        raise ModelPackageError(
            f"{manifest}: stateful = false, but in mode 'action' the policy keeps a queue for each client: remove the key"
        )
    settings = {"lerobot": options, "stateful": stateful, "sampling": options.checkpoint.type in _SAMPLING}
    weights = options.checkpoint.weights.relative_to(manifest.parent).as_posix()
    return {**settings, **{key: model[key] for key in settings if key in model}, "weights": weights}


def _check_types(manifest: Path, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(_KEYS))}"
            raise ModelPackageError(f"{manifest}: {key!r} is not a key of [lerobot]{hint}")
        if type(value) not in _KEYS[key]:
            raise ModelPackageError(f"{manifest}: [lerobot] {key} = {value!r:.100} must be {_SHOWN[_KEYS[key][0]]}")


def _one_of(manifest: Path, key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ModelPackageError(f"{manifest}: [lerobot] {key} = {value!r} must be one of {', '.join(allowed)}")
    return value


def _folder(manifest: Path, key: str, name: str) -> Path:
    plain = PurePosixPath(name)
    path = manifest.parent / plain
    if plain.is_absolute() or ".." in plain.parts or not path.is_dir():
        raise ModelPackageError(f"{manifest}: [lerobot] {key} = {name!r} must be a directory of the package")
    return path


def _mode(manifest: Path, table: Mapping[str, Any], checkpoint: LerobotCheckpoint) -> str:
    excluded = {mode: reason for mode in MODES if (reason := why_not(checkpoint, mode)) is not None}
    if "mode" not in table:
        if len(excluded) == len(MODES):
            raise ModelPackageError(f"{checkpoint.path}: its policy gives no actions: {'; '.join(excluded.values())}")
        return next(mode for mode in MODES if mode not in excluded)
    mode = _one_of(manifest, "mode", table["mode"], MODES)
    if mode in excluded:
        raise ModelPackageError(f"{manifest}: [lerobot] mode = {mode!r}: {excluded[mode]}")
    return mode


def why_not(checkpoint: LerobotCheckpoint, mode: str) -> str | None:
    """Return why the policy cannot be served in this mode, None if it can."""
    steps, ensembling = checkpoint.setting("n_obs_steps"), checkpoint.setting("temporal_ensemble_coeff")
    if mode == "chunk":
        if checkpoint.type == "gaussian_actor":
            return "a gaussian_actor policy gives single actions: remove the key"
        if checkpoint.type in _OBSERVATION_QUEUES or (isinstance(steps, int) and steps > 1):
            return (
                f"a {checkpoint.type} policy looks at its latest observations, and LeRobot's select_action alone collects "
                "them: remove the key, and it is served by action"
            )
        if ensembling is not None:
            return (
                f"{CONFIG} asks for temporal ensembling (temporal_ensemble_coeff = {ensembling}), which LeRobot's "
                "select_action alone does: remove the key, or set temporal_ensemble_coeff to null to serve plain chunks"
            )
        return None
    chunking = checkpoint.setting("rtc_config")
    if isinstance(chunking, dict) and chunking.get("enabled"):
        return "rtc_config is enabled, and real-time chunking works with chunks: remove the key"
    relative = step_of(checkpoint.preprocessor, "relative_actions_processor") or {}
    if (relative.get("config") or {}).get("enabled") or checkpoint.setting("use_relative_actions"):
        return (
            "its actions are relative to the state that the chunk was asked with, and select_action would add a later "
            "state: remove the key, and it is served by chunk"
        )
    return None


def _joints(manifest: Path, table: Mapping[str, Any], checkpoint: LerobotCheckpoint) -> tuple[str, ...]:
    joints = table.get("joints", [])
    if not joints and "joints" not in table:
        return ()
    if not joints or not all(isinstance(name, str) and name for name in joints) or len(set(joints)) < len(joints):
        raise ModelPackageError(f"{manifest}: [lerobot] joints = {joints!r:.200} must be a list of different names")
    state = checkpoint.inputs.get(STATE)
    if state is None:
        raise ModelPackageError(f"{manifest}: [lerobot] joints: the policy has no input {STATE}, so remove the key")
    if state.shape != (len(joints),):
        raise ModelPackageError(
            f"{manifest}: [lerobot] joints has {len(joints)} names, and {STATE} has shape {list(state.shape)}: name each "
            "number, in the order of the training data"
        )
    return tuple(joints)


def _check_renames(manifest: Path, table: Mapping[str, Any], checkpoint: LerobotCheckpoint) -> None:
    renames = table.get("rename_map", {})
    for robot, policy in renames.items():
        if not isinstance(policy, str) or policy not in checkpoint.inputs:
            raise ModelPackageError(
                f"{manifest}: [lerobot] rename_map: {robot!r} = {policy!r:.200}: the checkpoint's inputs are "
                f"{', '.join(checkpoint.inputs)}"
            )
    if len(set(renames.values())) < len(renames):
        raise ModelPackageError(f"{manifest}: [lerobot] rename_map gives two entries of a robot the same name")


def _resizes(checkpoint: LerobotCheckpoint) -> bool:
    if checkpoint.type not in _RESIZING:
        return False
    setting = _RESIZING[checkpoint.type]
    return setting is None or checkpoint.setting(setting) is not None


def _frame_sizes(
    manifest: Path, table: Mapping[str, Any], checkpoint: LerobotCheckpoint
) -> dict[str, tuple[int, int]] | None:
    if "frame_sizes" not in table:
        return None
    if not _resizes(checkpoint):
        raise ModelPackageError(
            f"{manifest}: [lerobot] frame_sizes: this {checkpoint.type} policy does not resize frames, so robots send them as "
            "in the training; resize them in the robot's program"
        )
    cameras = {name: feature for name, feature in checkpoint.inputs.items() if feature.kind == "VISUAL"}
    sizes = {}
    for name, size in table["frame_sizes"].items():
        full = name if name in cameras else IMAGES + name
        if full not in cameras:
            raise ModelPackageError(f"{manifest}: [lerobot] frame_sizes: {name!r} is not one of {', '.join(cameras)}")
        if not (isinstance(size, list) and len(size) == 2 and all(type(each) is int and each > 0 for each in size)):
            raise ModelPackageError(f"{manifest}: [lerobot] frame_sizes: {name} = {size!r} must be [height, width]")
        sizes[full] = (size[0], size[1])
    return sizes


def _runs_code(checkpoint: LerobotCheckpoint, plugins: bool) -> str | None:
    if plugins:
        return "plugins = true imports the installed distributions lerobot_policy_*"
    if checkpoint.type not in _DATA_ONLY:
        return f"only the policies {', '.join(_DATA_ONLY)} are known to read JSON and safetensors alone"
    if checkpoint.adapter is not None:
        return "PEFT loads the adapter, as its configuration says"
    for step in (*checkpoint.preprocessor, *checkpoint.postprocessor):
        if "registry_name" not in step:
            return f"the processors name the class {step['class']!r:.100}, which LeRobot imports and calls"
    return None
