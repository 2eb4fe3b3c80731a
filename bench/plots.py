"""Pictures in docs/images: latency against payload, the distribution of round trips, the stages of a request.

A picture shows the ways that differ visibly; the tables have all. Each line has its own marker and dashes, each stage its own
hatching, so that a print in black and white can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.rows import QUANTILES
from bench.results import Document
from bench.stages import STAGES

#: Name of the file, and its alternative text.
PICTURES = {
    "latency-by-payload.png": "Round trip against the size of the observation, one client, median",
    "distribution.png": "Round trip against the share of requests that take longer, to the slowest of each way, one client",
    "stages.png": "The stages of a request, medians of the timing in the replies",
}
DISTRIBUTION_OF = "vga"


@dataclass(frozen=True)
class Line:
    """How a way is drawn."""

    label: str
    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str | None
    is_own: bool = False
    is_hollow: bool = False

    def style(self) -> dict[str, Any]:
        """Return the arguments of plot()."""
        width = 2.4 if self.is_own else 1.4
        face = "white" if self.is_hollow else self.colour
        return {
            "label": self.label,
            "color": self.colour,
            "linestyle": self.dashes,
            "linewidth": width,
            "marker": self.marker,
            "markersize": 6,
            "markerfacecolor": face,
            "zorder": 3 if self.is_own else 2,
        }


_OWN = "#c2410c"
#: The ways in the pictures, in the order of the legend; the colours differ for the colour-blind as well.
LINES = {
    "lerobot-grpc": Line("LeRobot's gRPC", "#009e73", (0, (5, 2)), "D"),
    "flask-pickle": Line("Flask + pickle", "#4b9cd3", "-", "s"),
    "openpi-websocket": Line("openpi's websocket", "#b05a8c", (0, (6, 2, 1, 2)), "^"),
    "gr00t-zmq-tcp": Line("GR00T's ZeroMQ", "#0a4f8f", (0, (1, 1.2)), "v"),
    "unix-socket-pickle5": Line("Unix socket, pickle 5", "#a1700b", (0, (3, 1.5)), "P"),
    "iceoryx2-event": Line("iceoryx2, events", "#4d4d4d", "-", "X"),
    "shmserve": Line("shmserve", _OWN, "-", "o", is_own=True),
    "shmserve-in-place": Line("shmserve, reads in place", _OWN, (0, (4, 1.5)), "o", is_own=True, is_hollow=True),
    "C, 1 copy, sleep": Line("floor: C, one copy, sleeping", "black", (0, (1, 2)), None),
}
#: Percentiles at which a distribution has its line's marker.
_MARKED = (50, 90, 99, 99.9)
#: Colour and hatching.
STAGE_STYLES = {
    "queued": ("#e2e8f0", ""),
    "staged": ("#1d4ed8", "////"),
    "infer": ("#86c79a", ""),
    "copied": ("#a16207", "xxxx"),
    "client": ("#f4a582", ".."),
}
STAGE_NAMES = {
    "queued": "until the engine takes it",
    "staged": "checked and copied in",
    "infer": "the policy",
    "copied": "reply encoded",
    "client": "in the client: encode, notice, decode",
}


def draw(document: Document, folder: Path) -> None:
    """Draw every picture for which this run has the figures."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    if document.get("closed_loop"):
        _save(latency_by_payload(document), folder / "latency-by-payload.png")
    if DISTRIBUTION_OF in document.get("closed_loop", {}):
        _save(distribution(document), folder / "distribution.png")
    if document.get("stages"):
        _save(stage_bars(document), folder / "stages.png")


def latency_by_payload(document: Document) -> Any:
    """Draw round trip against payload on logarithmic axes."""
    figure, axes = _axes("bytes of arrays in the observation", "round trip, median, µs")
    workloads = sorted(document["closed_loop"].items(), key=lambda item: item[1]["array_bytes"])
    for way, line in LINES.items():
        points = [
            (found["array_bytes"], row["p50_us"])
            for _, found in workloads
            for row in measured(found["rows"])
            if row["name"] == way
        ]
        if points:
            axes.plot(*zip(*points, strict=True), **line.style())
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    for name, found in workloads:
        axes.annotate(name, (found["array_bytes"], 1.0), (0, 3), xycoords=("data", "axes fraction"), **_ABOVE)
    _legend(axes)
    return figure


def distribution(document: Document) -> Any:
    """Draw round trip against the share of requests that take longer, on an axis that shows the slowest as well."""
    figure, axes = _axes(f"round trip, {DISTRIBUTION_OF}, µs", "percentile")
    rows = {row["name"]: row for row in measured(document["closed_loop"][DISTRIBUTION_OF]["rows"])}
    highest = 0.0
    for way, line in LINES.items():
        if way not in rows:
            continue
        points = tail(rows[way]["quantiles_us"], rows[way]["requests"])
        marked = [number for number, (percent, _) in enumerate(points) if percent in _MARKED]
        heights = [nines(percent) for percent, _ in points]
        axes.plot([us for _, us in points], heights, **{**line.style(), "markevery": marked or None})
        highest = max(highest, *heights)
    ticks = [percent for percent in (0, 50, *_MARKED[1:], 99.99) if nines(percent) <= highest + 0.1]
    axes.set_yticks([nines(percent) for percent in ticks], [f"{percent:g} %" for percent in ticks])
    axes.set_ylim(0, highest * 1.03)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _legend(axes)
    return figure


def nines(percent: float) -> float:
    """Return the height of a percentile: equal distances from 90 % to 99 % to 99.9 %.

    >>> nines(0), round(nines(99.9), 6)
    (0.0, 3.0)
    """
    return -math.log10(1 - percent / 100) or 0.0


def tail(quantiles_us: Sequence[float], requests: int) -> list[tuple[float, float]]:
    """Return (percentile, duration) as far as that many requests tell them apart, and the slowest at the end.

    >>> points = tail([10.0] * 100 + [20.0, 30.0, 40.0, 50.0], 500)
    >>> points[-3:]
    [(99, 10.0), (99.5, 20.0), (99.8, 50.0)]
    """
    last = 100 * (1 - 1 / requests)
    told = [(percent, us) for percent, us in zip(QUANTILES, quantiles_us, strict=True) if percent < last]
    return [*told, (round(last, 6), quantiles_us[-1])]


def stage_bars(document: Document) -> Any:
    """Draw one panel for each workload: beside a large observation's bar a tiny one's would not be visible."""
    from matplotlib.figure import Figure

    workloads = document["stages"]["workloads"]
    figure = Figure(figsize=(9, 1.1 + 1.1 * len(workloads)), layout="constrained")
    panels = figure.subplots(len(workloads), 1, squeeze=False)[:, 0]
    for axes, (name, ways) in zip(panels, workloads.items(), strict=True):
        for row, medians in enumerate(ways.values()):
            start = 0.0
            for stage in STAGES:
                label, (colour, hatch) = STAGE_NAMES[stage] if row == 0 else None, STAGE_STYLES[stage]
                bar = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.8}
                axes.barh(row, medians[stage], left=start, label=label, height=0.7, **bar)
                start += medians[stage]
            axes.text(start, row, f" {start:,.0f} µs", va="center", fontsize=9)
        axes.set_yticks(range(len(ways)), list(ways))
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.06)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("µs")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "failed" not in row]


#: Of a text above the axes.
_ABOVE = {"textcoords": "offset points", "ha": "center", "fontsize": 9, "color": "#4b5563"}


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=4)


def _save(figure: Any, path: Path) -> None:
    # Without a date inside, the same figures give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
