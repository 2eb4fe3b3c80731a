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
from shmserve.shortened import shortened

from .gpu import gpu_line
from .quantities import TimeUnit, clock, duration, memory, percent, time_unit
from .responsive_table import FirstThatFits, RowsThatFit, rows_table, without
from .wait_ready import STEP_VERBS, amount

#: Between two requests an engine's heartbeat is never this old.
_QUIET_S = 5.0
#: The backend of the engine (shmserve/backend.py), as the screen names it.
_BACKENDS = {"native": "native", "pure": "pure Python, slower: see docs/explanation/performance.md"}
#: An engine that works on requests for more than this share of the time has little room for more.
BUSY = 0.9
#: Characters of a refused update's reason that the screen shows; `versions` has all of it.
_REFUSAL_TEXT = 400
#: Fields of a contract that the screen shows.
_CONTRACT_LINES = 12
#: Styles of the states; the colours are the terminal's own, so that they suit a dark and a light background.
STATE_STYLES = {
    "starting": "bold yellow",
    "loading": "bold yellow",
    "warming": "bold yellow",
    "ready": "bold green",
    "updating": "bold cyan",
    "draining": "bold magenta",
    "failed": "bold red",
}
#: Endings of a request other than with an answer, red where the service is to blame.
ENDINGS = {
    "failed": "red",
    "rejected": "yellow",
    "expired": "yellow",
    "stale": "yellow",
    "cancelled": "yellow",
    "superseded": "yellow",
    "lost": "red",
}


def spare_text(spare: Mapping[str, Any]) -> str:
    """Return the state of the spare engine in words.

    >>> spare_text({"state": "ready", "memory_bytes": 156_237_824, "reason": None, "uses": 2})
    'ready, 149 MiB, used for 2 engines'
    >>> spare_text({"state": "no memory", "memory_bytes": None, "reason": "the machine has less", "uses": 0})
    'no memory: the machine has less'
    """
    text: str = spare["state"]
    if spare["memory_bytes"] is not None:
        text += f", {memory(spare['memory_bytes'])}"
    if spare["uses"]:
        text += f", used for {spare['uses']} engine{'s' if spare['uses'] > 1 else ''}"
    return f"{text}: {spare['reason']}" if spare["reason"] else text


def remote_text(remote: dict[str, Any], counts: dict[str, int]) -> str:
    """Return one line about a link to a model on another machine: who answers, and how the remote has answered.

    >>> counts = {"ok": 900, "failed": 0, "stale": 0, "late": 2, "down": 1, "busy": 0, "open": 40, "mismatch": 0}
    >>> link = {"application": "arm", "version": "3f9c2d17a0b14e55", "source": "remote"}
    >>> remote_text(link, {**counts, "switches": 6})
    'arm 3f9c2d17a0b14e55, remote answers; since the start: ok 900, late 2, down 1, open 40, switches 6'
    """
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "no request yet"
    return f"{remote['application']} {remote['version']}, {remote['source']} answers; since the start: {told}"


def render(status: dict[str, Any], *, fills_screen: bool = False) -> RenderableType:
    """Return the screen; with `fills_screen` with as many clients as there is room for."""
    latency = _latency(status)
    above = Group(_summary(status), *(["", *latency] if latency else []))
    if not status["clients"]:
        return above

    def clients(shown: int) -> RenderableType:
        hidden = status["clients_total"] - shown
        more = [more_clients(hidden)] if hidden else []
        if not shown:
            return Group(*more)
        return Group("", heading("clients"), clients_table(status["clients"][:shown]), *more)

    return RowsThatFit(above, len(status["clients"]), clients, Group(), fills_screen=fills_screen)


def more_clients(hidden: int) -> Text:
    """Return where the clients are that have no row."""
    return Text(f"and {hidden} more clients: shmserve-admin clients", style="dim")


