"""Rows of figures from samples, and tables of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .asking import Sample

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HEADS = ("requests", "p50", "p90", "p99", "p99.9", "max", "client thread", "client CPU", "server CPU", "idle %")
#: The points of a cumulative distribution, in percent.
QUANTILES = (*range(100), 99.5, 99.9, 99.99, 100)


@dataclass
class Row:
    """Figures of one way with one workload."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    first_ns: int | None = None
    idle_share: float | None = None  # Of one processor, between its turns.
    failed: str | None = None

    def figures(self) -> dict[str, Any]:
        """Return the figures in microseconds; percentiles are of all rounds together, `round_p50_us` shows whether they agree."""
        if self.failed is not None or not self.samples:
            return {"name": self.name, "failed": self.failed or "never had a turn"}
        us = np.concatenate([sample.latency_ns for sample in self.samples]) / 1e3
        requests = len(us)
        figures: dict[str, Any] = {"name": self.name, "requests": requests}
        figures |= {f"p{percentile:g}_us": float(np.percentile(us, percentile)) for percentile in PERCENTILES}
        figures["max_us"] = float(us.max())
        figures["quantiles_us"] = np.percentile(us, QUANTILES).tolist()
        figures["round_p50_us"] = [float(np.median(sample.latency_ns)) / 1e3 for sample in self.samples]
        for key in ("client_thread_ns", "client_process_ns", "server_ns"):
            spent = sum(getattr(sample, key) for sample in self.samples)
            figures[f"{key.removesuffix('_ns')}_cpu_us"] = spent / requests / 1e3
        figures["first_us"] = None if self.first_ns is None else self.first_ns / 1e3
        figures["idle_server_cpu_share"] = self.idle_share
        return figures


def table(workload_name: str, array_bytes: int, rows: Sequence[dict[str, Any]]) -> Table:
    """Format one workload's rows and the failures of ways. A percentile of less than one request is omitted."""
    shown = Table(title=f"{workload_name}: {array_bytes:,} bytes of arrays; all times in microseconds")
    shown.add_column("way", no_wrap=True)
    for head in HEADS:
        shown.add_column(head, justify="right")
    for figures in rows:
        shown.add_row(figures["name"], *cells(figures))
    shown.caption = Text("\n".join(figures["failed"] for figures in rows if "failed" in figures))
    return shown


def cells(figures: dict[str, Any]) -> list[str]:
    """Return the texts of a row, in the order of `HEADS`."""
    if "failed" in figures:
        return ["failed"]
    requests = figures["requests"]
    shown = [
        short(figures[f"p{percentile:g}_us"]) if requests * (100 - percentile) >= 100 else "-"
        for percentile in PERCENTILES
    ]
    shown += [short(figures[key]) for key in ("max_us", "client_thread_cpu_us", "client_process_cpu_us")]
    idle = figures["idle_server_cpu_share"]
    return [
        f"{requests:,}",
        *shown,
        short(figures["server_cpu_us"]),
        "" if idle is None else f"{100 * idle:.1f}",
    ]


def crowd_table(found: dict[str, Any]) -> Table:
    """Format throughput and p99 with several clients, and the open loop."""
    rows = [row for row in found["rows"] if "failed" not in row]
    numbers = list(rows[0]["clients"]) if rows else []
    shown = Table(title=f"{found['workload']}: requests per second (and p99, us) of all clients together")
    shown.add_column("way", no_wrap=True)
    for number in numbers:
        shown.add_column(f"{number} client{'' if number == '1' else 's'}", justify="right")
    shown.add_column(f"open loop, {found['rate_hz']:g}/s: p50, p99", justify="right")
    for row in rows:
        shown.add_row(row["name"], *crowd_cells(row))
    shown.caption = Text("\n".join(row["failed"] for row in found["rows"] if "failed" in row))
    return shown


def crowd_cells(row: dict[str, Any]) -> list[str]:
    """Return the texts of a row: a cell for each number of clients, and the open loop."""
    closed = [f"{one['requests_per_s']:,.0f} ({short(one['p99_us'])})" for one in row["clients"].values()]
    late = row["open_loop"]
    unsent = f", {late['unsent']:,} unsent" if late["unsent"] else ""
    return [*closed, f"{short(late['p50_us'])}, {short(late['p99_us'])}{unsent}"]


def short(us: float) -> str:
    """Format with three or more digits.

    >>> short(6.54), short(150.2), short(18_000.4), short(-236.4)
    ('6.54', '150', '18,000', '-236')
    """
    size = abs(us)
    return f"{us:.2f}" if size < 10 else f"{us:.1f}" if size < 100 else f"{us:,.0f}"
