"""Number type of the command line, which rejects NaN."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A float within limits; click's own type accepts NaN."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        found = super().convert(value, parameter, context)
        if math.isnan(found):
            self.fail(f"{value} is not a number.", parameter, context)
        return found
