"""A real Prometheus scrapes four workers: its figures are the load that was sent, and the dashboard's queries find them."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, speaking
from tests.e2e.workers import await_successor
from tests.prometheus import Prometheus, needs_prometheus, scraping
from tests.running import PATIENCE, Server, eventually

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"

MODELS = """
import os, time
from mpserve import Model, Tensor, TensorModel

class Batched(TensorModel):
    inputs = (Tensor("x", "FP64", (-1, 2)),)
    outputs = (Tensor("y", "FP64", (-1, 2)),)
    max_batch_size = 16
    def predict(self, x):
        return x

class Plain(Model):
    version = "3"
    def predict(self, payload, headers=None):
        [given] = payload["instances"]
        if given == "hold":
            with open("held.new", "w") as file:
                file.write(str(os.getpid()))
            os.rename("held.new", "held")
            time.sleep(600)
        if given == "fail":
            raise RuntimeError("as it was asked")
        return {"predictions": [given]}

models = [Batched("batched"), Plain("plain")]
"""

STATUSES: dict[object, str] = {
    200: "ok", 400: "invalid_input", 500: "model_failed", 504: "timed_out",
    grpc.StatusCode.OK: "ok", grpc.StatusCode.INVALID_ARGUMENT: "invalid_input",
}  # fmt: skip
"""What the metric says of an answer with this status."""

Outcome = tuple[str, object]
VERSIONS = {"batched": "1", "plain": "3"}


def v2(rows: int, width: int = 2, **parameters: int) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [rows, width], "datatype": "FP64", "data": [0.5] * rows * width}
    return {"inputs": [tensor], "parameters": parameters}


def post(server: Server, model: str, body: dict[str, Any], path: str = "/v2/models/{}/infer") -> Outcome:
    answer = httpx.post(server.url + path.format(model), json=body, timeout=PATIENCE, verify=False)
    return model, answer.status_code


def over_grpc(address: str, rows: int, width: int = 2) -> Outcome:
    request = pb.ModelInferRequest(model_name="batched")
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[rows, width])
    tensor.contents.fp64_contents.extend([0.5] * rows * width)
    try:
        call(address, "ModelInfer", request, pb.ModelInferResponse)
    except grpc.RpcError as error:
        return "batched", error.code()
    return "batched", grpc.StatusCode.OK


V1 = "/v1/models/{}:predict"


def kinds(server: Server, address: str) -> list[tuple[int, Callable[[], Outcome]]]:
    """One request of each kind, with the rows that the batches get of it."""
    return [
        (3, lambda: post(server, "batched", v2(3))),
        (1, lambda: post(server, "batched", {"instances": [[1.0, 2.0]]}, V1)),
        (2, lambda: over_grpc(address, 2)),
        (0, lambda: over_grpc(address, 2, width=5)),
        (0, lambda: post(server, "batched", v2(1, width=3))),
        (0, lambda: post(server, "batched", v2(1, timeout=1))),
        (0, lambda: post(server, "plain", {"instances": [7]}, V1)),
        (0, lambda: post(server, "plain", {"instances": ["fail"]}, V1)),
        (0, lambda: post(server, "nobody", {"instances": [7]}, V1)),
    ]


def load(server: Server, address: str, times: int) -> tuple[Counter[Outcome], int]:
    """Send each kind so many times, from several threads. The outcomes that clients saw, and the rows of batches."""
    asked = [kind for kind in kinds(server, address) for _ in range(times)]
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda kind: kind[1](), asked))
    return Counter(outcomes), sum(rows for rows, _ in asked)


def expected(outcomes: Counter[Outcome]) -> dict[tuple[str, ...], float]:
    told: Counter[tuple[str, ...]] = Counter()
    for (model, status), number in outcomes.items():
        if model in VERSIONS:
            told[model, VERSIONS[model], STATUSES[status]] += number
    return {key: float(number) for key, number in told.items()}


def by_model(prometheus: Prometheus, metric: str) -> dict[tuple[str, ...], float]:
    return prometheus.ask(f"sum by (model_name) ({metric})", "model_name")


def check(prometheus: Prometheus, outcomes: Counter[Outcome], rows: int) -> None:
    """Prometheus' figures are those of the clients."""
    wanted = expected(outcomes)
    answered = {(model,): number for (model, _, status), number in wanted.items() if status == "ok"}
    # Before a worker's first scrape its row may say otherwise, and a scrape is a second old.
    requests = "sum by (model_name, model_version, status) (mpserve_model_requests_total) > 0"
    eventually(lambda: prometheus.ask(requests, "model_name", "model_version", "status") == wanted)
    assert by_model(prometheus, "mpserve_model_request_seconds_count") == answered
    assert by_model(prometheus, "mpserve_model_queue_seconds_count") == answered
    assert by_model(prometheus, "mpserve_model_batch_size_sum") == {("batched",): rows}
    http = Counter[str]()
    grpc_calls = Counter[str]()
    for (_, status), number in outcomes.items():
        if isinstance(status, grpc.StatusCode):
            grpc_calls[status.name] += number
        else:
            http[str(status)] += number
    over_http = 'sum by (status) (mpserve_requests_total{route=~"/v[12]/models/.*"})'
    assert {status: number for (status,), number in prometheus.ask(over_http, "status").items()} == http
    calls = "sum by (status) (mpserve_grpc_requests_total)"
    assert {status: number for (status,), number in prometheus.ask(calls, "status").items()} == grpc_calls
    for metric in ("mpserve_model_requests_in_flight", "mpserve_model_requests_waiting"):
        assert by_model(prometheus, metric) == {("batched",): 0, ("plain",): 0}


