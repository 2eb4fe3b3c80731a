"""Table of the stored model versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .responsive_table import FirstThatFits, bare_table, without


def render(versions: list[dict[str, Any]]) -> RenderableType:
    """Return a line for each version, the latest first."""
    rows = [_cells(version) for version in versions]
    columns = ["version", "", "sent", "release", "size (MB)", "served", "device", "source", "note"]
    if not any(version["release"] for version in versions):
        columns.remove("release")
    return FirstThatFits(
        partial(_table, names, rows)
        for names in without(columns, "size (MB)", "device", "release", "sent", "served", "source")
    )


def _cells(version: dict[str, Any]) -> dict[str, str | Text]:
    note = Text(version["note"])
    for fact in ("rolled_back", "refused"):
        if version[fact]:
            note = Text(f"{fact.replace('_', ' ')}: {version[fact]}", style="red")
    return {
        "version": version["version"],
        "": _role(version),
        "sent": time.strftime("%Y-%m-%d %H:%M", time.localtime(version["added_s"])),
        "release": str(version["release"] or "-"),
        "size (MB)": f"{version['size_bytes'] / 1e6:,.3f}" if version["size_bytes"] is not None else "-",
        "served": f"{version['served']:,}",
        "device": version["device"] or "-",
        "source": Text(version["source"]),
        "note": note,
    }


def _table(names: Sequence[str], rows: Sequence[dict[str, str | Text]], text_width: int | None) -> Table:
    table = bare_table()
    for name in names:
        number, text = name in ("release", "size (MB)", "served"), name in ("source", "note")
        table.add_column(
            name,
            justify="right" if number else "left",
            no_wrap=not text,
            overflow="fold",
            max_width=text_width if text else None,
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _role(version: dict[str, Any]) -> Text:
    if version["serving"]:
        return Text("serving", style="bold green")
    if version["standby"]:
        return Text("standby", style="green")
    if version["previous"]:
        return Text("previous")
    return Text("")
