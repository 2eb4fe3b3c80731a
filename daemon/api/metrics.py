"""The service's status as OpenMetrics text, for Prometheus and compatible programs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from shmserve import __version__
from shmserve.histogram_buckets import lower_ns

from ..ipc.stats import Distribution
from ..supervisor import ServiceState, ServiceStatus, SpareState
from .link_status import REMOTE_COUNTERS, is_link, remote_json

#: How a request ends.
ENDINGS = ("served", "failed", "rejected", "expired", "stale", "cancelled", "superseded", "lost")
#: One bucket for each doubling, of the eight that the engine counts in: 1 us to 17 minutes in 30 lines.
_BUCKETS_A_LINE = 8


def openmetrics(status: ServiceStatus) -> str:
    """Return the status as OpenMetrics text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Service(status))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


class _Service(Collector):
    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        families = (*self._state(), *self._requests(), *self._clients(), self._stages())
        for family in families:
            # Every sample names its service: the files of several services stand side by side in one collector.
            family.samples = [
                sample._replace(labels={"service": self._status.name, **sample.labels}) for sample in family.samples
            ]
            yield family

    def _state(self) -> Iterator[Metric]:
        status = self._status
        yield _gauge("shmserve_up", "1 while a daemon answers.", 1)
        daemon = {"release": __version__, "transport": status.transport}
        yield InfoMetricFamily("shmserve", "The daemon.", daemon)
        state = StateSetMetricFamily("shmserve_state", "State of the service; one of them is 1.")
        state.add_metric([], {each.value: each is status.state for each in ServiceState})
        yield state
        model = status.model
        if model is not None:
            labels = {key: str(model[key]) for key in ("name", "version", "device")}
            yield InfoMetricFamily("shmserve_model", "The served model.", labels)
        start_s = time.time() - status.uptime_s
        yield _gauge("shmserve_start_time_seconds", "When the daemon started, since 1970.", start_s)
        if status.engine is not None and status.engine.heartbeat_age_s is not None:
            age_s = status.engine.heartbeat_age_s
            yield _gauge("shmserve_engine_heartbeat_age_seconds", "Since the engine's loop went round.", age_s)
        if status.engine is not None and (usage := status.engine.usage) is not None:
            yield CounterMetricFamily(
                "shmserve_engine_cpu_seconds",
                "Processor time of the serving engine, all threads.",
                usage.cpu_s,
                unit="seconds",
            )
            yield _gauge(
                "shmserve_engine_resident_memory_bytes",
                "Resident memory of the serving engine, with the shared memory that it has used.",
                usage.resident_bytes,
            )
        yield _counter("shmserve_engine_restarts", "Engines that died and were replaced.", status.restarts)
        spare = status.spare
        yield _gauge("shmserve_spare_engine_ready", "1 while a spare engine is ready.", spare.state is SpareState.READY)
        yield _gauge(
            "shmserve_spare_engine_memory_bytes", "Private memory of the spare engine.", spare.memory_bytes or 0
        )
        yield _counter("shmserve_spare_engine_uses", "Engines that were started from the spare one.", spare.uses)

    def _requests(self) -> Iterator[Metric]:
        counted = self._status.counters
        requests = CounterMetricFamily("shmserve_requests", "Requests by how they ended.", labels=["result"])
        for ending in ENDINGS:
            requests.add_metric([ending], counted[ending])
        yield requests
        yield _counter("shmserve_resets", "Episodes that clients began.", counted["resets"])
        yield _counter(
            "shmserve_batches", "Calls of the model; fewer than requests where it batches.", counted["batches"]
        )
        yield _counter(
            "shmserve_requests_in_place", "Requests that the model read without a copy.", counted["in_place"]
        )
        yield _counter(
            "shmserve_requests_cut_through",
            "Requests that were copied in part while their clients were still writing them.",
            counted["cut_through"],
        )
        yield _counter(
            "shmserve_requests_clamped",
            "Requests with a number that was brought back to its limit.",
            counted["clamped"],
        )
        yield _counter(
            "shmserve_requests_out_of_range", "Requests that ended because of a number.", counted["out_of_range"]
        )
        yield _counter(
            "shmserve_engine_ahead_met",
            "Requests that came while an idle engine was awake for them.",
            counted["ahead_met"],
        )
        yield _counter(
            "shmserve_engine_ahead_missed",
            "Times an idle engine was awake for a request that did not come.",
            counted["ahead_missed"],
        )
        yield CounterMetricFamily(
            "shmserve_engine_ahead_seconds",
            "Time for which it was awake for expected requests.",
            counted["ahead_ns"] / 1e9,
            unit="seconds",
        )
        if is_link(self._status):
            yield from self._link()
        yield _counter("shmserve_engine_wakes", "Times an idle engine woke up.", counted["wakes"])
        yield CounterMetricFamily(
            "shmserve_engine_busy_seconds", "Time spent on requests.", counted["busy_ns"] / 1e9, unit="seconds"
        )

    def _link(self) -> Iterator[Metric]:
        counted = remote_json(self._status)
        answers = CounterMetricFamily(
            "shmserve_remote_requests", "Requests of a link by how the remote model answered.", labels=["result"]
        )
        for result in REMOTE_COUNTERS:
            answers.add_metric([result], counted[result])
        yield answers
        yield _counter(
            "shmserve_remote_switches",
            "Changes between answers of the remote model and of the fallback.",
            counted["switches"],
        )
        assert self._status.model is not None
        is_open = self._status.model["remote"]["reason"] is not None
        yield _gauge("shmserve_remote_open", "1 while the remote model is not asked.", is_open)

    def _clients(self) -> Iterator[Metric]:
        status = self._status
        yield _gauge("shmserve_clients", "Clients attached now.", len(status.clients))
        yield _gauge("shmserve_clients_limit", "Clients that may be (max_clients).", status.max_clients)
        names = ["client", "program", "uid"]
        served = CounterMetricFamily(
            "shmserve_client_requests",
            "Requests answered, of clients attached now, by the serving engine.",
            labels=names,
        )
        errors = CounterMetricFamily("shmserve_client_errors", "Requests that ended otherwise.", labels=names)
        for client in status.clients:
            labels = [str(client.channel), client.program, str(client.uid)]
            served.add_metric(labels, client.served)
            errors.add_metric(labels, client.errors)
        yield served
        yield errors

    def _stages(self) -> Metric:
        stages = HistogramMetricFamily(
            "shmserve_stage_seconds",
            "Time inside the service by stage. The sum is made of the buckets' middles (to 6 %).",
            labels=["stage"],
            unit="seconds",
        )
        for stage, distribution in self._status.latency.items():
            stages.add_metric([stage.name.lower()], _buckets(distribution), _sum_s(distribution))
        return stages


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Cumulative counts, as Prometheus has them."""
    counts, seen, buckets = distribution.counts, 0, []
    for first in range(0, len(counts), _BUCKETS_A_LINE):
        # Bucket 0 is all below 1 us; then eight for each doubling.
        seen = sum(counts[: first + 1])
        buckets.append((f"{lower_ns(first + 1) / 1e9:.9g}", float(seen)))
    return [*buckets, ("+Inf", float(distribution.total))]


def _sum_s(distribution: Distribution) -> float:
    pairs = enumerate(distribution.counts)
    return sum(count * (lower_ns(bucket) + lower_ns(bucket + 1)) / 2e9 for bucket, count in pairs if count)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)
