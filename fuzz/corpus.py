"""Committed inputs: a file for each target, an input per line in base64, from coverage-guided runs or of fixed bugs."""

from __future__ import annotations

import base64
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "corpus"


def read(name: str) -> list[bytes]:
    """Return the stored inputs of a target, in the order of the file."""
    path = _FOLDER / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def add(name: str, inputs: list[bytes]) -> int:
    """Add these inputs, shortest first; return the number of new ones."""
    known = read(name)
    fresh = sorted(set(inputs) - set(known), key=lambda data: (len(data), data))
    _FOLDER.mkdir(exist_ok=True)
    lines = [base64.b64encode(data).decode() + "\n" for data in (*known, *fresh) if data]
    (_FOLDER / f"{name}.txt").write_text("".join(lines))
    return len(fresh)
