"""Table of the settings in force."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shmserve.toml_value import toml_value

from .responsive_table import FirstThatFits, bare_table, without


def render(settings: list[dict[str, Any]]) -> RenderableType:
    """Return a line for each setting; a narrow terminal keeps the value and drops the origin."""
    rows = [_cells(setting) for setting in settings]
    return FirstThatFits(
        partial(_table, names, rows) for names in without(("setting", "value", "from", "change"), "from", "change")
    )


def _cells(setting: dict[str, Any]) -> dict[str, Text]:
    waiting = setting["waiting"]
    note = Text("" if waiting is None else f"{words(waiting)} after a restart", style="yellow")
    if waiting is None and setting["reloadable"]:
        note = Text("live", style="dim")
    chosen = "" if setting["origin"] == "default" else "bold"
    return {
        "setting": Text(setting["key"]),
        "value": Text(words(setting["value"]), style=chosen),
        "from": Text(setting["origin"]),
        "change": note,
    }


def _table(names: Sequence[str], rows: Sequence[dict[str, Text]], text_width: int | None) -> Table:
    table = bare_table()
    for name in names:
        text = name in ("value", "from")
        table.add_column(name, no_wrap=not text, overflow="fold", max_width=text_width if text else None)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def words(value: Any) -> str:
    """Return a value as a configuration file has it; "-" for None.

    >>> words(None), words("cpu"), words(5.0)
    ('-', '"cpu"', '5.0')
    """
    return "-" if value is None else toml_value(value)
