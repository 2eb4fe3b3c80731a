r"""What is said of a failed request: to its client nothing of the daemon, to the log nothing raw of the client.

>>> told(ValueError("no joint 7 in /srv/models/arm/joints.json, see <object at 0x7f2b1c0d4e50>"))
('ValueError', 'no joint 7 in <path>, see <object at <address>>')
>>> told(ValueError("3 and/or 4 m/s; one\x1b[31m line\nanother"))
('ValueError', '3 and/or 4 m/s; one [31m line another')
>>> logged(ValueError("a line\n12:00:00 and one that looks like the daemon's")), len(logged(KeyError("x" * 9000)))
("ValueError: a line\\n12:00:00 and one that looks like the daemon's", 1035)
"""

from __future__ import annotations

import re
import traceback

import torch

#: Characters of an exception's text that a client sees, and that the log keeps.
_TOLD = 400
_LOGGED = 1000
_FRAMES = 16
_CHAIN = 4
#: A path of more than one step; what only divides two words is none.
_PATH = re.compile(r"(?<![\w.)/])~?/+[^\s/'\"`,;:()<>\[\]{}|]+(?:/+[^\s/'\"`,;:()<>\[\]{}|]*)+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
#: Where a library's own stack begins inside a message (torch, a traceback that was put into a text).
_STACK = re.compile(
    r"Traceback \(most recent|Exception raised from|frame #0|File \"[^\"]*\", line|/?shmserve\.[0-9a-f]{12}\."
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def told(error: BaseException) -> tuple[str, str]:
    """An exception's type and the start of its text as its client may see them: no path, address or stack."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "OutOfMemoryError", "the device has not enough free memory for this request"
    text = _text(error)[: 4 * _TOLD]
    stack = _STACK.search(text)
    if stack is not None:
        text = text[: stack.start()]
    text = _ADDRESS.sub("<address>", _PATH.sub("<path>", _CONTROL.sub(" ", text)))
    return type(error).__name__, text[:_TOLD].rstrip()


def logged(error: BaseException) -> str:
    """An exception and where it came from, for the log: the code's own lines, and texts that cannot pass for lines."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < _CHAIN:
        stack = "".join(traceback.format_tb(seen.__traceback__, -_FRAMES))
        parts.append(f"{stack}{type(seen).__name__}: {_bounded(_text(seen))}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\nwhich came after\n".join(parts)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  a model's own exception class
        return "(its text cannot be had)"


def _bounded(text: str) -> str:
    shown = repr(text[:_LOGGED])[1:-1]
    return shown if len(text) <= _LOGGED else f"{shown} ({len(text)} characters in all)"
