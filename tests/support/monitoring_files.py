"""The dashboard and the alert rules of docs/monitoring, and the queries in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .folders import REPOSITORY

FOLDER = REPOSITORY / "docs" / "monitoring"
RULES = FOLDER / "shmserve.rules.yml"
DASHBOARD = FOLDER / "shmserve-dashboard.json"

_METRIC = re.compile(r"\b((?:shmserve|node)_\w+)\b(?!\s*=)")
#: What stands in a query for a choice of the dashboard's user.
_VARIABLES = {"$service": ".*", "$instance": ".*", "$__rate_interval": "1m"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries, as Prometheus takes them."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], filled_in(target["expr"])
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], filled_in(annotation["expr"])


def filled_in(query: str) -> str:
    """Return a query without the dashboard's variables."""
    for variable, value in _VARIABLES.items():
        query = query.replace(variable, value)
    return query


def rule_lines() -> Iterator[str]:
    """Yield the lines of the rules that are queries."""
    lines = iter(RULES.read_text().splitlines())
    for line in lines:
        if line.strip() == "expr: |":
            for following in lines:
                if not following.startswith(" " * 10):
                    break
                yield following
        elif "expr:" in line:
            yield line


def metrics_in(query: str) -> set[str]:
    """Return the names of the metrics in a query, not those of labels.

    >>> sorted(metrics_in('rate(shmserve_a_total{shmserve_state="ready", b="node_c"}[5m]) - node_d'))
    ['node_d', 'shmserve_a_total']
    """
    return set(_METRIC.findall(re.sub(r'"[^"]*"', "", query)))
