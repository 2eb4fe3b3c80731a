"""A picture of how long every answer of a drive took, beside the control period."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from drive import Drive

matplotlib.use("Agg")  # draws into the file; there may be no display

from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator


def plot_latency(drive: Drive, period_ms: float, path: Path) -> None:
    """Write a PNG: the round trip of every request over time, and how many took at most how long."""
    round_trip = np.sort(drive.round_trip_ms)
    figure, (over_time, distribution) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")

    over_time.plot(drive.asked_s, drive.round_trip_ms, ".", markersize=3, label="round trip")
    over_time.plot(drive.asked_s, drive.model_ms, ".", markersize=1, color="tab:grey", label="of it the model")
    over_time.axhline(period_ms, color="tab:red")
    over_time.set(xlabel="time, s", ylabel="round trip, ms", yscale="log", title="each request")
    over_time.legend(loc="upper right")

    distribution.step(round_trip, np.arange(1, len(round_trip) + 1) / len(round_trip) * 100, where="post")
    distribution.axvline(period_ms, color="tab:red", label=f"control period {period_ms:g} ms")
    for percent, name, style in ((50, "median", "--"), (99, "p99", ":")):
        value = np.percentile(round_trip, percent)
        distribution.axvline(value, color="grey", linestyle=style, label=f"{name} {value:.2f} ms")
    distribution.set(
        xlabel="round trip, ms", ylabel="answered within, %", xscale="log", title="cumulative distribution"
    )
    distribution.legend(loc="upper left")

    least, most = min(drive.model_ms.min(), 0.5) / 1.5, max(round_trip[-1], period_ms) * 3
    over_time.set_ylim(least, most)
    distribution.set_xlim(least, most)
    for axes, axis in ((over_time, over_time.yaxis), (distribution, distribution.xaxis)):
        axes.grid(alpha=0.3, which="both")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    figure.suptitle(
        f"CartPole from camera frames: {len(round_trip)} requests of three 600 x 400 RGB frames, "
        f"{drive.missed} beats missed"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
