"""The rules and the dashboard in Prometheus' own tools, and in a running Prometheus that scrapes a running daemon."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import watchdog
from tests.support.daemon_process import SHMSERVED, Daemon, environment
from tests.support.folders import REPOSITORY
from tests.support.monitoring_files import RULES, queries

RULES_TEST = REPOSITORY / "tests" / "packaging" / "shmserve_rules_test.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    """Run promtool; its complaint is the assertion's text."""
    result = subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def metrics_file(daemon: Daemon, path: Path) -> Path:
    """The metrics of a daemon as shmserve-admin writes them for node_exporter."""
    command: list[str | Path] = [SHMSERVED.with_name("shmserve-admin"), "--runtime-dir", daemon.runtime_dir]
    command += ["--name", daemon.name, "metrics", "--textfile", path]
    result = subprocess.run(command, timeout=60, capture_output=True, env=environment(), check=False)
    assert result.returncode in (0, 3), result.stderr
    return path


@needs_promtool
def test_the_alerts_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", RULES_TEST)


def test_every_alert_is_tried() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))

    assert alerts == set(re.findall(r"Shmserve\w+", RULES_TEST.read_text()))


@needs_promtool
def test_prometheus_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [{"record": f"query_{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    rules = tmp_path / "queries.yml"
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))  # YAML holds JSON

    promtool("check", "rules", rules)


@needs_promtool
def test_prometheus_accepts_the_metrics_of_a_daemon(echo: Daemon, tmp_path: Path) -> None:
    with echo.client() as client:
        client.infer({"a": 1})

        promtool("check", "metrics", text=metrics_file(echo, tmp_path / "shmserve.prom").read_text())


# A running Prometheus


class FolderOfText(http.server.SimpleHTTPRequestHandler):
    """Serves files in Prometheus' own format, as node_exporter does."""

    extensions_map = {".prom": "text/plain; version=0.0.4"}  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder at an address of this machine."""
    handler = functools.partial(FolderOfText, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(folder: Path, target: str, path: str) -> Iterator[Callable[..., Any]]:
    """A Prometheus with the alerts that scrapes a target every second; yields a function that asks its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    scrape = {"job_name": "node", "metrics_path": path, "static_configs": [{"targets": [target]}]}
    everything = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": everything, "rule_files": [str(RULES)], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log, start_new_session=True)
    watchdog.watch(process)

    def ask(what: str, **parameters: str) -> Any:
        url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    try:
        yield ask
    finally:
        watchdog.reap(process)


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)
def test_a_prometheus_answers_the_dashboard_and_raises_the_alert_of_a_daemon_that_ends(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon("echo")
    text = tmp_path / "text"
    text.mkdir()
    with daemon.client() as client, served(text) as target, prometheus(tmp_path, target, "/shmserve.prom") as ask:

        def wait(what: str, condition: Callable[[], Any]) -> Any:
            until = time.monotonic() + 120
            while True:
                client.infer({"a": 1})
                metrics_file(daemon, text / "shmserve.prom")
                with contextlib.suppress(OSError):  # it still starts
                    if found := condition():
                        return found
                assert time.monotonic() < until, f"{what}: {(tmp_path / 'log').read_text()[-2000:]}"
                time.sleep(0.5)

        wait("the rate of the requests", lambda: ask("query", query="rate(shmserve_requests_total[1m]) > 0")["result"])
        unanswered = {title for title, query in queries() if not ask("query", query=query)["result"]}
        rules = ask("rules")["groups"][0]["rules"]
        daemon.stop()
        metrics_file(daemon, text / "shmserve.prom")
        until = time.monotonic() + 120
        while not ask("query", query='ALERTS{alertname="ShmserveDown", service="t"}')["result"]:
            assert time.monotonic() < until, "no alert"
            time.sleep(0.5)

    assert unanswered <= {"New model", "Remote model: answers by result"}, "there is neither"
    assert {rule["health"] for rule in rules} == {"ok"}
