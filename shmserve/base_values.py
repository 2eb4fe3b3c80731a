"""The value of an instance of a subclass as its base type, and a tree of such values as plain containers.

Robots have an OrderedDict where a dict is meant, `np.str_` for a text, a memmap for an array, an enum member for a
number. Each is carried as its base, to every policy and from every user alike, as long as nothing is lost by that:

>>> from collections import OrderedDict
>>> plain_tree(OrderedDict(task=np.str_("fold"), pose=(1, 2), names=np.array(["left", "right"])), "observation")
{'task': 'fold', 'pose': (1, 2), 'names': ['left', 'right']}
>>> plain_tree({"depth": np.ma.masked_less([1.0, 2.0], 1.5)}, "observation")
Traceback (most recent call last):
shmserve.errors.UnsupportedType: observation['depth']: an object of type numpy.ma.MaskedArray cannot be carried: its \
mask would be lost; send filled(), or the data and the mask as two arrays
"""

from __future__ import annotations

import enum
import functools
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np

from .errors import UnsupportedType

Convert: TypeAlias = Callable[[Any], Any]
#: The place of a value in a tree: that of its container, and its key or index there. Spelled out only in an error.
Place: TypeAlias = "tuple[Place, object] | None"

#: A tree with objects in it may be nested this deep: Python's own recursion limit must suffice on both sides.
OBJECT_DEPTH_LIMIT = 200

_EXACT = frozenset({str, bytes, int, float, bool, type(None), list, tuple})
_ENUM_VALUES = _EXACT | {dict}
#: The kinds of an array of text: U, S, and numpy 2's StringDType.
_TEXTS = "UST"
#: Subclasses of numpy's own that hold nothing beside the array.
_PLAIN_ARRAYS = (np.memmap, np.matrix, np.recarray)


class ValueLost(ValueError):
    """The base type could not hold all of a value; the text says what would be lost and what to send instead."""


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is never imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(type(value), torch.Tensor)


def as_base(value: Any) -> tuple[Any, Convert | None]:
    """`value` as its base type, and the conversion that made it; (value, None) for what needs none, or has no base.

    Raises ValueLost, and so does the conversion for a later value of the same type.
    """
    kind = type(value)
    if kind in _EXACT:
        return value, None
    convert = _conversion(kind, value)
    return (value, None) if convert is None else (convert(value), convert)


def _conversion(kind: type, value: Any) -> Convert | None:
    # By the type alone: isinstance would ask the value, whose __class__ may be anything.
    if kind is dict:
        return None if set(map(type, value)) <= {str} else _dict_with_plain_keys
    if issubclass(kind, np.ndarray):
        return _array_conversion(kind, value)
    if issubclass(kind, (str, bytes, int, float)):  # np.str_ and np.float64 are among these
        return _scalar_conversion(kind, value)
    if issubclass(kind, enum.Enum):
        return _enum_value if type(value._value_) in _ENUM_VALUES else None
    if issubclass(kind, dict):
        return _dict
    if issubclass(kind, list):
        return _list
    if issubclass(kind, tuple):
        return _tuple if _may_have_attributes(kind, value) or _hidden_fields(kind) else _exact_tuple
    if is_tensor(value) and kind not in _plain_tensors():
        return _tensor
    return None


def _array_conversion(kind: type, value: Any) -> Convert | None:
    if value.dtype.kind in _TEXTS:
        return _texts
    return None if kind is np.ndarray else np.asarray if kind in _PLAIN_ARRAYS else _array


def _scalar_conversion(kind: type, value: Any) -> Convert | None:
    exact = next((exact for base, exact in _EXACT_SCALARS if issubclass(kind, base)), None)
    return exact if exact is None or _is_stateless(kind, value) else _checked(exact)


def _is_stateless(kind: type, value: Any) -> bool:
    return issubclass(kind, enum.Enum) or not _may_have_attributes(kind, value)


