"""All Prometheus metrics of the server, and how they are rendered for all workers together.

prometheus_client's multi-process mode writes files for each process identifier. Here the identifier is the worker's slot, not
its pid: a respawned worker goes on counting in the files of its slot, so the number of files is bounded
(prometheus/client_python issues 367 and 568), and counts survive a SIGKILL. Numbers of live workers (in flight, connections,
states) are read from the scoreboard at each scrape, so they are never those of a dead worker.

Counts of requests are collected in the process and written to the files ten times a second, since single writes cost more. The
last tenth of a second of a killed worker may be missing. Without ``configure`` the metrics are in the process's registry.
"""

import os
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mpserve.errors import ConfigurationError
from mpserve.state import rundir
from mpserve.state.scoreboard import STARTING, Scoreboard, State
from mpserve.telemetry import processes, prometheus

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
VERBS = ("predict", "explain")
STAGES = ("preprocess", "predict", "postprocess", "explain")
LOAD_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MODEL = ("model_name", "model_version")
"""The labels of a metric of one version of a model. Only models that are served get there: a client's text is no label."""
NANO = 1e-9
OK, CANCELLED = "ok", "cancelled"
"""Statuses of a request that is no failure: it was answered, or its client has gone. The others are those of ``errors.Code``."""


class _Process:
    """The identifier in the names of this process's files, and their directory."""

    identity = "arbiter"
    directory: Path | None = None


def configure() -> Path:
    """In the arbiter, before any metric is created: switch to multi-process mode. Return the directory of the files.

    The directory is new: in the user's ``PROMETHEUS_MULTIPROC_DIR``, or else in memory. A second call returns the same directory.

    Raises:
        ConfigurationError: ``PROMETHEUS_MULTIPROC_DIR`` is not writable, or this version of prometheus_client does not work.
    """
    prometheus.check()
    if _Process.directory is None:
        users = os.environ.get(DIRECTORY_VARIABLE)
        try:
            _Process.directory = rundir.make("metrics", users or None)
        except OSError as error:
            if not users:
                raise
            raise ConfigurationError(
                f"{DIRECTORY_VARIABLE}: expected a directory that can be written in, got {users!r}: {error.strerror}"
            ) from error
        os.environ[DIRECTORY_VARIABLE] = str(_Process.directory)
        prometheus.keep_in_files(lambda: _Process.identity)
    return _Process.directory


def set_slot(slot: int) -> None:
    """In the worker, after the fork: write to the files of this slot."""
    _Process.identity = str(slot)


def forget_live(slot: int) -> None:
    """Remove the live gauges of a dead worker, such as the user's own, before its slot is given again."""
    if _Process.directory is not None:
        multiprocess.mark_process_dead(slot, str(_Process.directory))


