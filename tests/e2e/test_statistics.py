"""Statistics and metrics are the server's: of two workers, one of which dies, over HTTP and gRPC, whichever worker is asked."""

from pathlib import Path
from typing import Any

import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, infer, speaking
from tests.e2e.workers import kill_and_await_successor
from tests.running import PATIENCE, Server, eventually

PREDICTED = 'request_predict_seconds_count{model_name="m"}'


def told(server: Server, address: str) -> set[tuple[int, int, int]]:
    """Successes, failures and rows, as asked on several connections, over HTTP and gRPC."""
    asking = pb.ModelStatisticsRequest(name="m")
    found = set()
    for _ in range(8):
        [stats] = httpx.get(f"{server.url}/v2/models/m/stats", timeout=PATIENCE, verify=False).json()["model_stats"]
        spent = stats["inference_stats"]
        found.add((spent["success"]["count"], spent["fail"]["count"], stats["inference_count"]))
        [over_grpc] = call(address, "ModelStatistics", asking, pb.ModelStatisticsResponse).model_stats
        durations = over_grpc.inference_stats
        found.add((durations.success.count, durations.fail.count, over_grpc.inference_count))
    return found


def ask(server: Server, instance: Any) -> int:
    body = {"instances": [instance]}
    return httpx.post(f"{server.url}/v1/models/m:predict", json=body, timeout=PATIENCE, verify=False).status_code


def test_the_sum_over_all_workers_is_exact_and_outlives_a_killed_one(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=2") as (server, address):
        server.wait_ready(workers=2)
        pids: set[int] = set()
        asked = 0
        while len(pids) < 2:
            pids.add(infer(address))
            assert ask(server, 0.0) == 200
            asked += 2
            assert asked < 400
        assert ask(server, "no number") == 400
        assert told(server, address) == {(asked, 1, asked)}
        calls = 'mpserve_grpc_requests_total{method="ModelInfer",status="OK"}'
        eventually(lambda: server.metric(calls) == asked / 2)
        eventually(lambda: {server.metric(PREDICTED) for _ in range(8)} == {asked})
        kill_and_await_successor(server, min(pids))
        assert told(server, address) == {(asked, 1, asked)}
        assert [ask(server, 0.0) for _ in range(12)] == [200] * 12
        assert told(server, address) == {(asked + 12, 1, asked + 12)}
        eventually(lambda: {server.metric(PREDICTED) for _ in range(8)} == {asked + 12})
