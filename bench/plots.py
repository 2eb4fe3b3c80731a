"""Pictures in docs/images: latency against payload, the distribution of round trips, the stages of a request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.rows import QUANTILES
from bench.results import Document
from bench.stages import STAGES

#: Name of the file, and its alternative text.
PICTURES = {
    "latency-by-payload.png": "Round trip against the size of the observation, one client, median",
    "distribution.png": "How the round trips of each way are distributed, one client",
    "stages.png": "The stages of a request, medians of the timing in the replies",
}
DISTRIBUTION_OF = "vga"

OURS = {
    "shmserve": "#c2410c",
    "shmserve-in-place": "#ea580c",
    "shmserve-sealed": "#b45309",
    "shmserve-blocking": "#fdba74",
    "shmserve-max-age": "#9a3412",
    "shmserve-pure": "#fed7aa",
}
OTHERS = ("#1d4ed8", "#0891b2", "#15803d", "#7c3aed", "#be185d", "#a16207", "#475569", "#0f766e", "#9333ea", "#65a30d")
FLOOR = "#9ca3af"
MARKERS = "osDv^<>Pp*h"
STAGE_COLOURS = {
    "queued": "#cbd5e1",
    "staged": "#1d4ed8",
    "infer": "#15803d",
    "copied": "#a16207",
    "client": "#c2410c",
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
    """Draw round trip against payload on logarithmic axes, the legend in the order of the lines' right ends."""
    figure, axes = _axes("bytes of arrays in the observation", "round trip, p50, µs")
    workloads = sorted(document["closed_loop"].values(), key=lambda found: found["array_bytes"])
    lines: dict[str, list[tuple[int, float]]] = {}
    for found in workloads:
        for row in measured(found["rows"]):
            lines.setdefault(row["name"], []).append((found["array_bytes"], row["p50_us"]))
    styles = styles_of(list(lines))
    for name in sorted(lines, key=lambda name: -lines[name][-1][1]):
        payload, latency = zip(*lines[name], strict=True)
        axes.plot(payload, latency, label=name, **styles[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    _legend(axes)
    return figure


def distribution(document: Document) -> Any:
    """Draw the share of requests answered within a time."""
    figure, axes = _axes(f"round trip, {DISTRIBUTION_OF}, µs", "share of requests answered by then")
    rows = measured(document["closed_loop"][DISTRIBUTION_OF]["rows"])
    styles = styles_of([row["name"] for row in rows])
    for row in sorted(rows, key=lambda row: -row["p50_us"]):
        style = {**styles[row["name"]], "marker": None}
        axes.plot(row["quantiles_us"], [percent / 100 for percent in QUANTILES], label=row["name"], **style)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    _legend(axes)
    return figure


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
                label = STAGE_NAMES[stage] if row == 0 else None
                axes.barh(row, medians[stage], left=start, color=STAGE_COLOURS[stage], label=label, height=0.7)
                start += medians[stage]
        axes.set_yticks(range(len(ways)), list(ways))
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("µs")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "failed" not in row]


def styles_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a style for each way: shmserve strong, the floors grey and dashed, each other way in a separate colour."""
    styles: dict[str, dict[str, Any]] = {}
    others = 0
    for name in names:
        if name in OURS:
            styles[name] = {"color": OURS[name], "linewidth": 2.4, "marker": "o", "markersize": 5, "zorder": 3}
        elif name.startswith(("C,", "Python,")) or name == "in-process":
            dashes = {"C": (0, (4, 2)), "P": (0, (1, 1.5)), "i": (0, (6, 2, 1, 2))}[name[0]]
            styles[name] = {"color": FLOOR, "linewidth": 1.1, "linestyle": dashes, "marker": None}
        else:
            colour, marker = OTHERS[others % len(OTHERS)], MARKERS[(others + 1) % len(MARKERS)]
            styles[name] = {"color": colour, "linewidth": 1.3, "marker": marker, "markersize": 4}
            others += 1
    return styles


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
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)


def _save(figure: Any, path: Path) -> None:
    # Without a date inside, the same figures give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
