"""Fairness index of several clients."""

from __future__ import annotations

from collections.abc import Sequence


def jain_index(shares: Sequence[float]) -> float:
    """Return (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one has everything (Jain, Chiu, Hawe 1984).

    >>> jain_index([5, 5, 5]), jain_index([1, 0]), round(jain_index([11114, 219, 69]), 2)
    (1.0, 0.5, 0.35)
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
