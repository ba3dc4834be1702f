"""Metrics of several workers: summed, kept over respawns, in a bounded number of files; each test in a process of its own."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import Histogram

from mpserve.telemetry import metrics
from tests.cases import each

# What every test's process begins with: an arbiter that is configured, metrics of mpserve and of the user, and workers
# that are forked for a slot, count, and end as they are told.
MASTER = """
import os, signal, sys
from pathlib import Path
from mpserve.telemetry import metrics
directory = metrics.configure()
from prometheus_client import Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families
from mpserve.state.scoreboard import Scoreboard, State

board = Scoreboard(4)
users = Counter("cats", "Cats seen.", ["colour"])
queue = Gauge("queue", "Waiting.", multiprocess_mode="livesum")
own = metrics.metrics()
ANSWERED = "mpserve_requests_total", "/v2", "200"

def worker(slot, work, killed=False):
    metrics.forget_live(slot)
    pid = os.fork()
    if pid == 0:
        metrics.set_slot(slot)
        work()
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == (signal.SIGKILL if killed else 0)

def answer(count, route="/v2"):
    def work():
        for _ in range(count):
            own.answered(route)[200] += 1
            own.stage_durations("m")["predict"].note(0.25)
        own.flush()
    return work

def samples(accept=""):
    body, _ = metrics.render(board, accept)
    return {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(body.decode()) for s in family.samples
    }
"""


ALONE = MASTER.replace("directory = metrics.configure()\n", "")
"""The same in a process whose metrics were not configured."""


def run(code: str, before: str = MASTER, **env: str) -> str:
    program = before + textwrap.dedent(code)
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"} | env
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@each("before", ["", "import prometheus_client\n"])
def test_any_process_gives_the_sum_of_all_workers_and_of_those_that_were_killed(before: str) -> None:
    """prometheus_client chooses its mode when it is first imported, which a user's script may have done."""
    code = """
    worker(0, answer(2), killed=True)
    worker(0, answer(1), killed=True)
    worker(1, answer(4))
    worker(1, answer(0, "/other"))
    assert samples()[ANSWERED] == 7
    assert samples()["request_predict_seconds_count", "m"] == 7
    assert samples()["request_predict_seconds_sum", "m"] == 7 * 0.25

    def scrape():
        assert samples()[ANSWERED] == 7
    worker(2, scrape)
    """
    run(code, before + MASTER)


def test_the_number_of_files_is_bounded_whatever_the_number_of_respawns() -> None:
    run("""
    def everything(slot):
        def work():
            answer(1)()
            users.labels("red").inc()
            queue.set(1)
        return work
    worker(0, everything(0)); worker(1, everything(1))
    before = sorted(os.listdir(directory))
    for _ in range(10):
        worker(0, everything(0), killed=True); worker(1, everything(1))
    assert sorted(os.listdir(directory)) == before, (before, os.listdir(directory))
    assert samples()[ANSWERED] == 22
    assert samples()["cats_total", "red"] == 22
    """)


def test_the_live_gauges_of_a_dead_slot_are_cleared_before_it_is_given_again() -> None:
    run("""
    worker(0, lambda: queue.set(5), killed=True)
    worker(1, lambda: queue.set(7))
    assert samples()["queue",] == 12
    metrics.forget_live(0)
    assert samples()["queue",] == 7
    """)


def test_what_is_true_of_the_living_is_read_from_the_scoreboard() -> None:
    run("""
    for slot, (state, pid) in enumerate([(State.READY, os.getpid()), (State.READY, 2**22 + 1),
                                         (State.LOADING, os.getpid()), (State.EXITED, os.getpid())]):
        row = board.row(slot)
        row.state, row.pid, row.in_flight, row.connections, row.restarts = state, pid, 10 + slot, 20 + slot, slot
        row.waiting = 5 + slot
    found = samples()
    assert found["mpserve_requests_in_flight",] == 10 + 12
    assert found["mpserve_requests_waiting",] == 5 + 7
    assert found["mpserve_connections",] == 20 + 22
    assert [found["mpserve_workers", s] for s in ("loading", "ready", "draining")] == [1, 1, 0]
    assert found["mpserve_worker_restarts_total",] == 0 + 1 + 2 + 3
    """)


