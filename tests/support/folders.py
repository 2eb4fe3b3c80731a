"""Folders of the checkout."""

from __future__ import annotations

from pathlib import Path

#: The checkout.
REPOSITORY = Path(__file__).resolve().parents[2]
#: Policies, robots and stand-ins for the tests.
SUPPORT = REPOSITORY / "tests" / "support"
