"""Turns samples into rows, and rows into a table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .closed_loop import Sample

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass
class Row:
    """What one way of asking did with one workload."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    first_ns: int | None = None
    idle_share: float | None = None  # Of one processor, between its turns.
    failed: str | None = None

    def figures(self) -> dict[str, Any]:
        """Microseconds; the percentiles are of all rounds together, `round_p50_us` tells whether they agree."""
        if self.failed is not None or not self.samples:
            return {"name": self.name, "failed": self.failed or "never had a turn"}
        us = np.concatenate([sample.latency_ns for sample in self.samples]) / 1e3
        requests = len(us)
        figures: dict[str, Any] = {"name": self.name, "requests": requests}
        figures |= {f"p{percentile:g}_us": float(np.percentile(us, percentile)) for percentile in PERCENTILES}
        figures["max_us"] = float(us.max())
        figures["round_p50_us"] = [float(np.median(sample.latency_ns)) / 1e3 for sample in self.samples]
        for key in ("client_thread_ns", "client_process_ns", "server_ns"):
            spent = sum(getattr(sample, key) for sample in self.samples)
            figures[f"{key.removesuffix('_ns')}_cpu_us"] = spent / requests / 1e3
        figures["first_us"] = None if self.first_ns is None else self.first_ns / 1e3
        figures["idle_server_cpu_share"] = self.idle_share
        return figures


def table(workload_name: str, array_bytes: int, rows: Sequence[Row]) -> Table:
    """One workload's rows and, below them, why ways failed. A percentile that rests on no whole request is left out."""
    shown = Table(title=f"{workload_name}: {array_bytes:,} bytes of arrays; all times in microseconds")
    shown.add_column("way", no_wrap=True)
    heads = ("requests", "p50", "p90", "p99", "p99.9", "max", "client thread", "client CPU", "server CPU", "idle %")
    for head in heads:
        shown.add_column(head, justify="right")
    failures: list[str] = []
    for row in rows:
        figures = row.figures()
        if "failed" in figures:
            shown.add_row(row.name, "failed")
            failures.append(figures["failed"])
            continue
        requests = figures["requests"]
        cells = [
            short(figures[f"p{percentile:g}_us"]) if requests * (100 - percentile) >= 100 else "-"
            for percentile in PERCENTILES
        ]
        cells += [short(figures[key]) for key in ("max_us", "client_thread_cpu_us", "client_process_cpu_us")]
        cells.append(short(figures["server_cpu_us"]))
        idle = figures["idle_server_cpu_share"]
        shown.add_row(row.name, f"{requests:,}", *cells, "" if idle is None else f"{100 * idle:.1f}")
    shown.caption = Text("\n".join(failures))
    return shown


def short(us: float) -> str:
    """Three or more digits.

    >>> short(6.54), short(150.2), short(18_000.4)
    ('6.54', '150', '18,000')
    """
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"
