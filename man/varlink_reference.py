"""Markdown of the varlink interfaces, of the descriptions that the daemon itself gives to a caller."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shmserve.daemon.api import admin, admin_config, admin_monitoring, admin_recording, client

#: In the order of the page, as the daemon puts them together.
DESCRIPTIONS = (
    client.DESCRIPTION,
    admin.DESCRIPTION + admin_config.DESCRIPTION + admin_monitoring.DESCRIPTION + admin_recording.DESCRIPTION,
)


def markdown() -> str:
    """Return both interfaces: a heading for each method, type and error, its comment, and its signature."""
    return "\n\n".join(part for description in DESCRIPTIONS for part in _interface(description)) + "\n"


def _interface(description: str) -> Iterator[str]:
    comment: list[str] = []
    lines = iter(description.splitlines())
    for line in lines:
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
        elif found := re.match(r"(interface|type|method|error) ([\w.]+)", line):
            while line.count("(") != line.count(")"):
                line += f"\n{next(lines)}"
            yield f"{'##' if found[1] == 'interface' else '###'} {found[2]}"
            if found[1] != "interface":
                yield f"```text\n{line}\n```"
            if comment:
                yield " ".join(comment)
            comment = []
