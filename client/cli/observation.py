"""Observation of the commands `bench` and `infer`: from a file, shapes, images and values, or as the model describes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class ObservationInvalid(ValueError):
    """The observation of a command cannot be made; the text names the option and the remedy."""


@dataclass(frozen=True)
class ObservationSource:
    """The options of a command; `values` of it pass through JSON."""

    example: str | None = None
    shapes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ObservationSource:
        """Return the source that `observation_options` has read; a file is named from the root."""
        example: Path | None = options["example"]
        images = tuple(f"{name}={Path(file).absolute()}" for name, _, file in map(_split, options["images"]))
        return cls(str(example.absolute()) if example else None, options["shapes"], images, options["values"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ObservationSource:
        return cls(fields["example"], *(tuple(fields[name]) for name in ("shapes", "images", "values")))

    def make(self, model: Mapping[str, Any], example: Any = None) -> tuple[Any, str]:
        """Return the observation for a model, and a phrase that says where it comes from.

        `example`: the model's own, if it is known; it is used, and changed, where no file is given.
        Raises ObservationInvalid, NpzUnreadable, ImageUnreadable, NotKnown.
        """
        from .synthetic_observation import synthetic_observation

        entries = model.get("observation")
        parts = [f"{len(given)} {word}" for given, word in self._given() if given]
        if self.example is not None:
            tree, begins = read_example(Path(self.example), entries), self.example
        elif example is not None:
            tree, begins = example, "the model's example"
        elif entries is None and parts:
            tree, begins = {}, ""
        else:
            tree = synthetic_observation(entries)
            of = "the first request" if model.get("observation_source") == "first request" else "the model's example"
            begins = f"zeros in the shape of {of}"
        for shape in self.shapes:
            name, array = shape_of(shape)
            tree = _with(tree, name, array, entries)
        for image in self.images:
            name, _, file = _split(image)
            tree = _with(tree, name, _frame(file, name, model), entries)
        for value in self.values:
            name, _, text = _split(value)
            tree = _with(tree, name, _as_declared(name, _value(text), entries), entries)
        return tree, ", ".join(filter(None, [begins, *parts]))

    def _given(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.shapes, "--shape"), (self.images, "--image"), (self.values, "--set")


def observation_errors() -> tuple[type[Exception], ...]:
    """Return what `make` raises; each text is complete without the type."""
    from shmserve.npz_file import NpzUnreadable

    from .image_file import ImageUnreadable
    from .synthetic_observation import NotKnown

    return ObservationInvalid, NpzUnreadable, ImageUnreadable, NotKnown


def observation_options(command: F) -> F:
    """Add the options to a command, which gets them as `example`, `shapes`, `images` and `values`."""
    for option in (
        click.option(
            "--set",
            "values",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_checked(_split),
            help="A text, a number or a JSON list, for example task=fold.",
        ),
        click.option(
            "--image",
            "images",
            multiple=True,
            metavar="NAME=FILE",
            callback=_checked(_split),
            help="A frame from a file: .ppm, .npy, or any image if Pillow is installed.",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME:DIMS:DTYPE",
            callback=_checked(lambda shape: shape_of(shape)),
            help="Zeros, for example image:480x640x3:uint8.",
        ),
        click.option(
            "--example",
            "--npz",
            "example",
            type=click.Path(path_type=Path, readable=False),
            metavar="FILE",
            help="The observation: .npz of named arrays, or .json.",
        ),
    ):
        command = option(command)
    return command


def _checked(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], Any]:
    def check(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
        for each in given:
            try:
                parse(each)
            except ValueError as error:
                raise click.BadParameter(str(error)) from error
        return given

    return check


def _split(given: str) -> tuple[str, str, str]:
    """Return the name and the rest of NAME=REST; a quoted name may have an equals sign.

    >>> _split("task=fold = press")
    ('task', '=', 'fold = press')
    """
    name, equals, rest = given.partition("=")
    if not name or not equals or not rest:
        raise ValueError(f"{given!r} must be NAME=, and what the entry is")
    return name, equals, rest


def shape_of(given: str) -> tuple[str, Any]:
    """Return the name and the zeros of NAME:DIMS:DTYPE; raises ValueError.

    >>> shape_of("camera.front:2x3x3:uint8")[1].shape, shape_of("gain::float32")[1]
    ((2, 3, 3), array(0., dtype=float32))
    """
    import numpy as np

    name, dims, dtype = [*given.rsplit(":", 2), "", ""][:3]
    example = "as in image:480x640x3:uint8"
    if given.count(":") < 2 or not name:
        raise ValueError(f"{given!r} must be NAME:DIMS:DTYPE, {example}")
    lengths = dims.split("x") if dims else []
    if not all(length.isascii() and length.isdigit() for length in lengths):
        raise ValueError(f"{given!r}: {dims!r} must be lengths joined by x, {example}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.kind not in "biufc":
        raise ValueError(f"{given!r}: {dtype!r} is not a dtype of numpy that can be sent, {example}")
    try:
        return name, np.zeros([int(length) for length in lengths], kind)
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{given!r} cannot be made: {error}") from None


def read_example(file: Path, entries: Mapping[str, Any] | None) -> Any:
    """Return the observation in an .npz or .json, with what the model declares in the dtypes that it declares."""
    if file.suffix == ".json":
        return _of_json(file, entries)
    from shmserve.npz_file import read_npz

    tree: Any = {}
    for name, value in read_npz(file).items():
        tree = _with(tree, name, value, entries, is_file=True)
    return tree


def _of_json(file: Path, entries: Mapping[str, Any] | None) -> Any:
    from shmserve.contract import flatten_with_path

    try:
        tree = json.loads(file.read_bytes())
    except OSError as error:
        raise ObservationInvalid(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ObservationInvalid(f"{file} is not JSON: {error}") from error
    for name, entry in (entries or {}).items():
        if "dtype" in entry and (found := _get(tree, name)) is not None:
            tree = _with(tree, name, _as_declared(name, found, entries), entries)
    for name, value in flatten_with_path(tree):
        if isinstance(value, list) and name.endswith("]"):
            raise ObservationInvalid(
                f"{file}: {name} is a list within a list, and the model does not declare its dtype: use an .npz"
            )
    return tree


def _get(tree: Any, name: str) -> Any:
    for step in _path_of(name):
        try:
            tree = tree[step]
        except (TypeError, KeyError, IndexError):
            return None
    return tree


def _path_of(name: str) -> list[str | int]:
    from .synthetic_observation import steps

    try:
        return steps(name)
    except ValueError:  # such as a key with a space
        return [name]


def _as_declared(name: str, value: Any, entries: Mapping[str, Any] | None) -> Any:
    """Return numbers and lists of them as an array of the declared dtype; other values as they are."""
    import numpy as np

    declared = (entries or {}).get(_known(name, entries))
    if declared is None or "dtype" not in declared or not isinstance(value, (bool, int, float, list)):
        return value
    try:
        return np.array(value, declared["dtype"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ObservationInvalid(f"{name or 'the observation'} cannot become {declared['dtype']}: {error}") from error


def _value(text: str) -> Any:
    """Return JSON, or else the text itself.

    >>> _value("0.5"), _value("[1, 2]"), _value("fold the towel"), _value('"7"')
    (0.5, [1, 2], 'fold the towel', '7')
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _frame(file: str, name: str, model: Mapping[str, Any]) -> Any:
    from .image_file import read_image

    known = _known(name, model.get("observation"))
    meaning = ((model.get("contract") or {}).get("meaning") or {}).get("observation") or {}
    colours = (meaning.get(known) or {}).get("colour_order")
    shape = ((model.get("observation") or {}).get(known) or {}).get("shape") or [3]
    channels = {"grey": 1, "depth": 1, "rgba": 4, "bgra": 4}.get(colours or "", shape[-1] if shape[-1] in (1, 4) else 3)
    return read_image(Path(file), channels=channels, colour_order=colours)


def _known(name: str, entries: Mapping[str, Any] | None) -> str:
    """Return the name by which the model knows an entry: a key with dots may be given without its quotes."""
    quoted = json.dumps(name, ensure_ascii=False)
    return quoted if quoted in (entries or {}) else name


def _with(tree: Any, name: str, value: Any, entries: Mapping[str, Any] | None, *, is_file: bool = False) -> Any:
    """Return the tree with an entry; names of a file that the model does not know are keys as they are."""
    known = _known(name, entries)
    path = [name] if is_file and known not in (entries or {}) else _path_of(known)
    if not path:
        return value
    node = tree
    try:
        for step in path[:-1]:
            if isinstance(node, dict) and step not in node:
                node[step] = {}
            node = node[step]
        node[path[-1]] = value
    except (TypeError, KeyError, IndexError):
        raise ObservationInvalid(f"{name}: the observation has no place for it; quote a key with dots") from None
    return tree
