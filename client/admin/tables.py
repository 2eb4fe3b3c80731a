"""How every table of `shmserve-admin` looks: columns without lines, their names dim."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def bare_table(title: str | None = None) -> Table:
    """A table without columns yet."""
    return Table(title=title, title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0))


def rows_table(title: str | None, names: Sequence[str], left: Sequence[str], text_width: int | None) -> Table:
    """One with these columns, numbers to the right but for those on the `left`; a program's name is folded to its width."""
    table = bare_table(title)
    for name in names:
        text = name == "program"
        table.add_column(
            name,
            justify="left" if name in left else "right",
            no_wrap=not text,
            overflow="fold",
            max_width=text_width if text else None,
        )
    return table
