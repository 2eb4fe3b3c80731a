"""shmserve-admin doctor: the findings as a table or as JSON, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..exit_status import REFUSED, with_exit_status
from ..target import Target, print_json, show
from .finding import Finding, Level

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@click.command()
@click.pass_obj
@with_exit_status
def doctor(target: Target) -> None:
    """Check this machine, its limits and the installation for a service, with the remedy for what is wrong.

    It changes nothing and starts nothing, and works without a daemon. With one, it checks the daemon's own limits and settings: root and
    the daemon's user see all of them.

    Exit status: 0 no problem, perhaps warnings; 1 at least one problem.

    \b
    shmserve-admin doctor
    sudo shmserve-admin --name arm doctor
    shmserve-admin doctor --json
    """
    from .examination import examine

    findings = examine(target.name, target.runtime_dir)
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if target.as_json:
        print_json(to_json(target.name, findings))
    else:
        show(render(findings))
        print(summary(findings))
    if problems:
        sys.stdout.flush()
        sys.exit(REFUSED)


def to_json(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the document for programs."""
    counts = {
        f"{level.value}s": sum(each.level is level for each in findings) for level in (Level.PROBLEM, Level.WARNING)
    }
    return {"service": name, **counts, "findings": [finding.to_json() for finding in findings]}


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line.

    >>> from .finding import ok
    >>> summary([ok("clock", "tsc")])
    '1 check: 0 problems, 0 warnings'
    """
    problems, warnings = (sum(each.level is level for each in findings) for level in (Level.PROBLEM, Level.WARNING))
    return f"{_count(len(findings), 'check')}: {_count(problems, 'problem')}, {_count(warnings, 'warning')}"


def render(findings: Sequence[Finding]) -> RenderableType:
    """Return a line for each finding, and its remedy below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(Text(finding.level.value, _STYLES[finding.level]), Text(finding.check), Text(finding.found))
        if finding.remedy:
            table.add_row("", "", Text(f"remedy: {finding.remedy}", "dim"))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
