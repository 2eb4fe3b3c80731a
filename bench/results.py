"""Figures of one run, as a JSON document in `bench/results`."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from bench.states import QUIET

FOLDER = Path(__file__).with_name("results")
REFERENCE = "reference"
#: A later run of the states and the varying sizes alone, which the documents show for these parts if it is kept.
STATES_RUN = "states"
#: A later run of some benchmarks of bench/scale, which replaces their figures.
SCALES_RUN = "scales"
FORMAT = 1
#: Significant digits; more would only make two runs look more different than they are.
DIGITS = 4

Document = dict[str, Any]
Figures = dict[str, Any]


def part_of(document: Document, state: str) -> Document:
    """Return the figures of one state: the document's own, or a part of the same form, empty if it was not measured."""
    if state == QUIET.name:
        return document
    found: Document = document.get("states", {}).get(state, {})
    return found


def add_part(document: Document, state: str) -> Document:
    """Return the same as `part_of`, after adding it if there is none."""
    if state != QUIET.name:
        document.setdefault("states", {}).setdefault(state, {})
    return part_of(document, state)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(path: Path, document: Document) -> None:
    """Write each row of numbers on one line, so that the difference of two runs is readable."""
    text = json.dumps(rounded(document), indent=1)
    text = re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n")


def read(path: Path) -> Document:
    """Read a document; raise ValueError if its format is not this program's."""
    document: Document = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has format {document.get('format')!r}, this program reads {FORMAT}: run make bench")
    return document


def rounded(value: Any) -> Any:
    """Round every float in the tree to four digits.

    >>> rounded({"p50_us": 123.456, "rounds": [0.000123456, 7]})
    {'p50_us': 123.5, 'rounds': [0.0001235, 7]}
    """
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def p50_ratio(document: Document, workload: str, way: str, other: str) -> float | None:
    """Return the median over the rounds of the ratio of both p50 in the same round; None if either has no figures."""
    rows = [row_of(document, workload, name) for name in (way, other)]
    if rows[0] is None or rows[1] is None:
        return None
    pairs = zip(rows[0]["round_p50_us"], rows[1]["round_p50_us"], strict=True)
    ratio: float = statistics.median(one / two for one, two in pairs)
    return ratio


def rows_of(document: Document, workload: str) -> list[Figures]:
    """Return the figures of every way with one workload, without those that failed."""
    rows = document.get("closed_loop", {}).get(workload, {}).get("rows", ())
    return [row for row in rows if "failed" not in row]


def row_of(document: Document, workload: str, way: str) -> Figures | None:
    """Return the figures of one way with one workload, or None."""
    return next((row for row in rows_of(document, workload) if row["name"] == way), None)


def figure(document: Document, benchmark: str, key: str) -> Figures | None:
    """Return one figure of bench/scale, or None if it was not measured."""
    figures = document.get("scale", {}).get(benchmark, {}).get("figures", ())
    return next((one for one in figures if one["name"] == key), None)
