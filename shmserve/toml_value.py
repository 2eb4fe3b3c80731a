"""A value as TOML writes it, for what people read and may put into a file again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath


def toml_value(value: object) -> str:
    """The text of `value`; of what TOML has no word for, Python's.

    >>> toml_value(True), toml_value(0.5), toml_value('a "b"'), toml_value([1, 2]), toml_value(("x",))
    ('true', '0.5', '"a \\\\"b\\\\""', '[1, 2]', '["x"]')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, PurePath)):  # TOML's basic strings are JSON's
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return repr(value) if isinstance(value, (dict, bytes)) else str(value)
