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
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mpserve.errors import ConfigurationError
from mpserve.state import rundir
from mpserve.state.scoreboard import STARTING, Scoreboard, State
from mpserve.telemetry import prometheus

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
VERBS = ("predict", "explain")
STAGES = ("preprocess", "predict", "postprocess", "explain")
DURATIONS = "request_predict_seconds"
"""The histogram from which the durations of requests are told."""
LOAD_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)


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
            ["model_name", "reason"],
        )
        self.load_seconds = Histogram(
            "mpserve_model_load_seconds",
            "Time from the start of load() to the end of warmup(), in seconds.",
            ["model_name"],
            buckets=LOAD_BUCKETS,
        )
        self._durations: dict[tuple[str, str, frozenset[str]], Durations] = {}
        self._answered: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._called: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._refused: defaultdict[tuple[str, str], int] = defaultdict(int)

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

    def count_refusal(self, model_name: str, reason: str) -> None:
        """Count a request that was refused, or that ran out of time."""
        self._refused[model_name, reason] += 1

    def flush(self) -> None:
        """Write all counts to the files. Call this often."""
        for route, answered in self._answered.items():
            for status, count in answered.items():
                self.requests.labels(route, status).inc(count)
            answered.clear()
        for counter, counts in ((self.calls, self._called), (self.refusals, self._refused)):
            for labels, count in counts.items():
                counter.labels(*labels).inc(count)
            counts.clear()
        for durations in self._durations.values():
            durations.flush()

    def flush_all(self) -> None:
        """Write all counts, also those that had no room in the files before. Raises OSError: some still have no room."""
        self.flush()
        failure = prometheus.write_late()
        if failure is not None:
            reason = f"metrics have no room and are kept until there is some: {failure.strerror}"
            raise OSError(failure.errno, reason, str(_Process.directory))


class Durations:
    """Observations of a histogram, collected in a list and counted together.

    ``note`` takes the seconds of an observation, from any thread. The caller flushes when ``noted`` has more than ``FULL``. An
    observation is also counted as 0 s in the ``untimed`` histograms: the SDK's dashboards divide by the count of every stage.
    """

    FULL = 512

    def __init__(self, histogram: Histogram, untimed: Iterable[Histogram] = ()) -> None:
        self._histogram = histogram
        self._untimed = untimed
        self._bounds = prometheus.bounds(histogram)
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
            prometheus.add(self._histogram, Counts(map(bisect_left, repeat(self._bounds), noted)), sum(noted))
            for other in self._untimed:
                prometheus.add(other, {0: number}, 0)


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


def request_durations() -> dict[str, dict[str, float]]:
    """By model: the requests of all workers by how long they took: the number of those up to each bound in seconds.

    This reads the files of every worker, so call it in a thread, after ``flush``.
    """
    if _Process.directory is None:
        families: Iterable[Metric] = prometheus_client.REGISTRY.collect()
    else:
        files = map(str, _Process.directory.glob("histogram_*.db"))
        families = multiprocess.MultiProcessCollector.merge(files)
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for family in families:
        if family.name == DURATIONS:
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    buckets = found[sample.labels["model_name"]]
                    bound = sample.labels["le"]
                    buckets[bound] = buckets.get(bound, 0) + sample.value
    return dict(found)


def render(board: Scoreboard, accept: str) -> tuple[bytes, str]:
    """The metrics of all workers as (body, content type), in the format of the ``Accept`` header.

    This reads the files of every worker, so call it in a thread, after ``flush``.
    """
    registry = CollectorRegistry()
    registry.register(ScoreboardCollector(board))
    encode, content_type = choose_encoder(accept)
    if _Process.directory is None:
        # OpenMetrics ends with a mark, which may appear only once.
        return encode(prometheus_client.REGISTRY).removesuffix(b"# EOF\n") + encode(registry), content_type
    multiprocess.MultiProcessCollector(registry, path=str(_Process.directory))
    registry.register(prometheus.InProcess(_Process.identity))
    return encode(registry), content_type
