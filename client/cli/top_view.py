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

from .gpu import gpu_line
from .quantities import duration, memory, percent, time_unit
from .responsive_table import FirstThatFits, RowsThatFit, rows_table, without
from .status_view import (
    BUSY,
    ENDINGS,
    STATE_STYLES,
    heading,
    latency_text,
    more_clients,
    over_text,
    period_us,
    remote_text,
    troubles,
)
from .wait_ready import STEP_VERBS, amount

_HISTORY = 40
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Sample:
    """Status and latency counts at one moment (time.monotonic() seconds)."""

    at_s: float
    status: dict[str, Any]
    bounds_us: Sequence[float]
    stages: dict[str, Sequence[int]]


@dataclass(frozen=True)
class Change:
    """Difference of two samples."""

    seconds: float
    bounds_us: Sequence[float]
    #: Requests in each bucket, by stage.
    stages: Mapping[str, Sequence[int]]
    #: Requests by how they ended, among them `served`.
    requests: Mapping[str, int]
    #: Processors that the engine used, and the share of the time in which it worked on requests; None if it was replaced.
    engine_cpus: float | None
    busy_share: float | None

    @staticmethod
    def between(before: Sample, now: Sample) -> Change:
        seconds = max(now.at_s - before.at_s, 1e-9)
        then, engine = before.status["engine"] or {}, now.status["engine"] or {}
        cpus = busy = None
        if engine and engine["pid"] == then.get("pid"):
            busy = max(0.0, engine["busy_s"] - then["busy_s"]) / seconds
            if engine["cpu_s"] is not None and then["cpu_s"] is not None:
                cpus = (engine["cpu_s"] - then["cpu_s"]) / seconds
        earlier = before.status["requests"]
        return Change(
            seconds,
            now.bounds_us,
            {
                stage: [max(0, count - was) for count, was in zip(counts, before.stages.get(stage, ()), strict=False)]
                for stage, counts in now.stages.items()
            },
            {name: max(0, count - earlier[name]) for name, count in now.status["requests"].items()},
            cpus,
            busy,
        )

    def waiting(self) -> float:
        """Return how many requests waited for their turn on average: their rate times their wait (Little's law)."""
        counts = self.stages.get("queued", ())
        middles_us = ((low + high) / 2 for low, high in zip(self.bounds_us, self.bounds_us[1:], strict=False))
        return sum(count * us for count, us in zip(counts, middles_us, strict=False)) / 1e6 / self.seconds


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

    def __init__(self, *, fills_screen: bool) -> None:
        """With `fills_screen` a screen has as many clients as there is room for."""
        self._fills_screen = fills_screen
        self._before: Sample | None = None
        self._rates: dict[Any, deque[float]] = {}
        self._latencies: dict[str, deque[float]] = {}
        #: The longest durations of the last samples: the unit must not change at every one.
        self._longest: deque[float | None] = deque(maxlen=_HISTORY)

    def render(self, sample: Sample) -> RenderableType:
        """Return one screen."""
        before, self._before = self._before, sample
        head = _head(sample)
        if before is None:
            return Group(*head, Text("sampling...", style="dim"))
        change = Change.between(before, sample)
        above = Group(
            *head,
            _totals(change),
            _engine(sample.status, change),
            *_gpu(sample.status),
            "",
            *self._stages(change, period_us(sample.status["model"])),
            "",
        )
        span = f"of the last {change.seconds:.1f} s; histories: {_HISTORY} samples, 0 to highest; q quits"
        rows = self._clients(before, sample, change.seconds)
        table = partial(_clients_table, rows, sample.status["clients_total"])
        return RowsThatFit(above, len(rows), table, Text(span, style="dim"), fills_screen=self._fills_screen)

    def _stages(self, change: Change, limit_us: float | None) -> list[RenderableType]:
        names = ("p50", "p90", "p99")
        found = {
            stage: [percentile_us(change.bounds_us, counts, percent) for percent in (50, 90, 99)]
            for stage, counts in change.stages.items()
        }
        self._longest.append(max((us for row in found.values() for us in row if us is not None), default=None))
        unit = time_unit(self._longest)
        rows: list[dict[str, str | Text]] = []
        for stage, percentiles in found.items():
            history = self._latencies.setdefault(stage, deque(maxlen=_HISTORY))
            history.append(percentiles[0] or 0.0)
            rows.append(
                {
                    "stage": stage,
                    "requests": f"{sum(change.stages[stage]):,}",
                    **{name: latency_text(us, unit, limit_us) for name, us in zip(names, percentiles, strict=True)},
                    "p50 history": sparkline([*history]),
                    "highest": unit.of(max(history)),
                }
            )
        columns = ("stage", "requests", *names, "p50 history", "highest")
        shown: list[RenderableType] = [
            heading(f"time in the service, {unit.name}"),
            _fitting(rows, columns, "p50 history", "requests", "p90"),
        ]
        is_over = limit_us is not None and any(us is not None and us > limit_us for us in found.get("total", ()))
        return [*shown, over_text(limit_us)] if is_over and limit_us is not None else shown

    def _clients(self, before: Sample, sample: Sample, seconds: float) -> list[dict[str, str | Text]]:
        """Return a row for each client, the busiest first."""
        then = {(client["id"], client["pid"]): client for client in before.status["clients"]}
        rates: dict[Any, deque[float]] = {}
        rows = []
        for client in sample.status["clients"]:
            key = (client["id"], client["pid"])
            earlier = then.get(key)
            served, errors = (
                max(0.0, client[word] - earlier[word]) / seconds if earlier else 0.0 for word in ("served", "errors")
            )
            history = rates[key] = self._rates.get(key, deque(maxlen=_HISTORY))
            history.append(served)
            rows.append((served, client, errors, history))
        self._rates = rates
        return [
            {
                "client": str(client["id"]),
                "program": Text(client["program"]),
                "uid": str(client["uid"]),
                "requests/s": f"{served:,.1f}",
                "errors/s": Text(f"{errors:,.1f}", style="red" if errors else ""),
                "total": f"{client['served']:,}",
                "rate history": sparkline([*history]),
                "highest": f"{max(history):,.1f}",
            }
            for served, client, errors, history in sorted(rows, key=lambda row: -row[0])
        ]


