"""Every kind of observation that the codec promises to carry, for hypothesis."""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, defaultdict
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES = [
    np.dtype(name) for name in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")
]
DTYPES = [*NUMPY_DTYPES, BFLOAT16]
TORCH_DTYPES = [
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (1,),
    (7,),
    (3, 0),
    (0, 3),
    (2, 3),
    (4, 1, 3),
    (2, 0, 2),
    (2, 1, 3, 2),
    (33, 65),
]


class Mode(enum.IntEnum):
    """A number with a name."""

    HOLD = 3
    MOVE = -1


class Task(str, enum.Enum):
    """A text with a name."""

    FOLD = "fold"
    LONG = "put the white mug on the left plate " * 10


class Colour(enum.Enum):
    """Names of values of other types."""

    RED = 1
    NAMED = "red"
    MIXED = (0.5, ["a", 2])
    NONE = None


class Pair(NamedTuple):
    """A tuple with names."""

    first: Any
    second: Any


class Text(str):
    """As a program's own classes are: with room for attributes."""


class Whole(int):
    pass


class Real(float):
    pass


class Raw(bytes):
    pass


class Items(list[Any]):
    pass


class Entries(dict[Any, Any]):
    pass


class Pixels(np.ndarray[Any, Any]):
    pass


class Weights(torch.Tensor):  # type: ignore[misc]
    pass


LAYOUTS = ("C", "Fortran", "transposed", "backwards", "every other", "broadcast", "read-only", "other byte order")


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> Array:
    """An array of random bits: every value that the dtype has, NaNs with a payload among them."""
    size = math.prod(shape) * dtype.itemsize
    bits = np.random.default_rng(seed).integers(0, 2 if dtype == np.bool_ else 256, size, np.uint8)
    array: Array = np.frombuffer(bits.tobytes(), dtype).reshape(shape).copy()
    return array


def laid_out(array: Array, layout: str) -> Array:
    """The same values, differently in memory, as far as a 0-d array can differ."""
    if array.ndim == 0 and layout in ("backwards", "every other"):
        return array
    every: tuple[slice, ...]
    other = array
    if layout == "Fortran":
        other = np.asfortranarray(array).reshape(array.shape)
    elif layout == "transposed":
        other = np.ascontiguousarray(array.T).reshape(array.shape[::-1]).T
    elif layout == "backwards":
        every = (slice(None, None, -1),) * array.ndim
        other = array[every].copy()[every]
    elif layout == "every other":
        every = (slice(None, None, 2),) * array.ndim
        roomy = np.zeros(tuple(2 * length for length in array.shape), array.dtype)
        roomy[every] = array
        other = roomy[every]
    elif layout == "broadcast":
        other = np.broadcast_to(array, (3, *array.shape))
    elif layout == "read-only":
        other = array.copy()
        other.flags.writeable = False
    elif layout == "other byte order" and array.dtype != BFLOAT16:
        other = array.astype(array.dtype.newbyteorder())
    return other


def tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bits."""
    size = math.prod(shape) * dtype.itemsize
    bits = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, max(size, 1), np.uint8)
    flat = torch.from_numpy(bits)[:size]
    return flat.view(dtype).reshape(shape) if size else torch.zeros(shape, dtype=dtype)


def arrays() -> st.SearchStrategy[Array]:
    return st.builds(
        lambda dtype, shape, seed, layout: laid_out(filled(dtype, shape, seed), layout),
        st.sampled_from(DTYPES),
        st.sampled_from(SHAPES),
        st.integers(0, 1 << 30),
        st.sampled_from(LAYOUTS),
    )


def scalars() -> st.SearchStrategy[Any]:
    return st.builds(
        lambda dtype, seed: filled(dtype, (), seed)[()], st.sampled_from(NUMPY_DTYPES), st.integers(0, 1 << 30)
    )


def tensors() -> st.SearchStrategy[torch.Tensor]:
    return st.builds(tensor, st.sampled_from(TORCH_DTYPES), st.sampled_from(SHAPES), st.integers(0, 1 << 30))


def keys() -> st.SearchStrategy[str | int]:
    return st.one_of(
        st.sampled_from(["", "observation/images/top.left", "state", "0", "é ü", "手", "a.b"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(
            [0, -1, 255, 256, 65535, 65536, 1 << 31, -(1 << 31), -(1 << 31) - 1, (1 << 63) - 1, -(1 << 63)]
        ),
    )


def values() -> st.SearchStrategy[Any]:
    """What is no array."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(1 << 80), 1 << 80),
        st.floats(),
        st.text(max_size=40),
        st.text(min_size=1, max_size=4).map(lambda text: text * 200),
        st.binary(max_size=300),
        st.lists(st.floats(), max_size=12),
        st.lists(st.integers(), max_size=12),
        st.lists(st.booleans(), max_size=12),
        st.lists(st.one_of(st.integers(), st.floats(), st.booleans()), max_size=12),
        scalars(),
    )


def subclassed() -> st.SearchStrategy[Any]:
    """Values of subclasses, which come back as their bases."""
    texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)
    return st.one_of(
        st.sampled_from([*Mode, *Task, *Colour]),
        st.one_of(texts, texts.map(lambda text: text * 20)).map(np.str_),
        st.text(max_size=8).map(Text),
        st.binary(max_size=60).map(np.bytes_),
        st.binary(max_size=60).map(Raw),
        st.integers(-(1 << 80), 1 << 80).map(Whole),
        st.floats().map(Real),
        st.lists(texts, max_size=5).map(lambda texts: np.array(texts, "U")),
        st.lists(texts, min_size=4, max_size=4).map(lambda texts: np.array(texts, "U").reshape(2, 2)),
        st.binary(max_size=5).map(lambda raw: np.array(raw, "S")),
        st.lists(st.floats(), max_size=12).map(Items),
        arrays().map(lambda array: array.view(Pixels)),
        arrays().map(lambda array: array.view(np.recarray)),
        tensors().map(lambda tensor: tensor.as_subclass(Weights)),
        st.sampled_from([torch.Size([2, 3]), torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]),
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers of subclasses."""
    entries = st.dictionaries(st.one_of(keys(), st.sampled_from([Task.FOLD, Text("x")])), inner, max_size=4)
    return st.one_of(
        entries.map(OrderedDict),
        entries.map(_turned),
        entries.map(Entries),
        entries.map(Counter),
        entries.map(lambda entries: defaultdict(list, entries)),
        st.lists(inner, max_size=4).map(Items),
        st.builds(Pair, inner, inner),
    )


def _turned(entries: dict[str | int, Any]) -> OrderedDict[str | int, Any]:
    """In another order than that in which they came."""
    ordered = OrderedDict(entries)
    if ordered:
        ordered.move_to_end(next(iter(ordered)))
    return ordered


def leaves() -> st.SearchStrategy[Any]:
    return st.one_of(arrays(), values(), tensors(), subclassed())


def trees() -> st.SearchStrategy[Any]:
    """Any observation: nested containers, or a bare value."""
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.dictionaries(keys(), inner, max_size=4),
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            containers(inner),
        ),
        max_leaves=8,
    )
