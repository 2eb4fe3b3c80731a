"""The committed inputs: one file for each target, one input a line in base64. Found by coverage-guided runs, or once a bug."""

from __future__ import annotations

import base64
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "corpus"


def read(name: str) -> list[bytes]:
    """The inputs kept for a target, in the order of the file."""
    path = _FOLDER / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def add(name: str, inputs: list[bytes]) -> int:
    """Keep these, too, shortest first; returns how many were new."""
    known = read(name)
    fresh = sorted(set(inputs) - set(known), key=lambda data: (len(data), data))
    _FOLDER.mkdir(exist_ok=True)
    lines = [base64.b64encode(data).decode() + "\n" for data in (*known, *fresh) if data]
    (_FOLDER / f"{name}.txt").write_text("".join(lines))
    return len(fresh)
