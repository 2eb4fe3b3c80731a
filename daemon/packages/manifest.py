"""Reader of model.toml: its keys, the allowed values and the allowed combinations."""

from __future__ import annotations

import difflib
import math
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from shmserve.contract_meaning import FREE, InvalidMeaning, Meaning, read_meaning
from shmserve.errors import ModelPackageError
from shmserve.package_advice import advice_for_directory
from shmserve.real_time_chunking import ENTRIES
from shmserve.text_file import text_of

from .formats import FORMATS, IDENTIFYING, recognised
from .lerobot_options import lerobot_settings
from .range_checks import read_checks
from .remote_link import REMOTE, read_link

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "model.toml"
#: More than enough: the model's metadata for its clients must fit into 32 KiB, and large arrays belong in the weights.
_MANIFEST_BYTES = 1 << 20

_MODEL: dict[str, type] = {
    "name": str,
    "release": int,
    "format": str,
    "entry": str,
    "style": str,
    "arrays": str,
    "arguments": dict,
    "inputs": list,
    "outputs": list,
    "batch_dim": bool,
    "max_batch": int,
    "weights": str,
    "read_in_place": bool,
    "stateful": bool,
    "real_time_chunking": bool,
    "deterministic": bool,
    "grad": bool,
    "sampling": bool,
    "cuda_graph": bool,
    "device_bytes": int,
}
_WARMUP: dict[str, type] = {"example": str, "expected": str, "tolerance": dict, "allow_nonfinite": bool, "rounds": int}
_TOLERANCE = ("atol", "rtol")
_MOST_ROUNDS = 1000
_TABLES = ("model", "warmup", "contract", "checks", "metadata", "lerobot", REMOTE)
#: Keys only for saved modules, and keys only for policy classes.
_SAVED_MODULE = ("inputs", "outputs", "batch_dim")
_CLASS = ("entry", "weights", "style", "arguments", "arrays", "real_time_chunking")
#: Ways to construct and call a policy class (engine/models/policy_styles.py).
_STYLES = ("shmserve", "openpi", "gr00t")
#: Kinds of arrays that a policy of style shmserve can get.
_ARRAYS = ("torch", "numpy")
_GRAPH_BATCH = 32
_SHOWN = {str: "a string", list: "a list of strings", bool: "true or false", int: "an integer", dict: "a table"}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the fields of `ModelPackage` for the package in `directory`, from model.toml or from its content.

    Raises ModelPackageError naming file, key and remedy.
    """
    manifest = directory / MANIFEST
    document = _document(manifest) if manifest.is_file() else {}
    _refuse_unknown(manifest, document, _TABLES, "table")
    for table in _TABLES:
        if not isinstance(document.get(table, {}), dict):
            raise ModelPackageError(f"{manifest}: {table} must be a table ([{table}])")
    model, warmup = document.get("model", {}), document.get("warmup", {})
    _check_types(manifest, model, _MODEL, "key of [model]")
    _check_types(manifest, warmup, _WARMUP, "key of [warmup]")
    settings: dict[str, Any] = {"name": directory.resolve().name, "metadata": document.get("metadata", {}), **model}
    settings["format"] = _format(manifest, model)
    if (link := read_link(manifest, document.get(REMOTE), settings)) is not None:
        settings["link"] = link
    # A policy class may use gradients; others do not, and run slightly faster in inference mode.
    settings.setdefault("grad", FORMATS[settings["format"]].policy_class)
    for key in ("inputs", "outputs"):
        if key in settings:
            settings[key] = _names(manifest, key, settings[key])
    _check_format(manifest, settings)
    if settings["format"] == "lerobot":
        settings |= lerobot_settings(manifest, document.get("lerobot", {}), model)
    elif "lerobot" in document:
        raise ModelPackageError(f"{manifest}: [lerobot] is for format 'lerobot'; this is {settings['format']!r}")
    for key in ("example", "expected", "allow_nonfinite", "rounds"):
        if key in warmup:
            settings[key] = warmup[key]
    if not 1 <= settings.get("rounds", 1) <= _MOST_ROUNDS:
        raise ModelPackageError(f"{manifest}: [warmup] rounds = {settings['rounds']} must be 1 to {_MOST_ROUNDS}")
    settings |= _tolerance(manifest, warmup.get("tolerance", {}))
    if FORMATS[settings["format"]].compiled:
        _check_compiled(manifest, settings)
    settings["checks"] = read_checks(manifest, document.get("checks", {}))
    if settings.get("real_time_chunking", False):
        for name in ENTRIES:
            if name in settings["checks"].get("observation", {}):
                raise ModelPackageError(
                    f"{manifest}: [checks.observation.{name}] would refuse every observation with nothing to continue, "
                    "which has no such entry; check the action instead, of which these rows are"
                )
    settings["contract"] = _contract(manifest, document.get("contract", {}), settings)
    for key in ("weights", "example", "expected"):
        if key in settings:
            _check_file(manifest, key, settings[key])
    return settings


def _document(manifest: Path) -> dict[str, Any]:
    try:
        if (size := manifest.stat().st_size) > _MANIFEST_BYTES:
            raise ModelPackageError(f"{manifest} has {size} bytes, more than {_MANIFEST_BYTES}")
        document: dict[str, Any] = tomllib.loads(text_of(manifest.read_bytes()))
    except ModelPackageError:
        raise
    except OSError as error:
        raise ModelPackageError(f"{manifest} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or an integer of thousands of digits
        raise ModelPackageError(f"{manifest} is not TOML: {error}") from error
    except RecursionError:
        raise ModelPackageError(f"{manifest} cannot be read: it is nested too deeply") from None
    return document


def _format(manifest: Path, model: dict[str, Any]) -> str:
    """Return the format that the manifest names, else the one that the directory's files identify."""
    if "format" in model:
        given: str = model["format"]
        if given not in FORMATS:
            raise ModelPackageError(f"{manifest}: format = {_shown(given)} must be one of {', '.join(FORMATS)}")
        return given
    if "entry" in model:
        return "python"
    found = recognised(manifest.parent)
    if found is None:
        what = "a model.toml that names no format" if manifest.is_file() else f"no {MANIFEST}"
        advice = advice_for_directory(manifest.parent)
        raise ModelPackageError(f"{manifest.parent} holds {what} and none of {IDENTIFYING}; {advice}")
    return found


