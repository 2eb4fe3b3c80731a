"""Which service a command is for, and how it prints."""

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
    """What shmserve-admin's own options say, before the command or after it."""

    name: str
    runtime_dir: str | None
    as_json: bool

    def connection(self) -> AdminConnection:
        return AdminConnection(self.name, self.runtime_dir)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))


def show(renderable: Any) -> None:
    """Print for people; into a pipe or a file as wide as it needs to be."""
    from rich.console import Console  # only here: a program that asks for JSON does not wait for rich

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with console.capture() as drawn:
        console.print(renderable)
    print(drawn.get(), end="")  # not by rich, which ends the program in its own way where nobody reads


@contextlib.contextmanager
def progress_line(text: Callable[[T], str]) -> Iterator[Callable[[T], None]]:
    """One line that is renewed; `text` words what it is told."""
    if not sys.stderr.isatty():
        yield lambda state: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("") as status:
        yield lambda state: status.update(text(state))


@contextlib.contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar that is told how much of `total` is done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