class Metrics:
    """The metrics. The histograms of stages have the kserve SDK's names and label (kserve/metrics.py)."""

    def __init__(self) -> None:
        self.stages = {
            stage: Histogram(f"request_{stage}_seconds", f"Time spent in {stage}, in seconds.", ["model_name"])
            for stage in STAGES
        }
        self.requests = Counter("mpserve_requests", "HTTP requests answered, by route and status.", ["route", "status"])
        self.calls = Counter("mpserve_grpc_requests", "gRPC calls ended, by method and status.", ["method", "status"])
        self.refusals = Counter(
            "mpserve_requests_refused",
            "Inference requests not answered for lack of time or of room in the queue, by reason.",
            [*MODEL, "reason"],
        )
        self.model_requests = Counter(
            "mpserve_model_requests", "Inference requests ended, over HTTP and gRPC, by status.", [*MODEL, "status"]
        )
        self.request_seconds = Histogram(
            "mpserve_model_request_seconds",
            "Time from the complete body of an answered request to its encoded answer, in seconds.",
            MODEL,
            buckets=SECONDS_BUCKETS,
        )
        self.queue_seconds = Histogram(
            "mpserve_model_queue_seconds",
            "Time that an answered request waited for a thread, a batch or its turn, in seconds.",
            MODEL,
            buckets=SECONDS_BUCKETS,
        )
        self.batch_rows = Histogram(
            "mpserve_model_batch_size", "Rows of the batches that the model was given.", MODEL, buckets=BATCH_BUCKETS
        )
        self.load_seconds = Histogram(
            "mpserve_model_load_seconds",
            "Time from the start of load() to the end of warmup(), in seconds.",
            ["model_name"],
            buckets=LOAD_BUCKETS,
        )
        self.payloads = Counter("mpserve_payloads", "Events for the payload log, by outcome.", ["outcome"])
        self._durations: dict[tuple[str, str, frozenset[str]], Durations] = {}
        self._answered: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._called: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._refused: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._ended: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._models: dict[tuple[str, str, frozenset[str]], ModelMetrics] = {}

    def of_model(self, name: str, version: str, absent: frozenset[str] = frozenset()) -> "ModelMetrics":
        """What is observed of a version of a model, which has no stages in ``absent``."""
        key = name, version, absent
        if key not in self._models:
            self._models[key] = ModelMetrics(self, *key)
        return self._models[key]

    def stage_durations(self, model_name: str, absent: frozenset[str] = frozenset()) -> "dict[str, Durations]":
        """The histogram of each stage of this model. The model has no stages in ``absent``: their time is always 0."""
        return {
            stage: self._durations_of(stage, model_name, absent if stage in VERBS else frozenset()) for stage in STAGES
        }

    def _durations_of(self, stage: str, model_name: str, absent: frozenset[str]) -> "Durations":
        durations = self._durations.get((stage, model_name, absent))
        if durations is None:
            untimed = [self.stages[other].labels(model_name) for other in absent]
            durations = Durations(self.stages[stage].labels(model_name), untimed)
            self._durations[stage, model_name, absent] = durations
        return durations

    def answered(self, route: str) -> defaultdict[int, int]:
        """The counts of HTTP answers of this route by status, since ``flush``. Count on the event loop only."""
        return self._answered[route]

    def count_call(self, method: str, status: str) -> None:
        """Count a gRPC call that has ended."""
        self._called[method, status] += 1

    def count_refusal(self, model_name: str, version: str, reason: str) -> None:
        """Count a request that was refused, or that ran out of time."""
        self._refused[model_name, version, reason] += 1

    def count_ended(self, model_name: str, version: str, status: str) -> None:
        """Count a request that was not answered as its client wished. ``ModelMetrics`` counts the others."""
        self._ended[model_name, version, status] += 1

    def flush(self) -> None:
        """Write all counts to the files. Call this often."""
        for route, answered in self._answered.items():
            for status, count in answered.items():
                self.requests.labels(route, status).inc(count)
            answered.clear()
        counted: list[tuple[Counter, defaultdict[Any, int]]] = [
            (self.calls, self._called), (self.refusals, self._refused), (self.model_requests, self._ended),
        ]  # fmt: skip
        for counter, counts in counted:
            for labels, count in counts.items():
                counter.labels(*labels).inc(count)
            counts.clear()
        for durations in self._durations.values():
            durations.flush()
        for model in self._models.values():
            model.flush()

    def flush_all(self) -> None:
        """Write all counts, also those that had no room in the files before. Raises OSError: some still have no room."""
        self.flush()
        failure = prometheus.write_late()
        if failure is not None:
            reason = f"metrics have no room and are kept until there is some: {failure.strerror}"
            raise OSError(failure.errno, reason, str(_Process.directory))


class ModelMetrics:
    """The observations of one version of a model. The event loop alone uses them, but for those of ``stages``.

    Attributes:
        stages: the time of each stage.
        seconds: nanoseconds of each answered request, from its complete body to its encoded answer. They count the request, too.
        queue: nanoseconds that each of them waited.
    """

    def __init__(self, every: Metrics, name: str, version: str, absent: frozenset[str]) -> None:
        self.stages = every.stage_durations(name, absent)
        self.seconds = Durations(every.request_seconds.labels(name, version), unit=NANO)
        self.queue = Durations(every.queue_seconds.labels(name, version), unit=NANO)
        self._answered = every.model_requests.labels(name, version, OK)
        self._noted = [*self.stages.values(), self.queue, self.seconds]
        self._batches, self._labels = every.batch_rows, (name, version)

    @cached_property
    def batch_rows(self) -> "Durations":
        """The rows of each batch. A model without batches has no series of them."""
        rows = Durations(self._batches.labels(*self._labels))
        self._noted.append(rows)
        return rows

    def flush(self) -> None:
        """Count the observations."""
        answered = len(self.seconds.noted)
        if answered:
            self._answered.inc(answered)
        for durations in self._noted:
            durations.flush()


