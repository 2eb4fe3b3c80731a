"""The dashboard and the alert rules ask for metrics that the daemon has, with labels that these have."""

from __future__ import annotations

import re
from dataclasses import replace

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from shmserve.client.cli.monitor import older_format
from shmserve.daemon.api.metrics import openmetrics
from shmserve.daemon.host.process_usage import ProcessUsage
from shmserve.daemon.ipc.stats import BUCKET_BOUNDS_US, Counter, Distribution, Stage
from shmserve.daemon.supervisor import ClientStatus, ServiceState
from tests.support.monitoring_files import FOLDER, RULES, dashboard, metrics_in, queries, rule_lines
from tests.unit.daemon.supervisor.test_status import ENGINE, status

#: Of node_exporter itself.
_FOREIGN = {"node_textfile_mtime_seconds"}


def full_text(name: str = "arm") -> str:
    """The metrics of a service that has everything: clients, an engine, a link to a remote model."""
    counts = Distribution((1,) * (len(BUCKET_BOUNDS_US) - 1))
    return openmetrics(
        replace(
            status(ServiceState.READY, replace(ENGINE, usage=ProcessUsage(1.0, 2))),
            name=name,
            model={"name": "m", "version": "v", "device": "cpu", "remote": {"reason": None}},
            clients=(ClientStatus(0, 1, 2, "robot.py", True, 3.0, 4, 5, 6, 7, None),),
            counters={counter.name.lower(): 1 for counter in Counter},
            latency=dict.fromkeys(Stage, counts),
        )
    )


def known(text: str) -> dict[str, set[str]]:
    """The labels of each metric."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_and_the_rules_ask_for_metrics_that_exist() -> None:
    metrics = known(full_text())
    asked = {name for query in [*rule_lines(), *(query for _, query in queries())] for name in metrics_in(query)}

    assert asked - metrics.keys() == _FOREIGN
    assert len(asked) > 15


def test_the_dashboard_chooses_by_labels_that_every_metric_has() -> None:
    metrics = known(full_text())

    for title, query in queries():
        for name, selector in re.findall(r"(shmserve_\w+)\{([^}]*)\}", query):
            labels = {*re.findall(r"(\w+)[=!]~?\"", selector)}
            assert labels <= metrics[name] | {"instance", "job"}, (title, name)
            assert {"service", "instance"} <= labels, (title, name)


def test_every_sample_names_its_service() -> None:
    assert {name for name, labels in known(full_text()).items() if "service" not in labels} == set()


def test_the_text_for_node_exporter_has_only_types_of_the_older_format_and_the_same_samples() -> None:
    text = full_text()

    older = older_format(text)

    assert {line.split()[3] for line in older.splitlines() if line.startswith("# TYPE")} == {
        "counter",
        "gauge",
        "histogram",
    }
    assert {re.split(r"[ {]", line)[0] for line in older.splitlines() if not line.startswith("#")} == known(text).keys()


def test_the_panels_have_numbers_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["fieldConfig"]["defaults"]["unit"])


def test_the_state_panel_knows_every_state() -> None:
    (panel,) = (panel for panel in dashboard()["panels"] if panel["title"] == "State")
    names = [each["text"] for each in panel["fieldConfig"]["defaults"]["mappings"][0]["options"].values()]

    assert set(names) == {state.value for state in ServiceState}
    for number, name in enumerate(names):
        assert (
            f'{number} * shmserve_state{{service=~"$service", instance=~"$instance", shmserve_state="{name}"}}'
            in (panel["targets"][0]["expr"])
        )


def test_the_page_lists_the_alerts_and_names_only_metrics_that_exist() -> None:
    page = (FOLDER.parent / "how-to/monitoring.md").read_text()
    metrics = known(full_text())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics}

    assert re.findall(r"^\| `(Shmserve\w+)` \|", page, re.MULTILINE) == re.findall(r"- alert: (\w+)", RULES.read_text())
    named = set(re.findall(r"`(shmserve_\w+)`", page)) - {"shmserve_state"}
    assert named - families == set() and len(named) > 15


def test_every_alert_has_a_severity_and_says_what_happened_and_what_to_do() -> None:
    alerts = re.split(r"\n\s+- alert: ", RULES.read_text())[1:]

    assert len(alerts) > 8
    for alert in alerts:
        name = alert.split("\n", 1)[0]
        assert re.search(r"labels: \{severity: (critical|warning)\}", alert), name
        assert "summary: " in alert and "description: " in alert, name
