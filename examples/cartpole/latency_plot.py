"""A picture of how long every answer of a drive took, beside the control period."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from drive import Drive

matplotlib.use("Agg")  # draws into the file; there may be no display

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator


def plot_latency(drive: Drive, period_ms: float, path: Path) -> None:
    """Write a PNG: the round trip of every request over time, and the share of requests that took longer."""
    figure, (over_time, distribution) = pyplot.subplots(
        1, 2, figsize=(12.5, 5), layout="constrained", width_ratios=(3, 2)
    )
    _draw_over_time(over_time, drive, period_ms)
    _draw_percentiles(distribution, drive, period_ms)

    least = min(drive.model_ms.min(), 0.5) / 1.5
    most = max(drive.round_trip_ms.max(), period_ms) * 3
    over_time.set_ylim(least, most)
    distribution.set_xlim(least, most)
    for axes, axis in ((over_time, over_time.yaxis), (distribution, distribution.xaxis)):
        axes.grid(alpha=0.3)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    late = drive.missed_by_answers(period_ms)
    figure.suptitle(
        f"CartPole from camera frames: {len(drive.round_trip_ms)} requests of three 600 x 400 RGB frames\n"
        f"{drive.missed} beats missed: {late} after a late answer, {drive.missed - late} by answer and own work "
        "(camera, physics) together"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_over_time(axes: Axes, drive: Drive, period_ms: float) -> None:
    axes.plot(drive.asked_s, drive.round_trip_ms, ".", markersize=3, color="tab:blue", label="round trip")
    axes.plot(drive.asked_s, drive.model_ms, ".", markersize=1, color="0.6", label="the model's part of it")
    axes.axhline(period_ms, color="tab:red", label=f"control period, {period_ms:g} ms")
    late = drive.round_trip_ms > period_ms
    for marker, why, chosen in (("x", "after a late answer", late), ("|", "by answer and own work together", ~late)):
        beats = drive.asked_s[(drive.missed_after > 0) & chosen]
        if len(beats):
            # At the top, whatever the scale: (data, axes) coordinates.
            at_top = axes.get_xaxis_transform()
            height = np.full(len(beats), 0.97 if marker == "x" else 0.93)
            axes.plot(beats, height, marker, color="black", markersize=6, transform=at_top, label=f"beat missed {why}")
    for switched_s, version in zip(drive.switched_s, drive.versions[1:], strict=True):
        axes.axvline(switched_s, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f" model replaced: {version[:8]} answers",
            (switched_s, 0.87),
            xycoords=("data", "axes fraction"),
            ha="left" if switched_s < drive.asked_s[-1] / 2 else "right",
            fontsize=9,
        )
    axes.set(xlabel="time, s", ylabel="round trip, ms", yscale="log", title="each request")


def _draw_percentiles(axes: Axes, drive: Drive, period_ms: float) -> None:
    """Draw the percentiles on an axis that is stretched towards 100 %, so that the slowest requests are visible."""
    round_trip = np.sort(drive.round_trip_ms)
    count = len(round_trip)
    longer = 1 - np.arange(count) / count  # the share that took as long or longer
    axes.step(round_trip, -np.log10(longer), where="post", color="tab:blue", label="round trip")
    axes.axvline(period_ms, color="tab:red", label=f"control period, {period_ms:g} ms")
    for percent, name, style in ((50, "median", "--"), (99, "p99", ":")):
        value = np.percentile(round_trip, percent)
        axes.axvline(value, color="0.4", linestyle=style, label=f"{name}, {value:.2f} ms")
    ticks = [percent for percent in (0, 50, 90, 99, 99.9, 99.99) if 100 - percent >= 100 / count]
    axes.set_yticks([-math.log10(1 - percent / 100) for percent in ticks], [f"{percent:g} %" for percent in ticks])
    axes.set(xlabel="round trip, ms", ylabel="percentile", xscale="log", title="percentiles")
    axes.set_ylim(bottom=0)
