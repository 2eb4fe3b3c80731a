"""Table of figures in both READMEs: each page keeps its own row names, the numbers come from the results."""

from __future__ import annotations

from bench.results import Document

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
WORKLOADS = ("tiny", "vga", "fullhd")
#: The way of each row, in the order of the table.
WAYS = (
    "flask-pickle",
    "lerobot-grpc",
    "openpi-websocket",
    "gr00t-zmq-tcp",
    "unix-socket-pickle5",
    "iceoryx2-event",
    "shmserve",
    "shmserve-in-place",
    "shmserve-sealed",
    "Python, 1 copy, spin",
    "C, 1 copy, sleep",
    "in-process",
)


def with_figures(text: str, document: Document) -> str:
    """Return the page with the numbers of its table replaced; raise ValueError if it has no such table."""
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    lines = table.split("\n")
    rows = [number for number, line in enumerate(lines) if line.startswith("|")][2:]
    if not begin or not end or len(rows) != len(WAYS):
        raise ValueError(f"the page has no table of {len(WAYS)} rows between {BEGIN} and {END}")
    for number, way in zip(rows, WAYS, strict=True):
        lines[number] = row(lines[number], [_median_us(document, workload, way) for workload in WORKLOADS])
    return before + begin + "\n".join(lines) + end + after


def row(line: str, medians_us: list[float]) -> str:
    """Format one line with these numbers, bold if its name is.

    >>> row("| **shmserve** | 1 | 2 | 3 |", [52.4, 125.0, 1000.2])
    '| **shmserve** | **52** | **125** | **1,000** |'
    """
    name = line.split("|")[1].strip()
    bold = "**" if name.startswith("**") else ""
    return f"| {' | '.join([name, *(f'{bold}{median:,.0f}{bold}' for median in medians_us)])} |"


def _median_us(document: Document, workload: str, way: str) -> float:
    rows = document["closed_loop"][workload]["rows"]
    found: float = next(row["p50_us"] for row in rows if row["name"] == way)
    return found
