"""Status screen: health of the service, its model, its clients and its latencies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shmserve.contract_meaning import summary

from .responsive_table import FirstThatFits, rows_table, without
from .wait_ready import STEP_VERBS, amount

#: Between two requests an engine's heartbeat is never this old.
_QUIET_S = 5.0
#: The backend of the engine (shmserve/backend.py), as the screen names it.
_BACKENDS = {"native": "native", "pure": "pure Python, slower: see docs/explanation/performance.md"}
#: Fields of a contract that the screen shows.
_CONTRACT_LINES = 12
_STYLES = {"ready": "bold green", "failed": "bold red", "draining": "yellow"}


def duration(seconds: float | None) -> str:
    """Return seconds as people read them.

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
    """Return microseconds as people read them.

    >>> micro(12.34), micro(2500), micro(3_411_810), micro(None)
    ('12.3 us', '2.50 ms', '3.41 s', '-')
    """
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.1f} us"
    return f"{value / 1000:.2f} ms" if value < 1e6 else f"{value / 1e6:.2f} s"


def spare_text(spare: Mapping[str, Any]) -> str:
    """Return the state of the spare engine in words.

    >>> spare_text({"state": "ready", "memory_bytes": 156_237_824, "reason": None, "uses": 2})
    'ready, 149 MiB, used 2 times'
    >>> spare_text({"state": "no memory", "memory_bytes": None, "reason": "the machine has less", "uses": 0})
    'no memory: the machine has less'
    """
    text: str = spare["state"]
    if spare["memory_bytes"] is not None:
        text += f", {spare['memory_bytes'] >> 20} MiB"
    if spare["uses"]:
        text += f", used {spare['uses']} times"
    return f"{text}: {spare['reason']}" if spare["reason"] else text


def remote_text(remote: dict[str, Any], counts: dict[str, int]) -> str:
    """Return one line about a link to a model on another machine: who answers, and how the remote has answered.

    >>> counts = {"ok": 900, "failed": 0, "stale": 0, "late": 2, "down": 1, "busy": 0, "open": 40, "mismatch": 0}
    >>> link = {"application": "arm", "version": "3f9c2d17a0b14e55", "source": "remote"}
    >>> remote_text(link, {**counts, "switches": 6})
    'arm 3f9c2d17a0b14e55, remote answers  ok 900, late 2, down 1, open 40, switches 6'
    """
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "no request yet"
    return f"{remote['application']} {remote['version']}, {remote['source']} answers  {told}"


def render(status: dict[str, Any]) -> RenderableType:
    """Return the screen."""
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


def advice(status: dict[str, Any]) -> str | None:
    """Return one sentence for the operator of a service that is not well, or None.

    >>> advice({"state": "ready", "engine": None, "logs": "tail /log"}) is None
    True
    >>> advice({"state": "failed", "engine": None, "logs": "tail /log"})
    'see the log for the cause (tail /log); after the repair: shmserve-admin update-model PATH, or start it again'
    """
    state, engine, logs = status["state"], status["engine"], status["logs"]
    beat = engine["heartbeat_age_s"] if engine is not None else None
    if state == "failed":
        return (
            f"see the log for the cause ({logs}); after the repair: shmserve-admin update-model PATH, or start it again"
        )
    if state == "draining":
        return "it completes the requests in flight and ends; robots wait for its successor"
    if beat is not None and beat > _QUIET_S:
        return (
            f"no heartbeat of the engine for {beat:.0f} s: a long request, or it hangs and is replaced after "
            "heartbeat_timeout_s (shmserve-admin config)"
        )
    if state in ("loading", "warming") and engine is not None and engine["restarts"]:
        return f"an engine died and another one loads: see the log for the cause ({logs})"
    return None