def advice(status: Mapping[str, Any]) -> str | None:
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
    state = Text(status["state"], style=STATE_STYLES[status["state"]])
    table.add_row("service", Text(f"{status['service']}  ", style="bold") + state)
    for label, trouble in troubles(status):
        table.add_row(label, trouble)
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
    engine = status["engine"]
    if engine is not None:
        beat = engine["heartbeat_age_s"]
        restarts = engine["restarts"]
        table.add_row(
            "engine",
            Text(f"pid {engine['pid']}, heartbeat {duration(beat)} ago")
            + Text(f", {restarts} restarts", style="yellow" if restarts else "dim"),
        )
        table.add_row("engine use", engine_use(engine, status["recent"]))
        if gpu := gpu_line(status):
            table.add_row("gpu", Text(gpu))
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
    recent = status["recent"]
    rate = Text(f"{recent['served_per_s']:,.1f} served a second in the last {recent['window_s']:.0f} s")
    table.add_row("requests", rate + endings(recent["requests"]))
    table.add_row("", Text(f"{status['requests']['served']:,} served since the start") + endings(status["requests"]))
    table.add_row("logs", Text(status["logs"]))
    return table


def troubles(status: Mapping[str, Any]) -> list[tuple[str, Text]]:
    """Return what is wrong with the service and what to do, each with its label."""
    model = status["model"] or {}
    found = [("error", Text(status["error"], style="red"))] if status["error"] else []
    if (to_do := advice(status)) is not None:
        found.append(("do", Text(to_do, style="yellow")))
    if status["rolled_back"]:
        found.append(("rolled back", Text(status["rolled_back"], style="red")))
    if refused := status["refused"]:
        reason = shortened(refused["message"], _REFUSAL_TEXT)
        found.append(("not updated", Text(f"{duration(refused['ago_s'])} ago: {reason}", style="yellow")))
    found += [("problem", Text(problem, style="red")) for problem in status["problems"]]
    return found + [("gpu warning", Text(each, "yellow")) for each in (model.get("gpu") or {}).get("warnings", ())]


def endings(requests: Mapping[str, int]) -> Text:
    """Return how many requests ended other than with an answer, each with its reason; empty without any.

    >>> endings({**dict.fromkeys(ENDINGS, 0), "failed": 1200, "expired": 3, "out_of_range": 0, "clamped": 1}).plain
    ', 1,200 failed, 3 expired (1 clamped)'
    """
    counts = Text()
    for name, style in ENDINGS.items():
        if requests[name]:
            counts.append(f", {requests[name]:,} {name}", style=style)
    for name in ("out_of_range", "clamped"):
        if requests[name]:
            counts.append(f" ({requests[name]:,} {name.replace('_', ' ')})", style="yellow")
    return counts


