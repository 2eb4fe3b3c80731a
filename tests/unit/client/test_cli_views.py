"""What shmserve-admin draws on terminals of any width: columns go, figures and names stay whole."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console, RenderableType

from shmserve.client.cli import settings_view, status_view, versions_view
from shmserve.client.cli.top_view import Sample, TopView

_WIDTHS = (40, 60, 80, 120, 200)


def drawn(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def client(number: int) -> dict[str, Any]:
    facts = {"id": number, "program": "camera_robot.py", "pid": 1_234_567, "uid": 1000, "trusted": True, "slots": 4}
    return {**facts, "served": 87_654_321, "errors": 12, "last_s": 0.0042, "attached_s": 3700.0}


def status() -> dict[str, Any]:
    quantiles = {"count": 9, "p50_us": 123.4, "p90_us": 2500.0, "p99_us": 34_567.8, "p999_us": 3_411_810.0}
    words = ("served", "failed", "rejected", "expired", "stale", "cancelled", "superseded", "lost")
    return {
        "service": "arm",
        "state": "ready",
        "error": None,
        "model": {"name": "reach", "version": "2a165e74c8828df1", "device": "cpu"},
        "engine": {"pid": 1_234_568, "restarts": 0, "heartbeat_age_s": 0.02},
        "rolled_back": None,
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
    for whole in ("87654321", "123.4 us", "34.57 ms", "served"):
        assert whole in text
    assert "/home/anna/robots/left-arm/logs/shmserved.log" in "".join(line.strip() for line in lines)
    assert ("attached" in text) == ("1 h 1 min" in text) == (width >= 120)


def test_a_status_says_whose_the_daemon_and_its_directory_are() -> None:
    whose = {"uid": 61_234, "user": None, "runtime_dir": "/srv/run", "runtime_dir_uid": 0, "runtime_dir_user": "root"}

    lines = drawn(status_view.render({**status(), **whose}), 160)

    assert any("daemon" in line and "pid 1234566 of uid 61234, up " in line for line in lines)
    assert any("runtime dir" in line and "/srv/run of uid 0 (root)" in line for line in lines)


@pytest.mark.parametrize("width", _WIDTHS)
def test_the_rates_have_whole_figures_at_any_width_and_as_much_history_as_there_is_room_for(width: int) -> None:
    view = TopView()
    stages: dict[str, Sequence[int]] = {"queued": [0, 0], "total": [0, 0]}
    for second in range(60):
        stages = {stage: [counts[0] + 1000, counts[1] + 1] for stage, counts in stages.items()}
        now = status()
        for each in now["clients"]:
            each["served"] += 1234 * second
        lines = drawn(view.render(Sample(float(second), now, [0.0, 100.0, 200.0], stages)), width)

    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    assert "1001" in text or width < 60
    assert "1234.0" in text and "p50" in text and "p99" in text
    bars = max(line.count("█") for line in lines)
    assert bars == {40: 0, 60: 10, 80: 20, 120: 40, 200: 40}[width]
    assert "q ends" in lines


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
    assert "".join(line[26:].split("  ")[0] for line in lines[1:-2]) == f'"{path}"'
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
    shown = "".join(line[column:] for line in lines[1:])
    assert shown.replace(" ", "") == f"refused: {note}".replace(" ", "")
    assert ("87654321" in lines[1]) == (width >= 80)