@functools.cache
def _checked(exact: Convert) -> Convert:
    def convert(value: Any) -> Any:
        _refuse_attributes(value)
        return exact(value)

    return convert


def _exact_bytes(value: Any) -> bytes:
    return bytes(memoryview(value))


#: By base; numpy's numbers are carried as they are, though np.float64 is a float.
_EXACT_SCALARS: tuple[tuple[type, Convert | None], ...] = (
    (str, str.__str__),
    (bytes, _exact_bytes),
    (np.generic, None),
    (float, float.__float__),
    (int, int.__int__),
)
_enum_value = attrgetter("_value_")
#: A tuple of the items, whatever the subclass makes of iteration.
_exact_tuple = ().__add__


def _texts(array: Any) -> Any:
    """A list of str or bytes, nested as the array has dimensions; the torch that most policies use has no array of texts."""
    if array.dtype.kind not in _TEXTS:
        raise ValueError("an array of another kind")
    return _array(array).tolist()


def _array(array: Any) -> Any:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueLost("its mask would be lost; send filled(), or the data and the mask as two arrays")
    if type(array) is not np.ndarray:
        _refuse_attributes(array)
    return np.asarray(array)


def _tensor(tensor: Any) -> Any:
    _refuse_attributes(tensor)
    return tensor


def _plain_tensor(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    return tensor if type(tensor) is torch.Tensor else tensor.detach().as_subclass(torch.Tensor)


def _plain_tensors() -> tuple[type, ...]:
    torch = sys.modules["torch"]
    return torch.Tensor, torch.nn.Parameter


def _dict_with_plain_keys(given: Any) -> dict[Any, Any]:
    plain = {str.__str__(key) if isinstance(key, str) else key: value for key, value in given.items()}
    if len(plain) != len(given):
        raise ValueLost("two of its keys are one as str; name them apart")
    return plain


def _dict(given: Any) -> dict[Any, Any]:
    _refuse_attributes(given)
    try:
        plain = dict(given)  # in the OrderedDict's order
    except Exception as error:
        raise ValueLost(f"its entries cannot be read ({error_text(error)}); send a dict") from error
    return plain if set(map(type, plain)) <= {str} else _dict_with_plain_keys(plain)


def _list(given: Any) -> list[Any]:
    _refuse_attributes(given)
    return list.copy(given)


def _tuple(given: Any) -> tuple[Any, ...]:
    _refuse_attributes(given)
    if _hidden_fields(type(given)):
        raise ValueLost("it has fields that a tuple does not have; send those that are needed")
    return _exact_tuple(given)


def _hidden_fields(kind: Any) -> bool:
    """Of the tuples of C code, as time.struct_time: fields that are reached by name alone."""
    return int(getattr(kind, "n_fields", 0)) > int(getattr(kind, "n_sequence_fields", 0))


def _may_have_attributes(kind: type, value: Any) -> bool:
    return hasattr(value, "__dict__") or bool(_slots_of(kind))


@functools.lru_cache(maxsize=256)
def _slots_of(kind: type) -> tuple[str, ...]:
    names: list[str] = []
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in names if not (name.startswith("__") and name.endswith("__")))


def _refuse_attributes(value: Any) -> None:
    """Raise ValueLost for attributes of the instance's own that its base type has no place for."""
    try:
        lost = _lost_attributes(value)
    except Exception as error:
        raise ValueLost(f"its attributes cannot be read ({error_text(error)})") from error
    if lost:
        raise ValueLost(f"its attributes would be lost ({', '.join(lost):.200}); send them as separate entries")


def _lost_attributes(value: Any) -> list[str]:
    """An attribute that is None says nothing, and one that a dict holds as an entry too is not lost."""
    attributes: Any = getattr(value, "__dict__", None) or {}
    slots = _slots_of(type(value))  # type: ignore[arg-type]
    if (not attributes and not slots) or attributes is value:
        return []
    found = {**attributes, **{name: getattr(value, name) for name in slots if hasattr(value, name)}}
    entry: Callable[[str], Any] = functools.partial(dict.get, value) if isinstance(value, dict) else lambda name: None
    return [
        name
        for name, held in found.items()
        if held is not None and entry(name) is not held and not _says_nothing(value, name)
    ]


