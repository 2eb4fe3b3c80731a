r"""Texts of a policy's exceptions, for clients and for the log.

A client's text contains no path, address or stack of the daemon. A log text cannot pass for another line of the log.
Reading an exception may run the policy's code, so its text, its type's name and its causes are read here alone.

>>> client_message(ValueError("no joint 7 in /srv/models/arm/joints.json, see <object at 0x7f2b1c0d4e50>"))
('ValueError', 'no joint 7 in <path>, see <object at <address>>')
>>> client_message(ValueError("3 and/or 4 m/s; one\x1b[31m line\nanother"))
('ValueError', '3 and/or 4 m/s; one [31m line another')
>>> print(log_message(ValueError("a line\n12:00:00 and one that looks like the daemon's")))
ValueError: a line
    | 12:00:00 and one that looks like the daemon's
>>> len(log_message(KeyError("x" * 9000)))
2037
"""

from __future__ import annotations

import builtins
import re
import traceback
from typing import Any

import torch

from shmserve.errors import RequestRejected
from shmserve.shortened import shortened

#: Characters of an exception's text that a client sees, and that the log keeps.
_CLIENT_CHARACTERS = 400
#: Characters of a text that are searched for a stack, which is cut off for the client.
_SEARCHED = 1 << 16
_LOG_CHARACTERS = 2000
_NAME = 100
_FRAMES = 16
_CHAIN = 4
#: A path of more than one step; a slash between two words is not a path.
_PATH = re.compile(r"(?<![\w.)/])~?/+[^\s/'\"`,;:()<>\[\]{}|]+(?:/+[^\s/'\"`,;:()<>\[\]{}|]*)+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
#: Where a library's own stack begins inside a message (torch, a traceback that was put into a text).
_STACK = re.compile(
    r"Traceback \(most recent|Exception raised from|frame #0|File \"[^\"]*\", line|/?shmserve\.[0-9a-f]{12}\."
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
#: The beginning of torch's text for an exception in a TorchScript module, and the end of each step of its stack.
_SCRIPT, _SCRIPT_STEP = "The following operation failed in the TorchScript interpreter.", "<--- HERE"
_group: Any = getattr(builtins, "BaseExceptionGroup", ())  # since Python 3.11


class PolicyRaised(RequestRejected):
    """The policy's code raised `__cause__` while the action was read, as in a lazy mapping or in `__array__`."""


def client_message(error: BaseException) -> tuple[str, str]:
    """Return an exception's type and text for its client: no path, address or stack, and shortened in the middle."""
    error = _raised(error)
    if issubclass(type(error), torch.cuda.OutOfMemoryError):
        return "OutOfMemoryError", "the device has not enough free memory for this request"
    text = shortened(text_of(error), _SEARCHED)
    stack = _STACK.search(text)
    if stack is not None:
        text = text[: stack.start()]
    text = shortened(text, 4 * _CLIENT_CHARACTERS)
    text = _ADDRESS.sub("<address>", _PATH.sub("<path>", _CONTROL.sub(" ", text)))
    return name_of(error), shortened(text.rstrip(), _CLIENT_CHARACTERS)


def log_message(error: BaseException, frames: int = _FRAMES) -> str:
    """Return an exception with its stack for the log, its texts indented so that they cannot pass for log lines."""
    error = _raised(error)
    try:
        return "\nraised after\n".join(_chain(error, frames))
    except BaseException:  # noqa: BLE001  sources are read by the loaders of the policy's modules
        return f"{name_of(error)}: {_bounded(_text(error))}"


def name_of(error: BaseException) -> str:
    """Return the name of an exception's type, on one line."""
    # Not type(error).__name__, which a metaclass may override.
    name = type.__dict__["__name__"].__get__(type(error))
    return _CONTROL.sub(" ", str.__str__(name))[:_NAME]


def text_of(error: BaseException) -> str:
    """Return an exception's text; for one of a TorchScript module, the cause, which torch puts after its stack."""
    text = _text(error)
    if not text.startswith(_SCRIPT):
        return text
    lines = text.rstrip().split("\n")
    last = max((place for place, line in enumerate(lines) if line.endswith(_SCRIPT_STEP)), default=len(lines))
    # Indented lines of the source come before the cause.
    behind = next((place for place in range(last + 1, len(lines)) if not lines[place].startswith(" ")), -1)
    return "\n".join(lines[behind:]).strip()


def _raised(error: BaseException) -> BaseException:
    """Return the policy's exception."""
    return error.__cause__ or error if type(error) is PolicyRaised else error


def _chain(error: BaseException, frames: int) -> list[str]:
    parts: list[str] = []
    seen: Any = error
    # The attributes of BaseException, which a class of the policy may override.
    own = BaseException.__dict__
    while seen is not None and len(parts) < _CHAIN:
        stack = "".join(traceback.format_tb(own["__traceback__"].__get__(seen), -frames))
        parts.append(f"{stack}{name_of(seen)}: {_bounded(_text(seen))}{_members(seen)}")
        context = None if own["__suppress_context__"].__get__(seen) else own["__context__"].__get__(seen)
        seen = own["__cause__"].__get__(seen) or context
    return parts


def _members(error: BaseException) -> str:
    """Return the lines of an exception group's members, or an empty text."""
    if not issubclass(type(error), _group):
        return ""
    members = _group.exceptions.__get__(error)[:_CHAIN]
    return "".join(f"\n    member {name_of(member)}: {_bounded(_text(member))}" for member in members)


def _text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))  # a plain str, never a subclass of the policy
    except BaseException:  # noqa: BLE001  a policy's own exception class
        return "(its text cannot be read)"


def _bounded(text: str) -> str:
    if len(text) > _LOG_CHARACTERS:  # the cause stands at the start of a text or, after a stack, at its end
        half = _LOG_CHARACTERS // 2
        text = f"{text[:half]} ... ({len(text) - _LOG_CHARACTERS} characters) ... {text[-half:]}"
    return text.rstrip("\n").replace("\n", "\n    | ")
