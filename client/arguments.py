"""Checks of the arguments that callers pass: each returns the value, or raises InvalidArgument.

>>> seconds("timeout", 0.5), seconds("timeout", 3)
(0.5, 3.0)
>>> seconds("timeout", float("nan"))
Traceback (most recent call last):
shmserve.errors.InvalidArgument: timeout = nan seconds: a time here is 0 to 86400 seconds
>>> seconds("timeout", "3")
Traceback (most recent call last):
shmserve.errors.InvalidArgument: timeout = '3': a number is needed, not str
"""

from __future__ import annotations

import operator
import os
import re
import time
from typing import Any

from shmserve.directories import ServicePlace, service_place
from shmserve.errors import InvalidArgument

LONGEST_S = 86_400.0
#: A camera may date a frame a little ahead. A time further ahead comes from another clock.
_LONGEST_LEAD_S = 60.0
_HIGHEST_RATE = 100_000.0
_ADDRESS = re.compile(r"(?P<url>\w+://)|(?P<port>[^/]*:\d+/?$)|(?P<path>.*[/\\])")


def seconds(name: str, value: Any, least: float = 0.0, most: float = LONGEST_S) -> float:
    """A time from `least` to `most`; neither NaN nor infinity, which would overflow a deadline, are one."""
    if type(value) is not float:
        value = number(name, value)
    if not least <= value <= most:
        raise InvalidArgument(f"{name} = {value!r} seconds: a time here is {least:.10g} to {most:.10g} seconds")
    return value  # type: ignore[no-any-return]


def capture_seconds(capture_time: Any) -> float:
    """A moment of time.monotonic() in the past."""
    found = number("capture_time", capture_time)
    ahead_s = found - time.monotonic()
    if not ahead_s <= _LONGEST_LEAD_S:
        raise InvalidArgument(
            f"capture_time = {found!r} is {ahead_s:.6g} s in the future: it is time.monotonic() when the "
            "observation was captured, not time.time()"
        )
    if found < 0:
        raise InvalidArgument(f"capture_time = {found!r}: time.monotonic() is never negative")
    return found


def rate_hz(value: Any) -> float:
    """Requests a second, as a robot's loop has them."""
    found = number("rate", value)
    if not 0 < found <= _HIGHEST_RATE:
        raise InvalidArgument(
            f"rate = {value!r}: give the requests a second of your control loop, above 0 and at most {_HIGHEST_RATE:g}, or "
            "None, and the engine learns it"
        )
    return found


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An integer from `least` to `most`."""
    try:
        found = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} = {value!r}: a whole number is needed, not {type(value).__name__}") from None
    if found < least or (most is not None and found > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise InvalidArgument(f"{name} = {found}: the number must be {allowed}")
    return found


def place_of(name: Any, runtime_dir: str | os.PathLike[str] | None) -> ServicePlace:
    """The place of the sockets of service `name`."""
    if not isinstance(name, str):
        raise InvalidArgument(f"service name {name!r}: a str is needed, not {type(name).__name__}")
    address = _ADDRESS.match(name)
    if address is not None:
        kind = {"url": "a URL", "port": "a host and port", "path": "a path"}[str(address.lastgroup)]
        raise InvalidArgument(
            f"service name {name!r} is {kind}: give the name of a service of this host, for example 'default' "
            "(1 to 64 letters, digits, '_', '.' or '-'); runtime_dir= says where its sockets are"
        )
    try:
        return service_place(name, runtime_dir)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(str(error)) from error


def number(name: str, value: Any) -> float:
    """Return any kind of number as a float, which may be NaN."""
    # A text has no __float__, though float() takes it; a bool is not a time.
    if isinstance(value, bool) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise InvalidArgument(f"{name} = {value!r}: a number is needed, not {type(value).__name__}")
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise InvalidArgument(f"{name} = {value!r}: a number is needed: {error}") from error