def kill_a_worker_that_answers(server: Server, prometheus: Prometheus, folder: Path) -> int:
    """Kill a worker while it answers one request, which Prometheus sees in flight."""
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(post, server, "plain", {"instances": ["hold"]}, V1)
        victim = int(eventually(lambda: (folder / "held").exists() and (folder / "held").read_text()))
        eventually(lambda: by_model(prometheus, "mpserve_model_requests_in_flight") == {("batched",): 0, ("plain",): 1})
        os.kill(victim, signal.SIGKILL)
        assert isinstance(lost.exception(), httpx.TransportError)
    (folder / "held").unlink()
    await_successor(server, victim, 4)
    return victim


def queries() -> list[tuple[str, str]]:
    """The title of each panel of the dashboard, and each of its queries, for all models and instances."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    asked = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]
    return [
        (title, re.sub(r"\$(job|instance|model)\b", ".*", query.replace("$__rate_interval", "5m")))
        for title, query in asked
    ]


@needs_prometheus
def test_prometheus_has_the_load_that_was_sent_though_workers_were_killed_and_the_dashboard_shows_it(
    tmp_path: Path,
) -> None:
    with (
        speaking(tmp_path, "--workers=4", source=MODELS, target="model.py:models") as (server, address),
        scraping(server.wait_ready(workers=4).port, tmp_path, MONITORING / "alerts.yaml") as prometheus,
    ):
        outcomes, rows = load(server, address, 6)
        check(prometheus, outcomes, rows)
        for deaths in (1, 2):
            kill_a_worker_that_answers(server, prometheus, tmp_path)
            more, more_rows = load(server, address, 3)
            outcomes, rows = outcomes + more, rows + more_rows
            check(prometheus, outcomes, rows)
            assert prometheus.ask("mpserve_worker_restarts_total") == {(): deaths}
        assert prometheus.ask("mpserve_model_ready_workers", "model_name") == {("batched",): 4, ("plain",): 4}
        slots = {(str(slot),) for slot in range(4)}
        for metric in ("resident_memory_bytes", "open_fds", "cpu_seconds_total"):
            found = prometheus.ask(f"mpserve_worker_{metric}", "slot")
            assert set(found) == slots
            assert min(found.values()) > 0
        ages = prometheus.ask("time() - mpserve_worker_start_time_seconds", "slot")
        assert set(ages) == slots
        assert -1 < min(ages.values()) <= max(ages.values()) < 10 * PATIENCE
        for title, query in queries():
            assert eventually(lambda query=query: prometheus.ask(query)), title
