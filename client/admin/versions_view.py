"""The kept model versions as a table for people."""

from __future__ import annotations

import time
from typing import Any

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text


def render(versions: list[dict[str, Any]]) -> RenderableType:
    """One line a version, the last sent first."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("version", "", "sent"):
        table.add_column(name, no_wrap=True)
    released = any(version["release"] for version in versions)
    if released:
        table.add_column("release", justify="right")
    table.add_column("size", justify="right")
    table.add_column("served", justify="right")
    for name in ("device", "source", "note"):
        table.add_column(name)
    for version in versions:
        sent = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["added_s"]))
        note = Text(version["note"])
        for fact in ("taken_back", "refused"):
            if version[fact]:
                note = Text(f"{fact.replace('_', ' ')}: {version[fact]}", style="red")
        table.add_row(
            version["version"],
            _role(version),
            sent,
            *([str(version["release"] or "-")] if released else []),
            decimal(version["size_bytes"]) if version["size_bytes"] is not None else "-",
            str(version["served"]),
            version["device"] or "-",
            Text(version["source"]),
            note,
        )
    return table


def _role(version: dict[str, Any]) -> Text:
    if version["serving"]:
        return Text("serving", style="bold green")
    if version["standby"]:
        return Text("standby", style="green")
    if version["previous"]:
        return Text("previous")
    return Text("")
