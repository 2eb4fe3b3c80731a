"""The two programs as man pages and site show them: their click commands, their exit statuses, and Markdown of their help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from shmserve.client.cli.main import main as admin
from shmserve.daemon.main import main as daemon

PROGRAMS: dict[str, click.Command] = {"shmserve-admin": admin, "shmserved": daemon}
EXIT_STATUS = {
    "shmserve-admin": "0 done, 1 refused or failed, 2 usage, 3 no daemon, 4 not ready yet, 5 cut off; 130 after Ctrl-C, 141 if stdout was closed early.",
    "shmserved": "0 stopped on request, 1 the service failed, 2 usage, 78 a mistake in the configuration.",
}


def markdown() -> str:
    """Return the reference of every command: a heading, the usage, the help, and a table of the options."""
    parts: list[str] = []
    for name, command in PROGRAMS.items():
        parts += _command(command, click.Context(command, info_name=name))
        parts.append(f"Exit status: {EXIT_STATUS[name]}")
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    level = "##" if context.parent is None else "###"
    yield f"{level} {context.command_path}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    yield from _help(command.help or "")
    records = [each.get_help_record(context) for each in command.params]
    rows = [f"| `{_cell(record[0])}` | {_cell(_text(record[1]))} |" for record in records if record and record[1]]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def _help(text: str) -> Iterator[str]:
    """The paragraphs of a help text; one after a line with a backspace keeps its lines, as examples do."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```sh\n{paragraph[2:]}\n```"
        elif paragraph.strip():
            yield _text(paragraph)


def _text(words: str) -> str:
    return re.sub(r"([<*_])", r"\\\1", words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
