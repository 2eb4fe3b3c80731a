"""Comparison of a short run with the stored results, by ratios and never by times: `python -m bench.check`.

The exit status is 1 if a ratio is worse than the stored one by more than its tolerance in two runs: a ratio that is
worse once is measured again, because a machine has slow moments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import ratios, results, run
from bench.peers.leftovers import sweep
from bench.peers.peer import terminate_by_exception
from bench.ratios import Ratio
from bench.results import Document


def plan(seconds: float) -> run.Plan:
    """Return the plan for the ratios; it needs no package that a developer would have to install."""
    return run.Plan(
        seconds=seconds,
        parts=("closed_loop", "varying", "scale"),
        peers=ratios.WAYS,
        workloads=ratios.WORKLOADS,
        scales=tuple(dict.fromkeys(benchmark for benchmark, _ in ratios.SCALES)),
    )


def compare(kept: Document, now: Document) -> list[tuple[Ratio, float | None]]:
    """Pair every stored ratio with its current value, or None if this run could not measure it."""
    found = {ratio.name: ratio.value for ratio in ratios.ratios(now)}
    return [(ratio, found.get(ratio.name)) for ratio in ratios.ratios(kept)]


def better(first: float | None, second: float | None, ratio: Ratio) -> float | None:
    """Return the better of two values of a ratio."""
    known = [value for value in (first, second) if value is not None]
    if not known:
        return None
    return min(known) if ratio.lower_is_better else max(known)


def bad(compared: Sequence[tuple[Ratio, float | None]]) -> list[str]:
    return [ratio.name for ratio, now in compared if now is None or ratio.regressed(now)]


def table(compared: Sequence[tuple[Ratio, float | None]]) -> Table:
    shown = Table("ratio", "kept", "allowed", "now", "")
    for ratio, now in compared:
        sign = "≤" if ratio.lower_is_better else "≥"
        verdict = "not measured" if now is None else "worse" if ratio.regressed(now) else ""
        shown.add_row(
            ratio.name,
            f"{ratio.value:.3g}",
            f"{sign} {ratio.worst_allowed():.3g}",
            "" if now is None else f"{now:.3g}",
            verdict,
            style="red" if verdict else None,
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, default=results.path_of(results.REFERENCE), help="the results kept")
    parser.add_argument("--results", type=Path, help="compare these instead of measuring")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way and workload; default 1")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    try:
        kept = results.read(options.against)
    except FileNotFoundError:
        parser.error(f"{options.against} does not exist: make bench writes it")
    if options.results:
        compared = compare(kept, results.read(options.results))
    else:
        terminate_by_exception()
        sweep()
        compared = measured(kept, options.seconds, console)
    console.print(table(compared))
    worse = bad(compared)
    for name in worse:
        console.print(f"worse than what is kept: {name}", style="red")
    return int(bool(worse))


def measured(kept: Document, seconds: float, console: Console) -> list[tuple[Ratio, float | None]]:
    """Run once, and a second time if a ratio is worse in the first."""
    first = run.Run(plan(seconds), console, _forget).run()
    if not same_machine(kept, first):
        console.print("The stored results are from another machine: ratios differ less than times, but they do differ.")
    compared = compare(kept, first)
    if not bad(compared):
        return compared
    console.print(f"measured once more, because of: {'; '.join(bad(compared))}")
    again = compare(kept, run.Run(plan(seconds), console, _forget).run())
    return [(ratio, better(one, two, ratio)) for (ratio, one), (_, two) in zip(compared, again, strict=True)]


def same_machine(kept: Document, now: Document) -> bool:
    return all(kept["machine"][key] == now["machine"][key] for key in ("cpu", "cpus", "kernel"))


def _forget(document: Document) -> None:
    """Store nothing."""


if __name__ == "__main__":
    sys.exit(main())