def _check_format(manifest: Path, settings: dict[str, Any]) -> None:
    """Raise ModelPackageError for a key that the format does not support."""
    name = settings["format"]
    form = FORMATS[name]
    for keys, kind in ((_CLASS, "policy_class"), (_SAVED_MODULE, "saved_module")):
        for key in () if getattr(form, kind) else keys:
            if key in settings:
                formats = [other for other, facts in FORMATS.items() if getattr(facts, kind)]
                raise ModelPackageError(f"{manifest}: {key} is for format {' or '.join(formats)}; this is {name!r}")
    if settings.get("style", _STYLES[0]) not in _STYLES:
        raise ModelPackageError(f"{manifest}: style = {_shown(settings['style'])} must be one of {', '.join(_STYLES)}")
    if settings.get("release", 0) < 0:
        raise ModelPackageError(f"{manifest}: release = {settings['release']} must be 0 or more")
    if settings.get("arrays", _ARRAYS[0]) not in _ARRAYS:
        raise ModelPackageError(
            f"{manifest}: arrays = {_shown(settings['arrays'])} must be one of {', '.join(_ARRAYS)}"
        )
    if settings.get("max_batch", 1) < 1:
        raise ModelPackageError(f"{manifest}: max_batch = {settings['max_batch']} must be 1 or more")
    if settings.get("device_bytes", 1) < 1:
        raise ModelPackageError(f"{manifest}: device_bytes = {settings['device_bytes']} must be 1 or more")
    if settings.get("cuda_graph", False):
        _check_graph(manifest, settings)
    if form.saved_module:
        assert form.file is not None
        if not (manifest.parent / form.file).is_file():
            raise ModelPackageError(f"{manifest.parent} holds no {form.file}, which format {name!r} needs")
        if settings.get("max_batch", 1) > 1 and not settings.get("batch_dim", False):
            raise ModelPackageError(
                f"{manifest}: max_batch = {settings['max_batch']} needs batch_dim = true: requests are stacked "
                "for one call along a first dimension, which the module has and an observation lacks"
            )
        if settings.get("max_batch", 1) > 1 and settings.get("stateful", False):
            raise ModelPackageError(f"{manifest}: a stateful module takes one request at a time: max_batch = 1")
    elif name == "python":
        entry = settings.setdefault("entry", "policy:Policy")
        if not _is_class(entry):
            raise ModelPackageError(f"{manifest}: entry = {_shown(entry)} must be module:class, as in policy:Policy")
    elif name == "lerobot":
        _check_lerobot(manifest, settings)
    elif name != REMOTE and not settings.get("entry"):
        raise ModelPackageError(f"{manifest}: format {name!r} needs entry, the name of an installed policy")


