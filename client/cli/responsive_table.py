"""Tables that fit the terminal: the least important columns are left out first, and named; no figure is cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ANY_WIDTH = 10_000
#: Free text is folded to this many characters before a column is left out for it.
_TEXT_WIDTH = 24


class FirstThatFits:
    """The first of several tables that fits, or the last; below it the columns of the first one that it lacks."""

    def __init__(self, tables: Iterable[Callable[[int | None], Table]]) -> None:
        """`tables` make them, the fullest first; their argument is the widest column of free text."""
        self._tables = list(tables)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        chosen = self._chosen(console, options)
        yield chosen
        shown = {column.header for column in chosen.columns}
        names = [str(column.header) for column in self._tables[0](None).columns if column.header not in shown]
        if names:
            yield Text(f"not shown at {options.max_width} columns: {', '.join(names)}", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._chosen(console, options))

    def _chosen(self, console: Console, options: ConsoleOptions) -> Table:
        roomy = options.update(width=_ANY_WIDTH)
        for make in self._tables:
            if Measurement.get(console, roomy, make(_TEXT_WIDTH)).maximum <= options.max_width:
                break
        return make(None)


class RowsThatFit:
    """A table between two other parts of a screen, with as many rows as the terminal has lines for."""

    def __init__(
        self,
        above: RenderableType,
        rows: int,
        table: Callable[[int], RenderableType],
        below: RenderableType,
        *,
        fills_screen: bool,
    ) -> None:
        """`table` makes it with that many of the `rows`; with fewer it has a line more, which says how many are missing.

        With `fills_screen` the parts stay on the screen; else they scroll, and have all rows.
        """
        self._fills_screen = fills_screen
        self._above = above
        self._rows = rows
        self._table = table
        self._below = below

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._rows
        if self._fills_screen:

            def lines(part: RenderableType) -> int:
                return len(console.render_lines(part, options.reset_height(), pad=False))

            missing = lines(self._above) + lines(self._table(shown)) + lines(self._below) - console.height
            if missing > 0:
                shown = max(0, shown - missing)
                if lines(self._table(shown)) + missing > lines(self._table(self._rows)):
                    shown = max(0, shown - 1)  # for the line that says how many are missing
        yield self._above
        yield self._table(shown)
        yield self._below


def without(columns: Collection[str], *left_out: str) -> list[list[str]]:
    """Return lists of columns: all of them, then one more of `left_out` missing each time.

    >>> without(["id", "program", "pid"], "pid", "program")
    [['id', 'program', 'pid'], ['id', 'program'], ['id']]
    """
    return [[name for name in columns if name not in left_out[:count]] for count in range(len(left_out) + 1)]


def bare_table() -> Table:
    """Return a table without columns."""
    return Table(box=None, header_style="dim", padding=(0, 2, 0, 0))


def rows_table(names: Sequence[str], left: Sequence[str], text_width: int | None) -> Table:
    """Return a table with these columns, aligned right but for those in `left`; a program's name is folded to its width."""
    table = bare_table()
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