def _clients_table(rows: Sequence[Mapping[str, str | Text]], total: int, shown: int) -> RenderableType:
    """Return a table with the first rows, and how many clients are missing."""
    if not rows:
        return Text("no clients", style="dim")
    columns = ("client", "program", "uid", "requests/s", "errors/s", "total", "rate history", "highest")
    table = _fitting(rows[:shown], columns, "rate history", "uid", "total", "errors/s", "program")
    return Group(heading("clients"), table, *([more_clients(total - shown)] if total > shown else []))


def _head(sample: Sample) -> list[RenderableType]:
    """Return the lines that need no second sample."""
    status = sample.status
    model, engine = status["model"], status["engine"]
    served = "no model" if model is None else f"{model['name']} {model['version']} on {model['device']}"
    text = Text(f"{status['service']}  ", style="bold")
    text.append(status["state"], style=STATE_STYLES[status["state"]])
    text.append(f"  {served}  up {duration(status['uptime_s'])}")
    if engine is not None and engine["restarts"]:
        text.append(f"  {engine['restarts']} restarts", style="yellow")
    lines: list[RenderableType] = [text]
    if model is not None and (remote := model.get("remote")) is not None:
        style = "green" if remote["source"] == "remote" else "yellow"
        lines.append(Text(remote_text(remote, status["remote"]), style=style))
    if ingest := status.get("ingest"):
        lines.append(Text(f"{ingest['source']}: {STEP_VERBS[ingest['step']]} {amount(ingest['bytes'], ingest['of'])}"))
    return [*lines, *(Text(f"{label}: ") + trouble for label, trouble in troubles(status))]


def _totals(change: Change) -> Text:
    """Return the rates of all clients together."""
    text = Text(f"{change.requests['served'] / change.seconds:,.1f} requests/s served", style="bold")
    for name, style in ENDINGS.items():
        if change.requests[name]:
            text.append(f", {change.requests[name] / change.seconds:,.1f}/s {name}", style=style)
    return text.append(f", {change.waiting():.1f} waiting on average", style="not bold")


def _engine(status: Mapping[str, Any], change: Change) -> Text:
    """Return the engine's use of the machine."""
    engine = status["engine"]
    if engine is None:
        return Text("no engine", style="yellow")
    text = Text(f"engine {engine['pid']}")
    if change.busy_share is not None:
        text.append(", ").append(
            f"busy with requests {percent(change.busy_share)}", style="yellow" if change.busy_share > BUSY else ""
        )
    if change.engine_cpus is not None:
        text.append(f", {change.engine_cpus:.2f} processors")
    if engine["resident_bytes"] is not None:
        text.append(f", {memory(engine['resident_bytes'])} resident")
    return text


def _gpu(status: Mapping[str, Any]) -> list[RenderableType]:
    line = gpu_line(status)
    return [] if line is None else [Text(line)]


def _fitting(
    rows: Sequence[Mapping[str, str | Text]], columns: Sequence[str], history: str, first: str, *rest: str
) -> FirstThatFits:
    """Return tables with all columns; narrower ones shorten the `history`, drop `first`, the history, then the `rest`."""
    make = partial(_table, rows, history)
    shorter = [partial(make, columns, bars) for bars in (_HISTORY, _HISTORY // 2, _HISTORY // 4)]
    _, without_first, _, *fewer = without(columns, first, history, "highest", *rest)
    return FirstThatFits(
        [*shorter, partial(make, without_first, _HISTORY // 4), *(partial(make, names, 0) for names in fewer)]
    )


def _table(
    rows: Sequence[Mapping[str, str | Text]],
    history: str,
    names: Sequence[str],
    bars: int,
    text_width: int | None,
) -> Table:
    """Return a table with these columns of the rows, and the latest `bars` of the `history`."""
    table = rows_table(names, ("stage", "client", "program", "uid", history), text_width)
    for row in rows:
        cells = (row[name] for name in names)
        # Of equal width from the first sample on, so that no column moves.
        shown = (
            str(cell)[-bars:].rjust(bars) if name == history else cell for name, cell in zip(names, cells, strict=True)
        )
        table.add_row(*shown, style="bold" if row.get("stage") == "total" else "")
    return table
