"""Which service a command is for, and how it prints."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from .connection import AdminConnection


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
