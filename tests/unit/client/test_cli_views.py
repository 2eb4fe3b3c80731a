"""What shmserve-admin draws on terminals of any size: columns and rows go and are named, figures and names stay whole."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console, RenderableType

from shmserve.client.cli import settings_view, status_view, versions_view
from shmserve.client.cli.top_view import Sample, TopView
from shmserve.daemon.api import metrics
from shmserve.daemon.supervisor import ServiceState

_WIDTHS = (40, 60, 80, 120, 200)


def drawn(renderable: RenderableType, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def client(number: int) -> dict[str, Any]:
    facts = {"id": number, "program": "camera_robot.py", "pid": 1_234_567, "uid": 1000, "trusted": True, "slots": 4}
    return {**facts, "served": 87_654_321, "errors": 12, "last_s": 0.0042, "attached_s": 3700.0}


def status() -> dict[str, Any]:
    quantiles = {"count": 9, "p50_us": 123.4, "p90_us": 2500.0, "p99_us": 34_567.8, "p999_us": 3_411_810.0}
    engine = {"busy_s": 5.0, "cpu_s": 7.0, "resident_bytes": 412 << 20}
    words = ("served", "failed", "rejected", "expired", "stale", "cancelled", "superseded", "lost")
    return {
        "service": "arm",
        "state": "ready",
        "error": None,
        "model": {"name": "reach", "version": "2a165e74c8828df1", "device": "cpu"},
        "engine": {**engine, "pid": 1_234_568, "restarts": 0, "heartbeat_age_s": 0.02},
        "rolled_back": None,
        "refused": None,
        "recent": {
            "window_s": 61.2,
            "served_per_s": 412.04,
            "engine_busy_share": 0.63,
            "engine_cpus": 1.02,
            "requests": dict.fromkeys((*words, "out_of_range", "clamped"), 0),
            "latency": {"queued": quantiles, "total": quantiles},
        },
        "problems": [],
        "pid": 1_234_566,
        "uptime_s": 90_000.0,
        "transport": "named",
        "recording": False,
        "logs": "tail /home/anna/robots/left-arm/logs/shmserved.log",
        "requests": {**dict.fromkeys((*words, "out_of_range", "clamped"), 0), "served": 87_654_321},
        "clients": [client(0), client(1)],
        "clients_total": 2,
        "latency": {"queued": quantiles, "total": quantiles},
    }


@pytest.mark.parametrize("width", _WIDTHS)
def test_a_status_has_whole_figures_at_any_width(width: int) -> None:
    lines = drawn(status_view.render(status()), width)

    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for whole in ("87,654,321", "0.123", "34.568", "412.0 served a second", "1.02 processors, 412 MiB resident"):
        assert whole in text.replace("\n", " ").replace("  ", "")
    assert "/home/anna/robots/left-arm/logs/shmserved.log" in "".join(line.strip() for line in lines)
    assert ("1:01:40" in text) == (width >= 120)
    named = text.partition(f"not shown at {width} columns: ")[2].replace("\n", " ")
    assert ("attached (h:min:s)" in named) == (width < 120) and ("program" in named) == (width < 60)


def test_a_status_says_whose_the_daemon_and_its_directory_are() -> None:
    whose = {"uid": 61_234, "user": None, "runtime_dir": "/srv/run", "runtime_dir_uid": 0, "runtime_dir_user": "root"}

    lines = drawn(status_view.render({**status(), **whose}), 160)

    assert any("daemon" in line and "pid 1234566 of uid 61234, up " in line for line in lines)
    assert any("runtime dir" in line and "/srv/run of uid 0 (root)" in line for line in lines)


def test_all_durations_of_a_status_are_in_the_unit_of_their_heading() -> None:
    lines = drawn(status_view.render(status()), 120)

    at = lines.index("time in the service, ms: 9 requests, last 61 s")
    assert [line.split() for line in lines[at + 2 : at + 4]] == [
        ["queued", "0.123", "2.500", "34.568", "3,411.810"],
        ["total", "0.123", "2.500", "34.568", "3,411.810"],
    ]


def test_without_a_request_in_the_last_minute_a_status_has_the_durations_since_the_start() -> None:
    now = status()
    now["recent"]["latency"] = {"queued": None, "total": None}
    now["latency"]["total"] = dict.fromkeys(("p50_us", "p90_us", "p99_us", "p999_us"), 99.0) | {"count": 3}
    del now["latency"]["queued"]

    lines = drawn(status_view.render(now), 120)

    assert "time in the service, us: 3 requests, since the start, none in the last 61 s" in lines
    assert "total  99.0  99.0  99.0   99.0" in lines


def test_durations_over_the_period_of_the_model_are_pointed_out() -> None:
    now = status()
    now["model"]["contract"] = {"meaning": {"rate_hz": 100}}

    assert "red: longer than 10 ms, the period of the model's rate_hz = 100" in drawn(status_view.render(now), 120)
    now["model"]["contract"] = {"meaning": {"rate_hz": 0.2}}
    assert "red:" not in "\n".join(drawn(status_view.render(now), 120))


def test_every_state_has_a_style_and_every_ending_is_shown() -> None:
    assert set(status_view.STATE_STYLES) == {state.value for state in ServiceState}
    assert {"served", *status_view.ENDINGS} == set(metrics.ENDINGS)
    for state in ServiceState:
        assert f"arm  {state.value}" in "\n".join(drawn(status_view.render({**status(), "state": state.value}), 80))


def test_a_refused_update_stays_on_the_screen_with_its_reason() -> None:
    refused = {"message": "load failed: RuntimeError: 7 joints, got 6", "ago_s": 130.0}

    lines = drawn(status_view.render({**status(), "refused": refused}), 120)

    assert any(
        "not updated" in line and "2 min ago: load failed: RuntimeError: 7 joints, got 6" in line for line in lines
    )


def test_a_screen_has_as_many_clients_as_lines_and_says_how_many_are_missing() -> None:
    now = {**status(), "clients": [client(number) for number in range(30)], "clients_total": 33}

    short = drawn(status_view.render(now, fills_screen=True), 120, height=30)
    tall = drawn(status_view.render(now, fills_screen=True), 120, height=100)

    assert len(short) == 30
    shown = sum("camera_robot.py" in line for line in short)
    assert 0 < shown < 30 and short[-1] == f"and {33 - shown} more clients: shmserve-admin clients"
    assert sum("camera_robot.py" in line for line in tall) == 30
    assert len(drawn(status_view.render(now), 120, height=10)) == len(tall), "what scrolls has all of them"


def test_the_head_of_the_rates_is_of_all_clients_and_the_engine() -> None:
    view, before, now = TopView(fills_screen=False), status(), status()
    now["requests"] |= {"served": before["requests"]["served"] + 800, "failed": 20}
    now["engine"] |= {"busy_s": 6.9, "cpu_s": 8.0}
    bounds = [0.0, 1000.0, 3000.0]  # 800 requests waited 2 ms: 0.8 of one at any time within two seconds

    drawn(view.render(Sample(0.0, before, bounds, {"queued": [0, 0], "total": [0, 0]})), 120)
    lines = drawn(view.render(Sample(2.0, now, bounds, {"queued": [0, 800], "total": [0, 800]})), 120)

    assert lines[1] == "400.0 requests/s served, 10.0/s failed, 0.8 waiting on average"
    assert lines[2] == "engine 1234568, busy with requests 95 %, 0.50 processors, 412 MiB resident"


def test_an_engine_that_was_replaced_has_no_rates_of_its_predecessor() -> None:
    view, now = TopView(fills_screen=False), status()
    now["engine"] |= {"pid": 7, "busy_s": 0.1, "cpu_s": 0.2}

    drawn(view.render(Sample(0.0, status(), [0.0, 1.0], {"total": [0]})), 120)
    lines = drawn(view.render(Sample(1.0, now, [0.0, 1.0], {"total": [0]})), 120)

    assert lines[2] == "engine 7, 412 MiB resident"


@pytest.mark.parametrize(("state", "error"), [("failed", "load failed: no such file"), ("draining", None)])
def test_the_rates_name_what_is_wrong_and_what_to_do(state: str, error: str | None) -> None:
    now = {**status(), "state": state, "error": error, "model": None, "engine": None, "clients": [], "clients_total": 0}

    text = "\n".join(drawn(TopView(fills_screen=False).render(Sample(0.0, now, [0.0, 1.0], {})), 120))

    assert f"arm  {state}  no model" in text and "do: " in text
    assert error is None or f"error: {error}" in text


@pytest.mark.parametrize("width", _WIDTHS)
def test_the_rates_have_whole_figures_at_any_width_and_as_much_history_as_there_is_room_for(width: int) -> None:
    view = TopView(fills_screen=False)
    stages: dict[str, Sequence[int]] = {"queued": [0, 0], "total": [0, 0]}
    for second in range(60):
        stages = {stage: [counts[0] + 1000, counts[1] + 1] for stage, counts in stages.items()}
        now = status()
        for each in now["clients"]:
            each["served"] += 1234 * second
        shown = view.render(Sample(float(second), now, [0.0, 100.0, 200.0], stages))
    lines = drawn(shown, width)

    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    assert "1,001" in text or width < 60
    assert "1,234.0" in text and "p50" in text and "p99" in text
    bars = max(line.count("█") for line in lines)
    assert bars == {40: 0, 60: 10, 80: 20, 120: 40, 200: 40}[width]
    assert ("not shown at" in text) == (width < 120)
    assert "q quits" in text.replace("\n", " ")


@pytest.mark.parametrize("width", _WIDTHS)
def test_a_setting_has_its_whole_value_at_any_width(width: int) -> None:
    path = "/srv/models/left-arm/with/a/long/name/that/goes/on"
    settings = [
        {"key": "model_path", "value": path, "origin": "flag --model-path", "reloadable": False, "waiting": None},
        {"key": "max_channel_bytes", "value": 1 << 30, "origin": "default", "reloadable": True, "waiting": None},
        {"key": "max_attach_rate_per_user", "value": 4.0, "origin": "default", "reloadable": True, "waiting": None},
    ]

    lines = drawn(settings_view.render(settings), width)

    assert max(map(len, lines)) <= width
    assert "1073741824" in "\n".join(lines)
    settings_lines = [line for line in lines if not line.startswith("not shown at")]
    assert "".join(line[26:].split("  ")[0] for line in settings_lines[1:-2]) == f'"{path}"'
    assert ("live" in "\n".join(lines)) == (width > 40)


@pytest.mark.parametrize("width", _WIDTHS)
def test_a_version_is_named_whole_and_its_note_takes_the_lines_that_it_needs(width: int) -> None:
    note = "load failed: ValueError: the weights are of another network, as their shapes tell; see the training log"
    version = {"version": "2a165e74c8828df1", "serving": False, "standby": False, "previous": True, "added_s": 1e9}
    facts = {"release": 0, "size_bytes": 678, "served": 87_654_321, "device": "cpu", "source": "models/arm", "note": ""}

    lines = drawn(versions_view.render([{**version, **facts, "rolled_back": None, "refused": note}]), width)

    assert max(map(len, lines)) <= width
    assert "2a165e74c8828df1" in lines[1] and "previous" in lines[1]
    column = lines[0].index("note")
    shown = "".join(line[column:] for line in lines[1:] if not line.startswith("not shown at"))
    assert shown.replace(" ", "") == f"refused: {note}".replace(" ", "")
    assert ("87,654,321" in lines[1]) == (width >= 80)
