"""Target service of a command, and the command's output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from .connection import AdminConnection

T = TypeVar("T")


@dataclass
class Target:
    """The options of shmserve-admin, given before the command or after it."""

    name: str
    runtime_dir: str | None
    as_json: bool

    def connection(self) -> AdminConnection:
        return AdminConnection(self.name, self.runtime_dir)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, indent=2))


def show(renderable: Any) -> None:
    """Print for people; into a pipe or a file with the full width."""
    from rich.console import Console  # only here: JSON output does not wait for rich

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with console.capture() as drawn:
        console.print(renderable)
    print(drawn.get(), end="")  # not by rich, which handles a closed stdout differently


@contextlib.contextmanager
def progress_line(text: Callable[[T], str]) -> Iterator[Callable[[T], None]]:
    """Show one line on a terminal; `text` makes it from each reported state."""
    if not sys.stderr.isatty():
        yield lambda state: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("") as status:
        yield lambda state: status.update(text(state))


@contextlib.contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal; the yielded function takes the part of `total` that is done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
