"""One screen that answers: is it healthy, what does it serve, who is connected, how fast."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .advice import advice

_STYLES = {"ready": "bold green", "failed": "bold red", "draining": "yellow"}


def duration(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> duration(0.0042), duration(12.34), duration(3700), duration(None)
    ('4.2 ms', '12.3 s', '1 h 1 min', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def micro(value: float | None) -> str:
    """Microseconds as people read them.

    >>> micro(12.34), micro(2500), micro(None)
    ('12.3 us', '2.50 ms', '-')
    """
    if value is None:
        return "-"
    return f"{value:.1f} us" if value < 1000 else f"{value / 1000:.2f} ms"


def render(status: dict[str, Any]) -> RenderableType:
    """The status of one service."""
    parts: list[RenderableType] = [_summary(status)]
    if status["clients"]:
        parts.append(clients_table(status["clients"]))
        hidden = status["clients_total"] - len(status["clients"])
        if hidden:
            parts.append(Text(f"and {hidden} more: shmserve-admin clients", style="dim"))
    latency = _latency(status["latency"])
    if latency is not None:
        parts.append(latency)
    return Group(*parts)


def _summary(status: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    state = Text(status["state"], style=_STYLES.get(status["state"], "bold yellow"))
    if status["error"]:
        state.append(f"  {status['error']}", style="red")
    table.add_row("service", Text(f"{status['service']}  ", style="bold") + state)
    if (to_do := advice(status)) is not None:
        table.add_row("do", Text(to_do, style="yellow"))
    model = status["model"]
    if model is None:
        table.add_row("model", "none")
    else:
        table.add_row("model", Text(f"{model['name']}  version {model['version']}  on {model['device']}"))
    if status["taken_back"]:
        table.add_row("taken back", Text(status["taken_back"], style="red"))
    for problem in status["problems"]:
        table.add_row("problem", Text(problem, style="red"))
    engine = status["engine"]
    if engine is not None:
        beat = engine["heartbeat_age_s"]
        restarts = engine["restarts"]
        table.add_row(
            "engine",
            Text(f"pid {engine['pid']}, heartbeat {duration(beat)} ago")
            + Text(f", {restarts} restarts", style="yellow" if restarts else "dim"),
        )
        if not engine.get("compiled", True):
            table.add_row("request path", "Python (not compiled): see docs/performance.md")
    table.add_row("daemon", f"pid {status['pid']}, up {duration(status['uptime_s'])}, transport {status['transport']}")
    if status["recording"]:
        table.add_row("recording", Text("somebody keeps what clients ask and get", style="yellow"))
    requests = status["requests"]
    counts = Text(f"{requests['served']} served")
    for name in ("failed", "rejected", "expired", "stale", "cancelled", "superseded", "lost"):
        if requests[name]:
            counts.append(f", {requests[name]} {name}", style="red" if name in ("failed", "lost") else "yellow")
    for name in ("out_of_range", "clamped"):
        if requests[name]:
            counts.append(f" ({requests[name]} {name.replace('_', ' ')})", style="yellow")
    table.add_row("requests", counts)
    table.add_row("logs", Text(status["logs"]))
    return table


def clients_table(clients: list[dict[str, Any]]) -> Table:
    """One line a client."""
    table = Table(title="clients", title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("id", "program", "pid", "uid"):
        table.add_column(name)
    for name in ("slots", "served", "errors", "last", "attached"):
        table.add_column(name, justify="right")
    for client in clients:
        table.add_row(
            str(client["id"]),
            Text(client["program"]),
            str(client["pid"]),
            f"{client['uid']}{' trusted' if client['trusted'] else ''}",
            str(client["slots"]),
            str(client["served"]),
            str(client["errors"]),
            f"{duration(client['last_s'])}{' ago' if client['last_s'] is not None else ''}",
            duration(client["attached_s"]),
        )
    return table


def _latency(latency: dict[str, dict[str, Any] | None]) -> Table | None:
    if not latency.get("total"):
        return None
    table = Table(title="time in the service", title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("stage")
    for name in ("p50", "p90", "p99", "p99.9"):
        table.add_column(name, justify="right")
    for stage, found in latency.items():
        if found:
            values = (micro(found[key]) for key in ("p50_us", "p90_us", "p99_us", "p999_us"))
            table.add_row(stage, *values, style="bold" if stage == "total" else "")
    return table
