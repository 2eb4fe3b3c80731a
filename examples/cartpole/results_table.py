"""The results of a drive as tables for a terminal."""

from __future__ import annotations

import numpy as np
from drive import Drive
from rich.console import Group
from rich.table import Table


def results_table(drive: Drive, required_mean: float, period_ms: float) -> Group:
    """How well the robot did, and how fast it was answered beside what its beat allows."""
    returns = Table("episode", "seed", "return", title="balanced from camera frames", title_justify="left")
    for episode, (seed, total) in enumerate(zip(drive.seeds, drive.returns, strict=True), start=1):
        returns.add_row(str(episode), str(seed), f"{total:.0f}")
    returns.add_section()
    passed = drive.mean_return >= required_mean
    colour = "green" if passed else "red"
    verdict = f"{drive.mean_return:.1f} {'of the' if passed else 'is less than the'} {required_mean:.0f} required"
    returns.add_row("mean", "", f"[{colour}]{verdict}[/]")

    answers = Table(
        "round trip", "ms", f"of {period_ms:g} ms", title=f"{len(drive.round_trip_ms)} requests", title_justify="left"
    )
    for column in answers.columns[1:]:
        column.justify = "right"

    def row(name: str, value_ms: float) -> None:
        answers.add_row(name, f"{value_ms:.2f}", f"{value_ms / period_ms:.0%}")

    row("median", float(np.median(drive.round_trip_ms)))
    row("p99", float(np.percentile(drive.round_trip_ms, 99)))
    row("max", float(drive.round_trip_ms.max()))
    answers.add_section()
    row("model alone, median", float(np.median(drive.model_ms)))
    row("all the rest, median", float(np.median(drive.round_trip_ms - drive.model_ms)))
    answers.add_section()
    answers.add_row("first request", f"{drive.first_ms:.2f}", "before the clock")
    beats = len(drive.round_trip_ms) + drive.missed
    answers.add_row("beats missed", str(drive.missed), f"of {beats}")
    late = drive.missed_by_answers(period_ms)
    answers.add_row("  after a late answer", str(late), "")
    answers.add_row("  by answer and own work together", str(drive.missed - late), "camera, physics")
    versions = ", then ".join(drive.versions)
    return Group(returns, answers, f"answered by model version {versions}")
