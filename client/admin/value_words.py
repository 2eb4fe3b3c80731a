"""A setting's value as people read it."""

from __future__ import annotations

from typing import Any

from shmserve.toml_value import toml_value


def words(value: Any) -> str:
    """As it stands in a configuration file; "-" for none.

    >>> words(None), words("cpu"), words(5.0)
    ('-', '"cpu"', '5.0')
    """
    return "-" if value is None else toml_value(value)
