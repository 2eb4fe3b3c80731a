"""Figure of a benchmark, with its floor."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.peers.leftovers import sweep
from bench.peers.machine import Bystanders, facts
from bench.peers.peer import terminate_by_exception


@dataclass(frozen=True)
class Figure:
    """Figure: `name` is stable and for programs, `what` is for readers. The floor is measured in the same run."""

    name: str
    what: str
    value: float
    unit: str  # "us", "ms", "%", "x" for a ratio, "" for a count
    floor: float | None = None
    floor_what: str = ""

    def text(self) -> str:
        return amount(self.value, self.unit)

    def floor_text(self) -> str:
        return "" if self.floor is None else f"{amount(self.floor, self.unit)} ({self.floor_what})"


def amount(value: float, unit: str) -> str:
    """Format a number with three digits and its unit.

    >>> amount(0.99871, "x"), amount(123.4, "us"), amount(0.04, "%"), amount(0, ""), amount(4321.0, "us")
    ('0.999 x', '123 us', '0.040 %', '0', '4,321 us')
    """
    size = abs(value)
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f} {unit}".rstrip()


def main(
    title: str,
    measure: Callable[..., list[Figure]],
    arguments: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
) -> None:
    """Run one benchmark alone and print its figures; `measure` gets the seconds, and each of its `flags` by name."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured for each way; default 2")
    for flag, text in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    options = vars(parser.parse_args(arguments))
    seconds = options.pop("seconds")
    terminate_by_exception()
    sweep()
    bystanders = Bystanders()
    found = {"title": title, "figures": [asdict(figure) for figure in measure(seconds, **options)]}
    console = Console(width=140, highlight=False)
    console.print(figures_table(found))
    machine, shares = facts(), bystanders.shares()
    console.print(
        f"{machine['cpu']}, {machine['cpus']} processors; other programs had {100 * shares['other_cpu_share']:.0f} % of "
        f"them meanwhile, the hypervisor {100 * shares['steal_share']:.0f} %"
    )


def figures_table(found: dict[str, Any]) -> Table:
    """Format the figures of one benchmark, or the reason of its failure, as stored in the results."""
    table = Table("what", "reached", "floor, in the same run", title=found["title"])
    for figure in (Figure(**fields) for fields in found.get("figures", ())):
        table.add_row(figure.what, figure.text(), figure.floor_text())
    table.caption = Text(found.get("not_measured") or found.get("failed") or "")
    return table


class NotMeasured(Exception):
    """Error if this machine cannot measure it; the text has the reason and the remedy."""
