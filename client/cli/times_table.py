"""Table of durations, all in one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from .quantities import time_unit
from .responsive_table import bare_table


def times_table(
    rows: Mapping[str, Mapping[str, float] | None], columns: Sequence[str], bold: str | None = None
) -> Table:
    """Return a line for each summary in microseconds; the one named `bold` stands out, and a summary that is None is left out."""
    found = {name: summary for name, summary in rows.items() if summary is not None}
    unit = time_unit(summary[column] for summary in found.values() for column in columns)
    table = bare_table()
    table.add_column(f"time, {unit.name}")
    for column in columns:
        table.add_column(column, justify="right")
    for name, summary in found.items():
        figures = (unit.of(summary[column]) for column in columns)
        table.add_row(name.replace("_", " "), *figures, style="bold" if name == bold else "")
    return table
