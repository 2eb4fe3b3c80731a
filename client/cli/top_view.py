"""Live view of a service: rates of each client and latencies of each stage between two samples, and their history."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .responsive_table import FirstThatFits, rows_table, without
from .status_view import duration, micro, remote_text

_HISTORY = 40
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Sample:
    """Status and latency counts at one moment (time.monotonic() seconds)."""

    at_s: float
    status: dict[str, Any]
    bounds_us: Sequence[float]
    stages: dict[str, Sequence[int]]


def percentile_us(bounds_us: Sequence[float], counts: Sequence[int], percent: float) -> float | None:
    """Return the duration that `percent` of the counted requests stayed below; None without any.

    >>> percentile_us([0, 10, 20, 40], [0, 2, 2], 50), percentile_us([0, 10, 20, 40], [0, 2, 2], 75)
    (20.0, 30.0)
    """
    total = sum(counts)
    if not total:
        return None
    rank, seen = total * percent / 100, 0
    for bucket, count in enumerate(counts):
        if count and seen + count >= rank:
            return bounds_us[bucket] + (bounds_us[bucket + 1] - bounds_us[bucket]) * (rank - seen) / count
        seen += count
    return float(bounds_us[-1])


def sparkline(values: Sequence[float]) -> str:
    """Return the values as a row of bars, the highest of full height.

    >>> sparkline([0, 1, 2, 4])
    ' ▂▄█'
    """
    highest = max(values, default=0.0)
    if not highest:
        return " " * len(values)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in values)


class TopView:
    """Draws the latest sample against the one before."""

    def __init__(self) -> None:
        self._before: Sample | None = None
        self._rates: dict[Any, deque[float]] = {}
        self._latencies: dict[str, deque[float]] = {}

    def render(self, sample: Sample) -> RenderableType:
        """Return one screen."""
        before, self._before = self._before, sample
        seconds = sample.at_s - before.at_s if before is not None else 0.0
        return Group(
            self._head(sample),
            self._stages(before, sample),
            self._clients(before, sample, seconds),
            _hint(before is None),
        )

    def _head(self, sample: Sample) -> RenderableType:
        status = sample.status
        model, engine = status["model"], status["engine"]
        served = "no model" if model is None else f"{model['name']} {model['version']} on {model['device']}"
        text = Text(f"{status['service']}  ", style="bold")
        text.append(status["state"], style="green" if status["state"] == "ready" else "yellow")
        text.append(f"  {served}  up {duration(status['uptime_s'])}")
        if engine is not None and engine["restarts"]:
            text.append(f"  {engine['restarts']} restarts", style="yellow")
        if model is not None and (remote := model.get("remote")) is not None:
            style = "green" if remote["source"] == "remote" else "yellow"
            text.append(f"\n{remote_text(remote, status['remote'])}", style=style)
        return text

    def _stages(self, before: Sample | None, sample: Sample) -> RenderableType:
        rows: list[dict[str, str | Text]] = []
        for stage, counts in sample.stages.items():
            earlier = before.stages.get(stage, ()) if before is not None else counts
            happened = [now - then for now, then in zip(counts, earlier, strict=False)]
            found = [percentile_us(sample.bounds_us, happened, percent) for percent in (50, 90, 99)]
            history = self._latencies.setdefault(stage, deque(maxlen=_HISTORY))
            history.append(found[0] or 0.0)
            quantiles = {name: micro(value) for name, value in zip(("p50", "p90", "p99"), found, strict=True)}
            rows.append(
                {"stage": stage, "requests": str(sum(happened)), **quantiles, "p50 before": sparkline([*history])}
            )
        columns = ("stage", "requests", "p50", "p90", "p99", "p50 before")
        return _fitting(rows, columns, "p50 before", "requests", "p90")

    def _clients(self, before: Sample | None, sample: Sample, seconds: float) -> RenderableType:
        then = {(client["id"], client["pid"]): client for client in before.status["clients"]} if before else {}
        rates: dict[Any, deque[float]] = {}
        rows = []
        for client in sample.status["clients"]:
            key = (client["id"], client["pid"])
            earlier = then.get(key)
            served, errors = (
                max(0.0, client[word] - earlier[word]) / seconds if earlier and seconds else 0.0
                for word in ("served", "errors")
            )
            history = rates[key] = self._rates.get(key, deque(maxlen=_HISTORY))
            history.append(served)
            rows.append((served, client, errors, history))
        self._rates = rates
        cells: list[dict[str, str | Text]] = [
            {
                "client": str(client["id"]),
                "program": Text(client["program"]),
                "uid": str(client["uid"]),
                "per second": f"{served:.1f}",
                "errors/s": Text(f"{errors:.1f}", style="red" if errors else ""),
                "in all": str(client["served"]),
                "per second before": sparkline([*history]),
            }
            for served, client, errors, history in sorted(rows, key=lambda row: -row[0])
        ]
        hidden = sample.status["clients_total"] - len(sample.status["clients"])
        if hidden:
            cells.append({"program": f"and {hidden} more"})
        columns = ("client", "program", "uid", "per second", "errors/s", "in all", "per second before")
        return _fitting(cells, columns, "per second before", "uid", "in all", "errors/s", "program")


def _fitting(
    rows: Sequence[Mapping[str, str | Text]], columns: Sequence[str], history: str, *rest: str
) -> FirstThatFits:
    """Return tables with all columns; narrower ones shorten the `history`, drop it, then drop the `rest` one by one."""
    shorter = [partial(_table, columns, rows, history, bars) for bars in (_HISTORY, _HISTORY // 2, _HISTORY // 4)]
    return FirstThatFits(
        [*shorter, *(partial(_table, names, rows, history, 0) for names in without(columns, history, *rest)[1:])]
    )


def _table(
    names: Sequence[str], rows: Sequence[Mapping[str, str | Text]], history: str, bars: int, text_width: int | None
) -> Table:
    """Return a table with these columns of the rows, and the latest `bars` of the `history`."""
    table = rows_table(None, names, ("stage", "client", "program", "uid", history), text_width)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        shown = (cell[-bars:] if name == history else cell for name, cell in zip(names, cells, strict=True))
        table.add_row(*shown, style="bold" if row.get("stage") == "total" else "")
    return table


def _hint(first: bool) -> Text:
    return Text("sampling..." if first else "q ends", style="dim")
