"""Metrics of several workers: summed, kept over respawns, in a bounded number of files; each test in a process of its own."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

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


def run(code: str, env: dict[str, str] | None = None) -> str:
    program = MASTER + textwrap.dedent(code)
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment | (env or {}), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_any_process_gives_the_sum_of_all_workers() -> None:
    run("""
    worker(0, answer(3))
    worker(1, answer(4))
    worker(1, answer(0, "/other"))
    assert samples()["mpserve_requests_total", "/v2", "200"] == 7
    assert samples()["request_predict_seconds_count", "m"] == 7
    assert samples()["request_predict_seconds_sum", "m"] == 7 * 0.25

    def scrape():
        assert samples()["mpserve_requests_total", "/v2", "200"] == 7
    worker(2, scrape)
    """)


def test_a_successor_in_a_slot_goes_on_counting_after_a_sigkill() -> None:
    run("""
    worker(0, answer(3), killed=True)
    worker(0, answer(2), killed=True)
    worker(1, answer(1))
    assert samples()["mpserve_requests_total", "/v2", "200"] == 6
    """)


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
    assert samples()["mpserve_requests_total", "/v2", "200"] == 22
    """)


def test_the_live_gauges_of_a_dead_slot_are_cleared_before_it_is_given_again() -> None:
    run("""
    worker(0, lambda: queue.set(5), killed=True)
    worker(1, lambda: queue.set(7))
    assert samples()["queue",] == 12
    metrics.forget_live(0)
    assert samples()["queue",] == 7
    """)


def test_the_users_own_metrics_are_summed_too() -> None:
    run("""
    worker(0, lambda: users.labels("red").inc(2))
    worker(1, lambda: users.labels("red").inc(3))
    assert samples()["cats_total", "red"] == 5
    """)


def test_prometheus_client_may_have_been_imported_before() -> None:
    """It chooses its mode when it is first imported, which a user's script may have done."""
    program = (
        "import prometheus_client\n"
        + MASTER
        + textwrap.dedent("""
    worker(0, answer(3))
    worker(1, answer(4))
    assert samples()["mpserve_requests_total", "/v2", "200"] == 7
    """)
    )
    subprocess.run([sys.executable, "-c", program], check=True)


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


def test_a_stage_that_a_model_does_not_have_is_counted_with_its_predict_and_takes_no_time() -> None:
    """The SDK's dashboards divide by the count of each stage."""
    run("""
    observers = {
        stage: durations.note for stage, durations in own.stage_durations("m", frozenset({"postprocess"})).items()
    }
    for seconds in (1, 2):
        observers["predict"](seconds)
    observers["preprocess"](3)
    own.flush()
    found = samples()
    stages = ("preprocess", "predict", "postprocess")
    assert [found[f"request_{stage}_seconds_count", "m"] for stage in stages] == [1, 2, 2]
    assert [found[f"request_{stage}_seconds_sum", "m"] for stage in stages] == [3, 3, 0]
    """)


def test_the_stages_have_the_sdks_names_and_label() -> None:
    run("""
    for stage, durations in own.stage_durations("m").items():
        durations.note(1)
    names = {name for name, *labels in samples() if name.endswith("_seconds_count") and labels == ["m"]}
    assert names == {f"request_{stage}_seconds_count" for stage in ("preprocess", "predict", "postprocess", "explain")}
    """)


@each("accept, content_type", [
    ("", "text/plain; version="), ("text/plain", "text/plain; version="),
    ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
])  # fmt: skip
@each("mode", ["of all workers", "of this process"])
def test_the_format_is_the_one_that_is_accepted(accept: str, content_type: str, mode: str) -> None:
    program = """
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
    body, content_type = metrics.render(board, {accept!r})
    assert content_type.startswith({content_type!r}), content_type
    parse = parse_openmetrics if "openmetrics" in content_type else text_string_to_metric_families
    names = [family.name for family in parse(body.decode())]
    assert {{"mpserve_requests", "mpserve_workers", "mpserve_worker_restarts", "cats", "queue"}} <= set(names), names
    assert len(names) == len(set(names))
    """
    code = textwrap.dedent(program).format(accept=accept, content_type=content_type)
    if mode == "of this process":
        whole = MASTER.replace("directory = metrics.configure()\n", "") + "own.requests.labels('/', 200).inc()\n" + code
        subprocess.run([sys.executable, "-c", whole], check=True)
    else:
        run("worker(0, lambda: (answer(1)(), users.labels('red').inc(), queue.set(1)))\n" + code)


def test_without_configuration_the_processs_own_metrics_are_given() -> None:
    whole = MASTER.replace("directory = metrics.configure()\n", "") + textwrap.dedent("""
    answer(3)()
    users.labels("red").inc()
    assert samples()["mpserve_requests_total", "/v2", "200"] == 3
    assert samples()["cats_total", "red"] == 1
    metrics.set_slot(0)
    metrics.forget_live(0)
    """)
    subprocess.run([sys.executable, "-c", whole], check=True)


def test_the_directory_is_the_servers_own_and_is_removed_by_the_arbiter_alone(tmp_path: Path) -> None:
    printed = run(
        """
        assert metrics.configure() == directory
        assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(directory)
        worker(0, answer(1))
        assert directory.is_dir()
        print(directory)
        """,
        {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    assert Path(printed.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_two_servers_in_one_directory_share_no_file(tmp_path: Path) -> None:
    run(
        """
        import subprocess
        worker(0, answer(3))
        if not os.environ.get("SECOND"):
            base = str(directory.parent)
            again = subprocess.run([sys.executable, "-c", sys.orig_argv[-1]],
                                   env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": base, "SECOND": "1"})
            assert again.returncode == 0
        assert samples()["mpserve_requests_total", "/v2", "200"] == 3
        """,
        {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )


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
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": missing}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, capture_output=True, text=True
    )
    assert ended.stdout == (
        "PROMETHEUS_MULTIPROC_DIR: expected a directory that can be written in, "
        f"got {missing!r}: No such file or directory\n"
    )


@each("number", [0, 1, metrics.Durations.FULL - 1, metrics.Durations.FULL, 5000])
def test_durations_noted_by_several_threads_are_each_counted_once_in_their_bucket(number: int) -> None:
    bounds = (0.1, 0.5, 1.0)
    histogram = Histogram("waits", "Waits.", buckets=bounds, registry=CollectorRegistry())
    durations = metrics.Durations(histogram)
    given = [0.1, 0.10001, 0.7, 3.0]
    threads = [
        threading.Thread(target=lambda seconds=seconds: [durations.note(seconds) for _ in range(number)])
        for seconds in given
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    durations.flush()
    plain = Histogram("waits", "Waits.", buckets=bounds, registry=CollectorRegistry())
    for seconds in given * number:
        plain.observe(seconds)
    counted, expected = (
        {
            (s.name, *s.labels.values()): s.value
            for family in each.collect()
            for s in family.samples
            if "created" not in s.name
        }
        for each in (histogram, plain)
    )
    assert counted == pytest.approx(expected)
