"""Carried form of a value: what the codec writes for an array, a tensor, a subclass or a number that it does not know.

The walk over a tree (flatten.py, native/python/tree_encoder.c) carries values of exact base types and numpy's arrays by
itself, and asks `carried` about every other one.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .base_values import as_base, is_tensor
from .errors import UnsupportedType
from .metadata_leaf import DTYPES

Array = npt.NDArray[Any]

#: numpy has no bfloat16 dtype; its bytes travel as uint16.
BFLOAT16: Final = "<bf2"

#: Codes of `carried`, as in native/python/tree_encoder.c.
AS_BASE: Final = 0
AS_BFLOAT16: Final = 1
AS_BFLOAT16_SCALAR: Final = 2
AS_LONG: Final = 3
#: An array in GPU memory, with (dtype, shape): the converter copies its bytes, not the walk.
ON_DEVICE: Final = 4

#: Code and value that a walk takes for a value of another type; ON_DEVICE is none of `carried`, but of a client's own.
Convert = Callable[[Any], "tuple[int, Any]"]

NO_VALUES = "a tensor of the meta device has no values to carry; make it on a device that has memory"


class NotCarried(UnsupportedType):
    """A value whose type is carried, but not with its dtype or layout; the text says why, without the place."""


def carried(value: Any) -> tuple[int, Any]:
    """Return (code, value of a base type, array of a dtype in DTYPES, or bytes of a long int) for a value of any type.

    Raises NotCarried, ValueLost, and what the value's own code raises.
    """
    base, _ = as_base(value)
    if is_tensor(base):
        return _tensor(base)
    kind = type(base)
    if kind is np.ndarray or issubclass(kind, np.generic):
        return _array(base, is_array=kind is np.ndarray)
    if kind is int and not -(1 << 63) <= base < 1 << 63:
        return AS_LONG, pickle.encode_long(base)
    return AS_BASE, base


def _array(array: Any, *, is_array: bool) -> tuple[int, Any]:
    dtype = array.dtype
    if dtype.name == "bfloat16":
        return AS_BFLOAT16 if is_array else AS_BFLOAT16_SCALAR, np.asarray(array).view(np.uint16)
    native = dtype.newbyteorder("=")
    if native.str not in DTYPES or dtype.kind in "VOSUmM":
        raise NotCarried(f"an array of dtype {dtype} cannot be carried; use one of {_dtype_names()}")
    return AS_BASE, array if dtype.isnative else array.astype(native)


def _tensor(tensor: Any) -> tuple[int, Array]:
    dtype = tensor_dtype(tensor)
    if dtype not in DTYPES:
        raise NotCarried(f"a tensor of {tensor.dtype} cannot be carried; use one of {_dtype_names()}")
    if tensor.layout is not sys.modules["torch"].strided:
        raise NotCarried(f"a tensor of layout {tensor.layout} cannot be carried; use to_dense()")
    if tensor.is_meta:
        raise NotCarried(NO_VALUES)
    if dtype == BFLOAT16:
        # Not torch.uint16: numpy() of it is newer than some Jetson builds of torch.
        return AS_BFLOAT16, tensor_bytes(tensor.detach().view(sys.modules["torch"].int16)).view(np.uint16)
    return AS_BASE, tensor_bytes(tensor)


#: Wire name of each dtype of torch that was met.
_tensor_dtypes: dict[Any, str] = {}


def tensor_dtype(tensor: Any) -> str:
    """Return the wire name of a tensor's dtype; "" for one that numpy does not have."""
    wire = _tensor_dtypes.get(tensor.dtype)
    if wire is None:
        name = str(tensor.dtype).removeprefix("torch.")
        try:
            wire = BFLOAT16 if name == "bfloat16" else str(np.dtype(name).str)
        except TypeError:
            wire = ""
        _tensor_dtypes[tensor.dtype] = wire
    return wire


def tensor_bytes(tensor: Any) -> Array:
    """Return a tensor as a numpy array on the host, without a copy where it is there already."""
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):  # on a device, wanted for a gradient, or conjugated
        if tensor.is_meta:
            raise NotCarried(NO_VALUES) from None
        return tensor.detach().cpu().resolve_conj().resolve_neg().numpy()  # type: ignore[no-any-return]


def _dtype_names() -> str:
    return ", ".join("bfloat16" if name == BFLOAT16 else np.dtype(name).name for name in DTYPES)