def _check_compiled(manifest: Path, settings: dict[str, Any]) -> None:
    """Raise ModelPackageError for what code that AOTInductor compiled cannot do, or does not say by itself."""
    what = f"{manifest}: format {settings['format']!r} (code that AOTInductor compiled)"
    if settings.get("max_batch", 1) > 1:
        raise ModelPackageError(
            f"{what} takes one request at a time, because it is compiled for the shapes of its example: max_batch = 1"
        )
    if settings.get("stateful", False):
        raise ModelPackageError(
            f"{what} cannot be stateful, because nothing restores its buffers: take the state as an argument and "
            "return it, or save the program with torch.export.save"
        )
    if "example" not in settings:
        raise ModelPackageError(
            f"{what} does not say which dtypes and shapes it takes: write an observation with numpy.savez and name it, "
            '[warmup] example = "example.npz"'
        )


def _check_lerobot(manifest: Path, settings: dict[str, Any]) -> None:
    """Raise ModelPackageError for keys that LeRobot's policies, written for one observation at a time, do not support."""
    for key, default in (("max_batch", 1), ("cuda_graph", False), ("read_in_place", False)):
        if settings.get(key, default) != default:
            raise ModelPackageError(
                f"{manifest}: {key} = {_shown(settings[key])} is not for format 'lerobot': LeRobot's policies and processors "
                "run one observation at a time in Python; remove the key"
            )


def _check_graph(manifest: Path, settings: dict[str, Any]) -> None:
    """Raise ModelPackageError for keys that cuda_graph = true excludes: a recorded policy runs no Python and keeps no state."""
    if settings.get("stateful", False):
        raise ModelPackageError(f"{manifest}: cuda_graph = true, but stateful = true: a recorded policy keeps no state")
    if settings.get("style", _STYLES[0]) != _STYLES[0]:
        raise ModelPackageError(
            f"{manifest}: cuda_graph = true, but style = {settings['style']!r}: policies of this style take the host's arrays"
        )
    if settings.get("real_time_chunking", False):
        raise ModelPackageError(
            f"{manifest}: cuda_graph = true, but real_time_chunking = true: a graph is recorded for observations of one "
            "structure and size, and the rows left over of a chunk are others in each request"
        )
    if settings.get("max_batch", 1) > _GRAPH_BATCH:
        raise ModelPackageError(
            f"{manifest}: cuda_graph = true with max_batch = {settings['max_batch']}: a graph is recorded for every number "
            f"of requests up to it, {_GRAPH_BATCH} at most"
        )


def _contract(manifest: Path, table: dict[str, Any], settings: dict[str, Any]) -> Meaning:
    try:
        meaning = read_meaning(table)
    except InvalidMeaning as error:
        raise ModelPackageError(f"{manifest}: {error}") from error
    for name, entry in meaning.get("observation", {}).items():
        if settings.get("cuda_graph", False) and FREE in entry.get("shape", ()):
            raise ModelPackageError(
                f"{manifest}: contract.observation.{name or repr(name)} has a free dimension, but cuda_graph = true: a graph "
                "is recorded for one size"
            )
    return meaning


def _is_class(entry: str) -> bool:
    module, _, name = entry.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _names(manifest: Path, key: str, value: list[Any]) -> tuple[str, ...]:
    if not value or not all(isinstance(name, str) and name for name in value) or len(set(value)) < len(value):
        raise ModelPackageError(f"{manifest}: {key} = {_shown(value)} must be a list of different names")
    return tuple(value)


def _tolerance(manifest: Path, table: dict[str, Any]) -> dict[str, float]:
    _refuse_unknown(manifest, table, _TOLERANCE, "key of tolerance")
    for key, value in table.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ModelPackageError(f"{manifest}: tolerance {key} = {_shown(value)} must be a number, 0 or more")
    return {key: float(value) for key, value in table.items()}


def _check_file(manifest: Path, key: str, name: str) -> None:
    """Raise ModelPackageError unless `name` is a file inside the package."""
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts:
        raise ModelPackageError(f"{manifest}: {key} = {_shown(name)} must be the name of a file in the package")
    try:
        found = (manifest.parent / plain).is_file()
    except OSError:  # ENAMETOOLONG
        found = False
    if not found:
        raise ModelPackageError(f"{manifest}: {key} = {_shown(name)}: the package holds no such file")


def _check_types(manifest: Path, table: dict[str, Any], keys: dict[str, type], what: str) -> None:
    _refuse_unknown(manifest, table, tuple(keys), what)
    for key, value in table.items():
        if type(value) is not keys[key]:
            raise ModelPackageError(f"{manifest}: {key} = {_shown(value)} must be {_SHOWN[keys[key]]}")


def _refuse_unknown(manifest: Path, table: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ModelPackageError(f"{manifest}: {_shown(key)} is not a {what}{hint}")


def _shown(value: object) -> str:
    """Return a value as text for an error message, shortened if it is long."""
    if type(value) is int and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"  # Python may refuse to print its digits
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
