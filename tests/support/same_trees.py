"""Comparison of what came back with what was sent, to the bit; without packages that only the makers of trees need."""

from __future__ import annotations

import enum
import itertools
import struct
from typing import Any

import numpy as np
import torch


def expected(sent: Any) -> Any:
    """`sent` as it has to come back: as its base type, tensors as arrays, arrays in the machine's byte order."""
    if isinstance(sent, str):
        return str.__str__(sent)
    if isinstance(sent, bytes):
        return b"".join([sent])
    if isinstance(sent, int):
        return sent if isinstance(sent, bool) else int.__int__(sent)
    if isinstance(sent, float) and not isinstance(sent, np.generic):
        return float.__float__(sent)
    if isinstance(sent, enum.Enum):
        return expected(sent.value)
    if isinstance(sent, torch.Tensor):
        sent = sent.detach().as_subclass(torch.Tensor)
        if sent.dtype == torch.bfloat16:
            import ml_dtypes  # on demand: a bare machine with a GPU may lack it

            return sent.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return sent.numpy()
    if isinstance(sent, np.ndarray):
        plain = np.asarray(sent)
        return plain.tolist() if plain.dtype.kind in "US" else plain.astype(plain.dtype.newbyteorder("="))
    if isinstance(sent, np.generic):
        return sent.astype(sent.dtype.newbyteorder("="))
    if isinstance(sent, dict):
        return {expected(key): expected(value) for key, value in sent.items()}
    if isinstance(sent, list):
        return [expected(value) for value in sent]
    if isinstance(sent, tuple):
        return tuple(expected(value) for value in sent)
    return sent


def assert_same(found: Any, sent: Any, path: str = "tree") -> None:
    """`found` is `sent` to the bit: types, order of keys, dtypes, shapes, values; its arrays can be written."""
    wanted = expected(sent)
    for place, one, other in _pairs(found, wanted, path):
        assert type(one) is type(other), f"{place}: {type(one)} for {type(other)}"
        if isinstance(other, (np.ndarray, np.generic)):
            assert one.dtype == other.dtype and one.dtype.isnative, f"{place}: {one.dtype} for {other.dtype}"
            assert one.shape == other.shape, f"{place}: {one.shape} for {other.shape}"
            assert one.tobytes() == other.tobytes(), f"{place}: {one} for {other}"
            if isinstance(other, np.ndarray):
                assert one.flags.writeable and one.flags.c_contiguous, f"{place}: {one.flags}"
        elif isinstance(other, dict):
            assert list(one) == list(other), f"{place}: keys {list(one)} for {list(other)}"
        elif isinstance(other, (list, tuple)):
            assert len(one) == len(other), f"{place}: {one} for {other}"
        elif isinstance(other, float):
            assert struct.pack("d", one) == struct.pack("d", other), f"{place}: {one} for {other}"
        else:
            assert one == other, f"{place}: {one!r} for {other!r}"


def _pairs(one: Any, other: Any, path: str) -> Any:
    yield path, one, other
    if isinstance(other, dict):
        inner = zip(other, one.values(), other.values(), strict=True)
    elif isinstance(other, (list, tuple)):
        inner = zip(itertools.count(), one, other)
    else:
        return
    for key, left, right in inner:
        yield from _pairs(left, right, f"{path}[{key!r}]")