class Durations:
    """Observations of a histogram, collected in a list and counted together.

    ``note`` takes an observation in units of ``unit``, from any thread. The caller flushes before ``noted`` is large. An
    observation is also counted as 0 in the ``untimed`` histograms: the SDK's dashboards divide by the count of every stage.
    """

    def __init__(self, histogram: Histogram, untimed: Iterable[Histogram] = (), unit: float = 1.0) -> None:
        self._histogram = histogram
        self._untimed = untimed
        self._unit = unit
        self._bounds = [bound / unit for bound in prometheus.bounds(histogram)]
        self.noted: list[float] = []
        self.note = self.noted.append
        self._counting = threading.Lock()

    def flush(self) -> None:
        """Count the observations. May be called from any thread."""
        if not self.noted:
            return
        with self._counting:
            number = len(self.noted)  # other threads may append meanwhile
            noted = self.noted[:number]
            del self.noted[:number]
            prometheus.add(self._histogram, self._counts(noted), sum(noted) * self._unit)
            for other in self._untimed:
                prometheus.add(other, {0: number}, 0)

    def _counts(self, noted: list[float]) -> dict[int, int]:
        """The number of observations in each bucket. Sorts them, which costs less than to search the bucket of each."""
        noted.sort()
        counts, below = {}, 0
        for position, bound in enumerate(self._bounds):
            if below == len(noted):
                break
            within = bisect_right(noted, bound, below)
            if within > below:
                counts[position] = within - below
            below = within
        return counts


@lru_cache(maxsize=1)
def metrics() -> Metrics:
    """The metrics, created at the first call. Call ``configure`` before, if at all. Raises ConfigurationError."""
    prometheus.check()
    return Metrics()


class ScoreboardCollector(Collector):
    """Reads the numbers of the live workers from the scoreboard."""

    def __init__(self, board: Scoreboard) -> None:
        self.board = board

    def collect(self) -> Iterator[Metric]:
        used = list(self.board.used())
        live = [row for row in used if row.is_live()]
        in_flight = sum(row.in_flight for row in live)
        waiting = sum(row.waiting for row in live)
        connections = sum(row.connections for row in live)
        yield GaugeMetricFamily("mpserve_requests_in_flight", "Inference requests being answered.", in_flight)
        yield GaugeMetricFamily("mpserve_requests_waiting", "Inference requests in a model's queue.", waiting)
        yield GaugeMetricFamily("mpserve_connections", "Open client connections.", connections)
        workers = GaugeMetricFamily("mpserve_workers", "Live workers by state.", labels=["state"])
        for name, states in (("loading", STARTING), ("ready", [State.READY]), ("draining", [State.DRAINING])):
            workers.add_metric([name], sum(row.state in states for row in live))
        yield workers
        restarts = CounterMetricFamily("mpserve_worker_restarts", "Workers replaced after an unplanned death.")
        restarts.add_metric([], sum(row.restarts for row in used))
        yield restarts
        failed = CounterMetricFamily("mpserve_metrics_failed_flushes", "Times that metrics had no room in their files.")
        failed.add_metric([], sum(row.failed_flushes for row in used))
        yield failed
        yield from processes.collect({row.slot: row.pid for row in live if row.pid})


def request_durations() -> dict[str, dict[str, float]]:
    """By model: the number of answered requests, of all workers, that took no longer than each bound of the histogram.

    This reads the files of every worker, so call it in a thread, after ``flush``.
    """
    if _Process.directory is None:
        families: Iterable[Metric] = prometheus_client.REGISTRY.collect()
    else:
        families = multiprocess.MultiProcessCollector.merge(map(str, _Process.directory.glob("histogram_*.db")))
    samples = next((family.samples for family in families if family.name == "mpserve_model_request_seconds"), [])
    found: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for sample in samples:
        if "le" in sample.labels:
            found[sample.labels["model_name"]][sample.labels["le"]] += sample.value
    return {name: dict(buckets) for name, buckets in found.items()}


def render(board: Scoreboard, accept: str, *others: Collector) -> tuple[bytes, str]:
    """The metrics of all workers as (body, content type), in the format of the ``Accept`` header.

    ``others`` are asked as well. This reads the files of every worker, so call it in a thread, after ``flush``.
    """
    registry = CollectorRegistry()
    for collector in (ScoreboardCollector(board), *others):
        registry.register(collector)
    encode, content_type = choose_encoder(accept)
    if _Process.directory is None:
        # OpenMetrics ends with a mark, which may appear only once.
        return encode(prometheus_client.REGISTRY).removesuffix(b"# EOF\n") + encode(registry), content_type
    multiprocess.MultiProcessCollector(registry, path=str(_Process.directory))
    registry.register(prometheus.InProcess(_Process.identity))
    return encode(registry), content_type