def test_the_stages_have_the_sdks_names_and_an_absent_one_is_counted_with_its_predict_and_takes_no_time() -> None:
    """The SDK's dashboards divide by the count of each stage."""
    run("""
    stages = own.stage_durations("m", frozenset({"postprocess"}))
    for stage, seconds in (("predict", 1), ("predict", 2), ("preprocess", 3), ("explain", 4)):
        stages[stage].note(seconds)
    own.flush()
    found = {name: value for (name, *labels), value in samples().items() if labels == ["m"]}
    counts = {"preprocess": 1, "predict": 2, "postprocess": 3, "explain": 1}
    sums = {"preprocess": 3, "predict": 3, "postprocess": 0, "explain": 4}
    assert {name for name in found if name.endswith("_seconds_count")} == {f"request_{s}_seconds_count" for s in counts}
    assert {stage: found[f"request_{stage}_seconds_count"] for stage in counts} == counts
    assert {stage: found[f"request_{stage}_seconds_sum"] for stage in sums} == sums
    """)


@each("accept, content_type", [
    ("", "text/plain; version="), ("text/plain", "text/plain; version="),
    ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
])  # fmt: skip
@each("before", [MASTER, ALONE])
def test_the_format_is_the_one_that_is_accepted(accept: str, content_type: str, before: str) -> None:
    code = f"""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
    worker(0, lambda: (answer(1)(), users.labels("red").inc(), queue.set(1)))
    body, content_type = metrics.render(board, {accept!r})
    assert content_type.startswith({content_type!r}), content_type
    parse = parse_openmetrics if "openmetrics" in content_type else text_string_to_metric_families
    names = [family.name for family in parse(body.decode())]
    assert {{"mpserve_requests", "mpserve_workers", "mpserve_worker_restarts", "cats", "queue"}} <= set(names), names
    assert len(names) == len(set(names))
    """
    run(code, before)


def test_without_configuration_the_processs_own_metrics_are_given() -> None:
    code = """
    answer(3)()
    users.labels("red").inc()
    assert samples()[ANSWERED] == 3
    assert samples()["cats_total", "red"] == 1
    metrics.set_slot(0)
    metrics.forget_live(0)
    """
    run(code, ALONE)


def test_the_directory_is_the_servers_own_and_is_removed_by_the_arbiter_alone(tmp_path: Path) -> None:
    code = """
    assert metrics.configure() == directory
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(directory)
    worker(0, answer(3))
    assert directory.is_dir()
    if "SECOND" not in os.environ:  # another server in this directory shares no file
        import subprocess
        env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory.parent), "SECOND": "1"}
        subprocess.run([sys.executable, "-c", sys.orig_argv[-1]], env=env, check=True)
    assert samples()[ANSWERED] == 3
    print(directory)
    """
    made = [Path(line) for line in run(code, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)).split()]
    assert [directory.parent for directory in made] == [tmp_path, tmp_path]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    code = """
    from mpserve.telemetry import metrics
    from mpserve.errors import ConfigurationError
    try:
        metrics.configure()
    except ConfigurationError as error:
        print(error)
    """
    words = f"expected a directory that can be written in, got {missing!r}: No such file or directory"
    assert run(code, "", PROMETHEUS_MULTIPROC_DIR=missing) == f"PROMETHEUS_MULTIPROC_DIR: {words}\n"


@each("number", [0, 1, 512, 5000])
def test_durations_noted_by_several_threads_are_each_counted_once_in_their_bucket(number: int) -> None:
    histogram, plain = (Histogram("waits", "Waits.", buckets=(0.1, 0.5, 1.0), registry=None) for _ in range(2))
    durations = metrics.Durations(histogram)
    given = [0.1, 0.10001, 0.7, 3.0]
    with ThreadPoolExecutor(len(given)) as threads:
        for seconds in given:
            threads.submit(lambda seconds=seconds: [durations.note(seconds) for _ in range(number)])
    durations.flush()
    for seconds in given * number:
        plain.observe(seconds)
    counted, expected = (
        {(name, *labels.values()): value for name, labels, value, *_ in next(iter(each.collect())).samples}
        for each in (histogram, plain)
    )
    created = ("waits_created",)
    assert counted == pytest.approx({**expected, created: counted[created]})