def engine_use(engine: Mapping[str, Any], recent: Mapping[str, Any]) -> Text:
    """Return the engine's use of processors and memory, and the share of the time in which it worked on requests.

    >>> engine = {"resident_bytes": 431_554_560}
    >>> engine_use(engine, {"engine_cpus": 1.02, "engine_busy_share": 0.63, "window_s": 60.0}).plain
    '1.02 processors, 412 MiB resident, busy with requests 63 % of the last 60 s'
    >>> engine_use(engine, {"engine_cpus": None, "engine_busy_share": 0.0, "window_s": 3.0}).plain
    '412 MiB resident, busy with requests 0 % of the last 3 s'
    """
    words = []
    if recent["engine_cpus"] is not None:
        words.append(f"{recent['engine_cpus']:.2f} processors")
    if engine["resident_bytes"] is not None:
        words.append(f"{memory(engine['resident_bytes'])} resident")
    busy = recent["engine_busy_share"]
    text = Text(", ".join(words) + ", " if words else "")
    text.append(
        f"busy with requests {percent(busy)} of the last {recent['window_s']:.0f} s", "yellow" if busy > BUSY else ""
    )
    return text


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
    '2,990 requests met, 10 missed, 1.0 % of a processor since the start'
    >>> _ahead({"wake_ahead": {"met": 0, "missed": 0, "awake_s": 0.0}}, 60.0)
    ''
    """
    found = engine.get("wake_ahead")
    if not found or not found["met"] + found["missed"]:
        return ""
    share = 100 * found["awake_s"] / uptime_s if uptime_s else 0.0
    return f"{found['met']:,} requests met, {found['missed']:,} missed, {share:.1f} % of a processor since the start"


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
    columns = ("id", "program", "pid", "uid", "slots", "served", "errors", "last (s ago)", "attached (h:min:s)")
    return FirstThatFits(
        partial(_table, names, rows)
        for names in without(columns, "attached (h:min:s)", "slots", "pid", "uid", "last (s ago)", "program")
    )


def _client_cells(client: dict[str, Any]) -> dict[str, str | Text]:
    return {
        "id": str(client["id"]),
        "program": Text(client["program"]),
        "pid": str(client["pid"]),
        "uid": f"{client['uid']}{' trusted' if client['trusted'] else ''}",
        "slots": str(client["slots"]),
        "served": f"{client['served']:,}",
        "errors": Text(f"{client['errors']:,}", style="red" if client["errors"] else ""),
        "last (s ago)": "-" if client["last_s"] is None else f"{client['last_s']:,.1f}",
        "attached (h:min:s)": clock(client["attached_s"]),
    }


def _table(names: Sequence[str], rows: Sequence[Mapping[str, str | Text]], text_width: int | None) -> Table:
    """Return a table with these columns of the rows, numbers aligned right."""
    table = rows_table(names, ("id", "program", "pid", "uid", "stage"), text_width)
    for row in rows:
        table.add_row(*(row[name] for name in names), style="bold" if row.get("stage") == "total" else "")
    return table


def _latency(status: Mapping[str, Any]) -> list[RenderableType]:
    """Return the latencies of the last minute, or without requests in it those since the start."""
    recent, latency = status["recent"], status["recent"]["latency"]
    when = f"last {recent['window_s']:.0f} s"
    if not latency.get("total"):
        latency, when = status["latency"], f"since the start, none in the {when}"
    if not latency.get("total"):
        return []
    keys = {"p50": "p50_us", "p90": "p90_us", "p99": "p99_us", "p99.9": "p999_us"}
    found = {stage: percentiles for stage, percentiles in latency.items() if percentiles}
    unit = time_unit(percentiles[key] for percentiles in found.values() for key in keys.values())
    limit_us = period_us(status["model"])
    rows: list[dict[str, str | Text]] = [
        {
            "stage": stage,
            **{name: latency_text(percentiles[key], unit, limit_us) for name, key in keys.items()},
        }
        for stage, percentiles in found.items()
    ]
    title = f"time in the service, {unit.name}: {found['total']['count']:,} requests, {when}"
    table = FirstThatFits(partial(_table, names, rows) for names in without(("stage", *keys), "p99.9", "p90"))
    over = limit_us is not None and any(found["total"][key] > limit_us for key in keys.values())
    shown: list[RenderableType] = [heading(title), table]
    return [*shown, over_text(limit_us)] if over and limit_us is not None else shown


def period_us(model: Mapping[str, Any] | None) -> float | None:
    """Return the period of the rate for which the model was made, if it states one.

    >>> period_us({"contract": {"meaning": {"rate_hz": 50}}}), period_us({}), period_us(None)
    (20000.0, None, None)
    """
    meaning = ((model or {}).get("contract") or {}).get("meaning") or {}
    return 1e6 / meaning["rate_hz"] if meaning.get("rate_hz") else None


def heading(title: str) -> Text:
    """Return the line above a table; as a title of the table it would be folded to the table's width."""
    return Text(title, style="bold")


def latency_text(us: float | None, unit: TimeUnit, limit_us: float | None) -> Text:
    """Return a duration of a table, red if it is longer than the limit."""
    return Text(unit.of(us), style="red" if us is not None and limit_us is not None and us > limit_us else "")


def over_text(limit_us: float) -> Text:
    """Return the meaning of the red durations."""
    return Text(
        f"red: longer than {limit_us / 1000:g} ms, the period of the model's rate_hz = {1e6 / limit_us:g}", "red"
    )
