"""Every Prometheus metric, named in one place, and the one way to render them for all workers together.

prometheus_client's multi-process mode writes one file per process identifier. The identifier here is the worker's
*slot*, not its pid: a respawned worker goes on counting in its predecessor's files, so their number is bounded for ever
(prometheus/client_python issues 367 and 568 tell what happens otherwise), and totals survive a SIGKILL. What is true
only of live workers (in flight, connections, states) is not kept in files at all; it is read from the scoreboard at
scrape time, so a dead worker cannot leave it standing.

What every request has is noted in the process and written to the files ten times a second, which costs less than to write
each by itself; of a worker that is killed the last tenth of a second may be missing.

Without ``configure`` (any other ASGI server) the same metrics live in the process's own registry.
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
from mpserve.state.scoreboard import Scoreboard, State
from mpserve.telemetry import prometheus

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
VERBS = ("predict", "explain")
STAGES = ("preprocess", "predict", "postprocess", "explain")
LOAD_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)


class _Process:
    """Whose files this process writes: ``arbiter`` until a slot is set after the fork."""

    identity = "arbiter"
    directory: Path | None = None


def configure() -> Path:
    """Switch to multi-process mode, in the arbiter, before any metric (the user's included) is created.

    The directory is ours alone, inside ``PROMETHEUS_MULTIPROC_DIR`` if the user set one, else in memory (/dev/shm), so
    that no writable root is needed and two servers on one machine never share files. Repeated calls return the same
    directory.

    Raises:
        ConfigurationError: nothing can be written in the user's ``PROMETHEUS_MULTIPROC_DIR``, or mpserve cannot count
            with the prometheus_client that is installed.
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
        prometheus.name_files_after(lambda: _Process.identity)
    return _Process.directory


def set_slot(slot: int) -> None:
    """Write to this slot's files from now on (in the worker, after the fork)."""
    _Process.identity = str(slot)


def forget_live(slot: int) -> None:
    """Remove the dead predecessor's live gauges (a user's own, say) before its slot is given again."""
    if _Process.directory is not None:
        multiprocess.mark_process_dead(slot, str(_Process.directory))


class Metrics:
    """What mpserve counts. The four stage histograms have the kserve SDK's names and label (kserve/metrics.py)."""

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
        """The histogram of each stage of this model. Stages in ``absent`` took no time whenever the model was asked."""
        return {
            stage: self._durations_of(stage, model_name, absent if stage in VERBS else frozenset()) for stage in STAGES
        }

    def _durations_of(self, stage: str, model_name: str, absent: frozenset[str]) -> "Durations":
        known = self._durations.get((stage, model_name, absent))
        if known is None:
            untimed = [self.stages[other].labels(model_name) for other in absent]
            known = Durations(self.stages[stage].labels(model_name), untimed)
            self._durations[stage, model_name, absent] = known
        return known

    def answered(self, route: str) -> defaultdict[int, int]:
        """By status, how many HTTP requests to this route were answered and not written yet: one is counted by adding it.

        On the event loop only, as all that is noted here.
        """
        return self._answered[route]

    def count_call(self, method: str, status: str) -> None:
        """Count a gRPC call that has ended."""
        self._called[method, status] += 1

    def count_refusal(self, model_name: str, reason: str) -> None:
        """Count a request that was refused, or given up, by admission."""
        self._refused[model_name, reason] += 1

    def flush(self) -> None:
        """Write what has been noted to where it can be scraped. To be called often."""
        for route, answered in self._answered.items():
            for status, count in answered.items():
                self.requests.labels(route, status).inc(count)
            answered.clear()
        for counter, noted in ((self.calls, self._called), (self.refusals, self._refused)):
            for labels, count in noted.items():
                counter.labels(*labels).inc(count)
            noted.clear()
        for durations in self._durations.values():
            durations.flush()


class Durations:
    """A histogram's observations, noted one by one and counted together.

    To count one costs 0.7 µs, to note it a tenth of that: ``note`` takes the seconds of one, from any thread. Whoever notes
    calls ``flush`` when ``noted`` has more than ``FULL``. Each also counts as one of no time in the ``untimed``: the SDK's
    dashboards divide by the count of every stage, also of those that a model does not have.
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
        """Count what has been noted, from any thread."""
        if not self.noted:
            return
        with self._counting:
            number = len(self.noted)  # others go on noting
            noted = self.noted[:number]
            del self.noted[:number]
            prometheus.add(self._histogram, Counts(map(bisect_left, repeat(self._bounds), noted)), sum(noted))
            for other in self._untimed:
                prometheus.add(other, {0: number}, 0)


@lru_cache(maxsize=1)
def metrics() -> Metrics:
    """The process tree's metrics, created on first use, which must come after ``configure``.

    Raises:
        ConfigurationError: mpserve cannot count with the prometheus_client that is installed.
    """
    prometheus.check()
    return Metrics()


class ScoreboardCollector(Collector):
    """What is true of the live workers at this moment."""

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
        for state in (State.LOADING, State.READY, State.DRAINING):
            workers.add_metric([state.name.lower()], sum(row.state == state for row in live))
        yield workers
        restarts = CounterMetricFamily("mpserve_worker_restarts", "Workers replaced after an unplanned death.")
        restarts.add_metric([], sum(row.restarts for row in used))
        yield restarts


def render(board: Scoreboard, accept: str) -> tuple[bytes, str]:
    """All workers' metrics as (body, content type), in the format that the ``Accept`` header asks for.

    It reads every worker's files: 9 ms with 4 of them was measured, so call it off the event loop, and ``flush`` before.
    """
    registry = CollectorRegistry()
    registry.register(ScoreboardCollector(board))
    encode, content_type = choose_encoder(accept)
    if _Process.directory is None:
        return _joined(encode(prometheus_client.REGISTRY), encode(registry)), content_type
    multiprocess.MultiProcessCollector(registry, path=str(_Process.directory))
    return encode(registry), content_type


def _joined(first: bytes, second: bytes) -> bytes:
    """Two expositions as one; OpenMetrics closes each with an end mark, of which one may remain."""
    return first.removesuffix(b"# EOF\n") + second