def _summary(status: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # a path must not be cut
    state = Text(status["state"], style=_STYLES.get(status["state"], "bold yellow"))
    if status["error"]:
        state.append(f"  {status['error']}", style="red")
    table.add_row("service", Text(f"{status['service']}  ", style="bold") + state)
    if (to_do := advice(status)) is not None:
        table.add_row("do", Text(to_do, style="yellow"))
    if ingest := status.get("ingest"):
        verb = STEP_VERBS[ingest["step"]]
        table.add_row("package", Text(f"{ingest['source']}: {verb} {amount(ingest['bytes'], ingest['of'])}"))
    model = status["model"]
    if model is None:
        table.add_row("model", "none")
    else:
        table.add_row("model", Text(f"{model['name']}  version {model['version']}  on {model['device']}"))
        if (remote := model.get("remote")) is not None:
            table.add_row("remote", Text(remote_text(remote, status["remote"])))
        if stated := stated_text(model):
            table.add_row("contract", Text(stated))
    if status["rolled_back"]:
        table.add_row("rolled back", Text(status["rolled_back"], style="red"))
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
        if backend := engine.get("backend"):
            table.add_row("backend", Text(_BACKENDS.get(backend, backend)))
        if ahead := _ahead(engine, status["uptime_s"]):
            table.add_row("wake ahead", ahead)
        if spare := engine.get("spare"):
            table.add_row("spare engine", Text(spare_text(spare), style="yellow" if spare["reason"] else ""))
        if standby := engine.get("standby"):
            text = f"{standby['state']}: {standby['reason']}" if standby["reason"] else standby["state"]
            table.add_row("standby", Text(text, style="yellow" if standby["reason"] else ""))
        if real_time := _real_time(engine):
            table.add_row("real time", real_time)
    daemon = Text(f"pid {status['pid']}")
    if "uid" in status:
        daemon.append(f" of {_user(status['uid'], status['user'])}", style=_style(status["uid"]))
    table.add_row("daemon", daemon + f", up {duration(status['uptime_s'])}, transport {status['transport']}")
    if "runtime_dir" in status:
        owner = Text(_user(status["runtime_dir_uid"], status["runtime_dir_user"]), _style(status["runtime_dir_uid"]))
        table.add_row("runtime dir", Text(f"{status['runtime_dir']} of ") + owner)
    if status["recording"]:
        table.add_row("recording", Text("requests and replies are being recorded", style="yellow"))
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


def stated_text(model: Mapping[str, Any]) -> str:
    """Return what the model states of its numbers, a field a line; "" if it states nothing.

    >>> print(stated_text({"contract": {"meaning": {"rate_hz": 50, "action": {"arm": {"names": ["pan", "lift"]}}}}}))
    rate_hz 50
    action.arm.names pan, lift
    """
    lines = [" ".join(field) for field in summary((model.get("contract") or {}).get("meaning") or {})]
    hidden = len(lines) - _CONTRACT_LINES
    return "\n".join([*lines[:_CONTRACT_LINES], f"and {hidden} more: --json"] if hidden > 1 else lines)


def _ahead(engine: Mapping[str, Any], uptime_s: float) -> str:
    """Return for how many requests the engine was awake ahead of them, and its cost; "" if it expected none.

    >>> _ahead({"wake_ahead": {"met": 2990, "missed": 10, "awake_s": 0.6}}, 60.0)
    '2,990 requests met, 10 missed, 1.0 % of a processor'
    >>> _ahead({"wake_ahead": {"met": 0, "missed": 0, "awake_s": 0.0}}, 60.0)
    ''
    """
    found = engine.get("wake_ahead")
    if not found or not found["met"] + found["missed"]:
        return ""
    share = 100 * found["awake_s"] / uptime_s if uptime_s else 0.0
    return f"{found['met']:,} requests met, {found['missed']:,} missed, {share:.1f} % of a processor"


def _real_time(engine: Mapping[str, Any]) -> Text | None:
    """Return whether the engine got what lock_memory and engine_priority request; None if they request nothing.

    >>> _real_time({"memory_locked": True, "priority": 10}).plain, _real_time({"priority": 0}).plain, _real_time({})
    ('memory locked, priority 10', 'no real-time priority (see the log)', None)
    """
    words = []
    if (locked := engine.get("memory_locked")) is not None:
        words.append("memory locked" if locked else "memory not locked (see the log)")
    if (priority := engine.get("priority")) is not None:
        words.append(f"priority {priority}" if priority else "no real-time priority (see the log)")
    failed = locked is False or priority == 0
    return Text(", ".join(words), style="yellow" if failed else "") if words else None


def _user(uid: int, name: str | None) -> str:
    return f"uid {uid}" if name is None else f"uid {uid} ({name})"


def _style(uid: int) -> str:
    return "" if uid in (0, os.geteuid()) else "yellow"  # yellow: another user's


def clients_table(clients: list[dict[str, Any]]) -> RenderableType:
    """Return a table with a line for each client."""
    rows = [_client_cells(client) for client in clients]
    columns = ("id", "program", "pid", "uid", "slots", "served", "errors", "last", "attached")
    return FirstThatFits(
        partial(_table, "clients", names, rows)
        for names in without(columns, "attached", "slots", "pid", "uid", "last", "program")
    )


def _client_cells(client: dict[str, Any]) -> dict[str, str | Text]:
    return {
        "id": str(client["id"]),
        "program": Text(client["program"]),
        "pid": str(client["pid"]),
        "uid": f"{client['uid']}{' trusted' if client['trusted'] else ''}",
        "slots": str(client["slots"]),
        "served": str(client["served"]),
        "errors": str(client["errors"]),
        "last": f"{duration(client['last_s'])}{' ago' if client['last_s'] is not None else ''}",
        "attached": duration(client["attached_s"]),
    }


def _table(title: str, names: Sequence[str], rows: Sequence[Mapping[str, str | Text]], text_width: int | None) -> Table:
    """Return a table with these columns of the rows, numbers aligned right."""
    table = rows_table(title, names, ("id", "program", "pid", "uid", "stage"), text_width)
    for row in rows:
        table.add_row(*(row[name] for name in names), style="bold" if row.get("stage") == "total" else "")
    return table


def _latency(latency: dict[str, dict[str, Any] | None]) -> RenderableType | None:
    if not latency.get("total"):
        return None
    keys = {"p50": "p50_us", "p90": "p90_us", "p99": "p99_us", "p99.9": "p999_us"}
    rows: list[dict[str, str | Text]] = [
        {"stage": stage, **{name: micro(found[key]) for name, key in keys.items()}}
        for stage, found in latency.items()
        if found
    ]
    return FirstThatFits(
        partial(_table, "time in the service", names, rows) for names in without(("stage", *keys), "p99.9", "p90")
    )