def _says_nothing(value: Any, name: str) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return True
    if isinstance(value, np.memmap) and name in ("_mmap", "offset", "mode", "filename"):
        return True
    return isinstance(getattr(type(value), name, None), functools.cached_property)


def type_name(value: Any) -> str:
    """The type of `value` as errors name it."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def spelled(place: Place, name: str) -> str:
    """A place as errors name it: `observation['pose'][1]`.

    >>> spelled(((None, "pose"), 1), "observation")
    "observation['pose'][1]"
    """
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(f"[{shown(step)}]")
    return name + "".join(reversed(steps))


def shown(value: object) -> str:
    """The start of the repr of a value that is not ours."""
    try:
        return f"{value!r:.80}"
    except Exception:  # noqa: BLE001  a key's own code
        return f"a {type_name(value)}"


def refusal(where: str, value: Any, error: Exception) -> UnsupportedType:
    """Return the error for a value that cannot be carried because of `error`."""
    reason = str(error) if type(error) is ValueLost else f"it raises {error_text(error)}"
    return UnsupportedType(f"{where}: an object of type {type_name(value)} cannot be carried: {reason}")


def error_text(error: BaseException) -> str:
    """The type of an exception and the start of its text, which may be another program's code."""
    try:
        return f"{type(error).__name__}: {error!s:.300}"
    except Exception:  # noqa: BLE001
        return type(error).__name__


def circle_error(where: str, value: Any) -> UnsupportedType:
    """Return the error for a container that contains itself."""
    return UnsupportedType(f"{where}: the {type(value).__name__} contains itself")


def plain_tree(tree: Any, name: str) -> Any:
    """`tree` with plain containers and base values, other objects as they are; `name` is what errors call it.

    Raises UnsupportedType, which names the place, for what would be lost, for a container in itself, and for a tree
    that is nested too deep.
    """
    walk = _Walk(name)
    try:
        return walk.plain(tree, None)
    except RecursionError:  # the caller was deep in its own calls
        raise UnsupportedType(f"{name} is nested too deep for the calls around it") from None


class _Walk:
    def __init__(self, name: str) -> None:
        self._name = name
        self._open: set[int] = set()
        #: The result for each container, and the container, which keeps its id in use: one met twice is walked once.
        self._done: dict[int, tuple[Any, Any]] = {}

    def plain(self, given: Any, place: Place) -> Any:
        if type(given) in (str, bytes, int, float, bool):
            return given
        if id(given) in self._open:
            raise circle_error(spelled(place, self._name), given)
        if (done := self._done.get(id(given))) is not None:
            return done[0]
        try:
            value, _ = as_base(given)
        except Exception as error:
            raise refusal(spelled(place, self._name), given, error) from error
        if type(value) not in (dict, list, tuple):
            return _plain_tensor(value) if is_tensor(value) else value
        if len(self._open) >= OBJECT_DEPTH_LIMIT:
            raise UnsupportedType(
                f"{spelled(place, self._name):.400}: a {type(given).__name__} within more than {OBJECT_DEPTH_LIMIT} "
                "containers cannot be carried"
            )
        self._open.add(id(given))
        plain = self._inside(value, place)
        self._open.discard(id(given))
        self._done[id(given)] = plain, given
        return plain

    def _inside(self, value: Any, place: Place) -> Any:
        if type(value) is dict:
            entries = {key: self.plain(entry, (place, key)) for key, entry in value.items()}
            same = all(entries[key] is entry for key, entry in value.items())
            return value if same else entries
        items = [self.plain(item, (place, index)) for index, item in enumerate(value)]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
