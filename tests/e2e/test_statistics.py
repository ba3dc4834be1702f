"""Statistics and metrics are the server's: of two workers, one of which dies, over HTTP and gRPC, whichever worker is asked."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, infer, speaking
from tests.running import PATIENCE, Server, eventually

PREDICTED = 'request_predict_seconds_count{model_name="m"}'


def each_told(server: Server, address: str) -> list[tuple[int, int, int]]:
    """Successes, failures and rows, as asked on several connections, over HTTP and gRPC."""
    told = []
    for _ in range(8):
        [stats] = httpx.get(f"{server.url}/v2/models/m/stats", timeout=PATIENCE, verify=False).json()["model_stats"]
        spent = stats["inference_stats"]
        told.append((spent["success"]["count"], spent["fail"]["count"], stats["inference_count"]))
        [over_grpc] = call(
            address, "ModelStatistics", pb.ModelStatisticsRequest(name="m"), pb.ModelStatisticsResponse
        ).model_stats
        durations = over_grpc.inference_stats
        told.append((durations.success.count, durations.fail.count, over_grpc.inference_count))
    return told


def ask(server: Server, instances: Any) -> Any:
    body = {"instances": instances}
    return httpx.post(f"{server.url}/v1/models/m:predict", json=body, timeout=PATIENCE, verify=False)


def test_the_sum_over_all_workers_is_exact_and_outlives_a_killed_one(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=2") as (server, address):
        server.wait_ready(workers=2)
        pids: set[int] = set()
        asked = 0
        while len(pids) < 2:
            pids.add(infer(address))
            assert ask(server, [0.0]).status_code == 200
            asked += 2
            assert asked < 400
        assert ask(server, ["no number"]).status_code == 400
        assert set(each_told(server, address)) == {(asked, 1, asked)}
        calls = 'mpserve_grpc_requests_total{method="ModelInfer",status="OK"}'
        eventually(lambda: server.metric(calls) == asked / 2)
        eventually(lambda: {server.metric(PREDICTED) for _ in range(8)} == {asked})
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in server.workers() and server.states().get("ready") == 2)
        assert set(each_told(server, address)) == {(asked, 1, asked)}
        for _ in range(12):
            assert ask(server, [0.0]).status_code == 200
        assert set(each_told(server, address)) == {(asked + 12, 1, asked + 12)}
        eventually(lambda: {server.metric(PREDICTED) for _ in range(8)} == {asked + 12})
