"""Figures of one run, as a JSON document in `bench/results`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")
REFERENCE = "reference"
FORMAT = 1
#: Significant digits; more would only make two runs look more different than they are.
DIGITS = 4

Document = dict[str, Any]


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
