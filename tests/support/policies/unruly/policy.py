"""Raises what no server expects, where no server expects it: `do` says where, `what` says what."""

import asyncio
import concurrent.futures
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class PanicException(BaseException):
    """As a library written in Rust raises it."""


class TextExits(Exception):
    def __str__(self) -> str:
        raise SystemExit("from its text")


class TextIsNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307


class _Shouted(str):
    def __getitem__(self, index: Any) -> str:
        raise SystemExit("from a part of its text")


class TextIsShouted(Exception):
    def __str__(self) -> str:
        return _Shouted("a text of a class of its own")


class _Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit("from its name")


class NameExits(Exception, metaclass=_Named):
    pass


class PartsExit(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit("from its cause")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit("from its class")

    def __setattr__(self, name: str, value: Any) -> None:
        raise SystemExit("from an attribute of it")

    def with_traceback(self, traceback: Any) -> Any:
        raise SystemExit("from its traceback")


def _endless(depth: int = 0) -> int:
    return _endless(depth + 1) + 1


def _in_a_thread() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(_panic).result()


def _panic() -> None:
    raise PanicException("index out of bounds: the len is 5 but the index is 6")


def _group() -> None:
    kind: Any = getattr(__import__("builtins"), "BaseExceptionGroup", None)
    if kind is None:  # before Python 3.11
        raise KeyboardInterrupt("several")
    raise kind("several", [KeyboardInterrupt("one"), SystemExit("two")])


_KINDS: dict[str, Any] = {
    "panic": PanicException("index out of bounds: the len is 5 but the index is 6"),
    "cancelled": asyncio.CancelledError("enough"),
    "interrupt": KeyboardInterrupt("enough"),
    "generator exit": GeneratorExit("enough"),
    "exit": SystemExit("enough"),
    "stop": StopIteration("enough"),
    "memory": MemoryError("enough"),
    "text exits": TextExits(),
    "text is none": TextIsNone(),
    "text is shouted": TextIsShouted(),
    "text is long": KeyboardInterrupt("long " * 2_000_000),
    "name exits": NameExits("enough"),
    "name is long": type("a\nb" * 1000, (BaseException,), {})("enough"),
    "parts exit": PartsExit("enough"),
    "recursion": _endless,
    "thread": _in_a_thread,
    "group": _group,
    "c++": lambda: torch.zeros(2) @ torch.zeros(3),
}


def _raise(what: str) -> None:
    kind = _KINDS[what]
    if not isinstance(kind, BaseException) and callable(kind):
        kind()
    else:
        raise kind


class LateMapping(OrderedDict[str, Any]):
    """Evaluates its entries when they are asked for."""

    def keys(self) -> Any:
        _panic()

    def items(self) -> Any:
        _panic()

    def __iter__(self) -> Any:
        _panic()

    def __reduce__(self) -> Any:
        _panic()


class LateTensor(torch.Tensor):  # type: ignore[misc]
    def numpy(self, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt("the tensor is not computed yet")


class LateNumber:
    def __reduce__(self) -> Any:
        sys.exit("no pickle of it")


class Collected:
    def __del__(self) -> None:
        sys.exit("in a destructor")


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self._resets: list[str] = []

    def example_observation(self) -> Any:
        return {"do": "", "what": ""}

    def infer(self, observation: dict[str, Any]) -> Any:
        do, what = observation["do"], observation["what"]
        if do == "raise":
            _raise(what)
        elif do == "raise at reset":
            self._resets.append(what)
        elif do == "give":
            return {
                "mapping": LateMapping(x=1),
                "tensor": {"x": torch.zeros(3).as_subclass(LateTensor)},
                "object": {"x": LateNumber()},
            }[what]
        elif do == "collect":
            Collected()
        elif do == "default device":
            torch.set_default_device("meta")
            torch.set_default_dtype(torch.float64)
        return {"engine": os.getpid()}

    def reset(self, client_id: int) -> None:
        if self._resets:
            _raise(self._resets.pop())
