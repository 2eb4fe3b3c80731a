"""Numbers on the command line: what is none (nan) is no number of seconds either."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A float within limits; click's own takes nan for one that is."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        found = super().convert(value, parameter, context)
        if math.isnan(found):
            self.fail(f"{value} is no number.", parameter, context)
        return found