def test_values_without_room_are_kept_and_written_when_there_is_room() -> None:
    run("""
    import errno, resource
    first = [f"{number}{'x' * 200}" for number in range(15)]
    later = [f"{number}{'y' * 200}" for number in range(40)]

    def work():
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        for colour in (first + later) * 2:
            users.labels(colour).inc()
        answer(3)()
        for _ in range(2):
            try:
                own.flush_all()
            except OSError as error:
                assert error.errno == errno.EFBIG and "metrics have no room" in str(error)
            else:
                raise AssertionError("there was room")
        found = samples()
        assert found["cats_total", first[0]] == 2
        assert ("cats_total", later[-1]) not in found
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        own.flush_all()
        users.labels(later[0]).inc()
    worker(0, work)
    found = samples()
    assert {found["cats_total", colour] for colour in first + later[1:]} == {2}
    assert found["cats_total", later[0]] == 3
    assert found[ANSWERED] == 3
    assert all(name.endswith(".db") or name == "alive" for name in os.listdir(directory))
    """)


def test_a_metric_that_a_later_load_makes_again_goes_on_for_both() -> None:
    run("""
    from prometheus_client import Histogram
    from mpserve.telemetry import prometheus

    def load(kind=Counter, labels=()):
        with prometheus.loading():
            return kind("dogs", "Dogs seen.", labels)

    def refused(make, words):
        try:
            make()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)

    def twice():
        with prometheus.loading():
            Counter("birds", "Birds."), Counter("birds", "Birds.")

    def ours():
        with prometheus.loading():
            Counter("mpserve_requests", "Not ours.")

    def work():
        old = load()
        old.inc(10)
        new = load()
        for metric in (old, new, old):
            metric.inc()
        load(labels=("breed",)).labels("poodle").inc(5)
    worker(0, work)
    worker(0, lambda: load().inc())
    assert samples()["dogs_total",] == 14
    assert samples()["dogs_total", "poodle"] == 5
    load()
    refused(lambda: load(Gauge), "expected the same kind of metric; restart the server")

    def waits(buckets, labels=()):
        with prometheus.loading():
            return Histogram("waits", "Waiting.", labels, buckets=buckets)

    waits((1, 2)), waits((1.0, 2, float("inf")))
    for buckets, labels in (((1,), ()), ((1, 3), ()), ((1, 3), ("breed",))):
        refused(lambda: waits(buckets, labels), "expected the same buckets, 1.0, 2.0, inf; restart the server")
    assert {name[1] for name in samples() if name[0] == "waits_bucket"} == {"1.0", "2.0", "+Inf"}
    refused(lambda: Counter("dogs", "Outside of a load."), "Duplicated")
    refused(twice, "Duplicated")
    refused(ours, "Duplicated")
    """)


@each("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_collectors_that_are_in_no_file_are_those_of_the_worker_that_is_asked(accept: str) -> None:
    run(f"""
    from prometheus_client import Enum, Info, REGISTRY
    from prometheus_client.core import GaugeMetricFamily

    class Cache:
        def collect(self):
            yield GaugeMetricFamily("cache_entries", "Entries.", 7)

    class Broken:
        def collect(self):
            if os.getpid() != arbiter:
                raise RuntimeError("no cache")
            return []

    arbiter = os.getpid()
    REGISTRY.register(Cache()); REGISTRY.register(Broken())
    Info("build", "The build.").info({{"version": "1.2"}})
    mood = Enum("mood", "The mood.", states=["calm", "cross"])

    def work():
        mood.state("cross")
        body, _ = metrics.render(board, {accept!r})
        lines = body.decode().splitlines()
        for line in ('build_info{{version="1.2"}} 1.0', 'mood{{mood="cross",pid="2"}} 1.0',
                     'mood{{mood="calm",pid="2"}} 0.0', 'cache_entries{{pid="2"}} 7.0'):
            assert line in lines, (line, lines)
        assert not any(line.startswith(("python_info", "process_")) for line in lines)
    worker(2, work)
    """)
