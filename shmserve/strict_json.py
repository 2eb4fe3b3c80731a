"""JSON that says one thing only: UTF-8, no key twice, 64-bit integers, finite numbers, whole characters, bounded depth.

>>> decode_json_object(b'{"a": 1, "a": 2}')
Traceback (most recent call last):
    ...
shmserve.strict_json.StrictJsonError: has an object with the same key twice
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DEPTH_LIMIT = 32  # objects and arrays inside one another; json itself goes on to the interpreter's recursion limit


class StrictJsonError(ValueError):
    """Says what the text does wrong, as the end of a sentence, and quotes nothing of it."""


def encode_json(value: object) -> bytes:
    """Without spaces. Raises TypeError and ValueError for what JSON has no word for."""
    # ensure_ascii=False: text that was received fits when it is sent back, because no character grows.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def decode_json_object(data: bytes) -> dict[str, Any]:
    """Raises StrictJsonError, and nothing else."""
    if _depth(data) > DEPTH_LIMIT:
        raise StrictJsonError(f"is nested deeper than {DEPTH_LIMIT} levels")
    try:
        # Decoded here, because json.loads() of bytes would guess at UTF-16 and UTF-32.
        value = _DECODER.decode(data.decode())
        if b"\\u" in data:  # the one way for half of a surrogate pair to get in
            encode_json(value)
    except StrictJsonError:
        raise
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise StrictJsonError("holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"is not JSON at character {error.pos}") from None
    if type(value) is not dict:
        raise StrictJsonError("is JSON, but no object")
    return value


def _depth(data: bytes) -> int:
    r"""How deep a decoder can get in `data`, counted before one tries: how much depth json bears, and whether it ends
    in a RecursionError or a crash, depends on the Python version and on the thread's stack.

    >>> _depth(b'{"[[[\\"[[": [{}, [], "\\\\"]}')
    3
    """
    outside_strings = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    depth = deepest = 0
    for byte in outside_strings.translate(None, delete=_NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError("has an object with the same key twice")
    return members


def _integer(digits: str) -> int:
    # 64 bits, signed or not; the length first, because int() of many digits takes quadratic time.
    value = int(digits) if len(digits) <= 20 else None
    if value is None or not -(2**63) <= value < 2**64:
        raise StrictJsonError("has an integer that does not fit 64 bits")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJsonError("has a number that is too large for a double")
    return value


def _constant(name: str) -> NoReturn:
    raise StrictJsonError("has a number that is not finite, which JSON has no word for")


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
