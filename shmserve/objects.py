"""Python objects that the safe form has no words for, as one pickle with its buffers: only ever between trusted peers.

Whatever goes wrong with one of them is an UnsupportedType, which names its place and its type.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from typing import Any

from .base_values import Place, error_text, is_tensor, spelled, type_name
from .carried_values import NO_VALUES, tensor_bytes
from .errors import UnsupportedType

_ADVICE = "send what is needed of it as dict, list, text, numbers and arrays"


def pickled(tree: Any, name: str, *, tensors_as_arrays: bool) -> tuple[memoryview, list[pickle.PickleBuffer]]:
    """The pickle of a plain tree (`plain_tree`), and its buffers; raises UnsupportedType."""
    try:
        return _pickle(tree, tensors_as_arrays)
    except Exception as error:
        raise _refusal(tree, name, error, tensors_as_arrays) from error


def unpickled(data: bytes, buffers: list[Any], name: str) -> Any:
    """The object again; raises UnsupportedType where a class of it cannot be imported, or its own code raises."""
    unpickler = _Unpickler(io.BytesIO(data), buffers=buffers)
    try:
        tree = unpickler.load()
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedType(
            f"{name}: an object in it cannot be unpickled by the process that gets it ({error_text(error)}); {_ADVICE}"
        ) from error
    for absent in unpickler.absent:
        place = next((place for place, value in _leaves(tree) if _is_of(value, absent)), None)
        raise UnsupportedType(
            f"{spelled(place, name)}: an object of type {absent.called} cannot be carried: its class cannot be imported "
            f"by the process that gets it ({absent.why}); put it in a module that both can import, or {_ADVICE}"
        )
    return tree


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], tensors_as_arrays: bool) -> None:
        super().__init__(file, 5, buffer_callback=buffers.append)
        self._tensors_as_arrays = tensors_as_arrays

    def reducer_override(self, obj: Any) -> Any:
        if is_tensor(obj):
            if obj.is_meta:
                raise UnsupportedType(NO_VALUES)
            if self._tensors_as_arrays:
                return _array_of(obj).__reduce_ex__(5)
        # A class or function of the program that was started: the other side has another program's __main__.
        if isinstance(obj, (type, type(_pickle))) and obj.__module__ == "__main__":
            kind = "class" if isinstance(obj, type) else "function"
            raise _InMain(
                f"{kind} {obj.__qualname__} is defined in __main__ of this program, which no other can import; put it in "
                "a module that both can import, or send a dict"
            )
        return NotImplemented


class _InMain(Exception):
    """The pickled object needs a definition of `__main__`."""


def _array_of(tensor: Any) -> Any:
    """A tensor as an array, so that the process that reads it needs no torch."""
    if tensor.dtype is sys.modules["torch"].bfloat16:
        tensor = tensor.float()  # as `named_dtype` without ml_dtypes
    return tensor_bytes(tensor)


def _pickle(tree: Any, tensors_as_arrays: bool) -> tuple[memoryview, list[pickle.PickleBuffer]]:
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, buffers, tensors_as_arrays).dump(tree)
    return file.getbuffer(), buffers


def _refusal(tree: Any, name: str, error: Exception, tensors_as_arrays: bool) -> UnsupportedType:
    """Name the first value of the tree that cannot be pickled by itself."""
    where, value = name, tree
    for place, leaf in _leaves(tree):
        try:
            _pickle(leaf, tensors_as_arrays)
        except Exception as found:  # noqa: BLE001  as above
            where, value, error = spelled(place, name), leaf, found
            break
    if isinstance(error, UnsupportedType):
        return UnsupportedType(f"{where}: {error}")
    reason = str(error) if isinstance(error, _InMain) else f"it cannot be pickled ({error_text(error)}); {_ADVICE}"
    return UnsupportedType(f"{where}: an object of type {type_name(value)} cannot be carried: {reason}")


def _leaves(tree: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the entries of a tree's containers by their place, with the keys, which may be objects. Each container once."""
    left: list[tuple[Place, Any]] = [(None, tree)]
    seen: set[int] = set()
    while left:
        place, value = left.pop()
        if type(value) in (dict, list, tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
        if type(value) is dict:
            for key in value:
                yield place, key
            left += [((place, key), inner) for key, inner in reversed(value.items())]
        elif type(value) in (list, tuple):
            left += [((place, index), value[index]) for index in reversed(range(len(value)))]
        else:
            yield place, value


class _Absent:
    """Stand-in for an object whose class cannot be imported here, so that its place can be reported."""

    called = why = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""

    def add(self, value: Any) -> None:
        """As of a set."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Absent:
        return self


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, *, buffers: list[Any]) -> None:
        super().__init__(file, buffers=buffers)
        self.absent: list[type[_Absent]] = []

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            found = type("_Absent", (_Absent,), {"called": f"{module}.{name}", "why": f"{error!s:.300}"})
            self.absent.append(found)
            return found


def _is_of(value: Any, absent: type[_Absent]) -> bool:
    return value is absent or type(value) is absent
