"""Limits of callers and of models on a real server of several workers, over HTTP and gRPC."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.steered import Background
from tests.running import PATIENCE, Server, eventually, free_port, serving

MODELS = """
import time
from pathlib import Path
from mpserve import Tensor, TensorModel

class Quick(TensorModel):
    inputs = [Tensor("x", "FP32", [-1])]
    outputs = [Tensor("y", "FP32", [-1])]
    def predict(self, x):
        return x

class Held(Quick):
    max_in_flight = 1
    def predict(self, x):
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return x

models = [Quick("quick"), Held("held")]
"""
ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
RATE = 5
TOO_FAST = f"the caller alice has reached its limit of requests a second: {RATE}"
INFER = "/inference.GRPCInferenceService/ModelInfer"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1]}
PATIENT = {
    "methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }}],
}  # fmt: skip


def ask(server: Server, key: str, model: str = "quick") -> httpx.Response:
    """On a connection of its own, so that each worker is asked."""
    body = {"inputs": [{**TENSOR, "data": [1]}]}
    headers = {"x-api-key": key}
    url = f"{server.url}/v2/models/{model}/infer"
    return httpx.post(url, json=body, headers=headers, timeout=PATIENCE, verify=False)


def call(port: int, key: str, model: str = "quick", **options: Any) -> grpc.RpcError | None:
    """The refusal of a call, on a connection of its own; None: it was answered."""
    request = pb.ModelInferRequest(model_name=model, inputs=[{**TENSOR, "contents": {"fp32_contents": [1.0]}}])
    own = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=own) as channel:
        try:
            channel.unary_unary(INFER)(request.SerializeToString(), metadata=(("x-api-key", key),), timeout=PATIENCE)
        except grpc.RpcError as error:
            return error
    return None


def most(ask_once: Callable[[], bool], number: int) -> tuple[int, float]:
    """How many of so many requests were answered, and how many the rate may have allowed."""
    begin = time.monotonic()
    answered = sum(ask_once() for _ in range(number))
    return answered, RATE + RATE * (time.monotonic() - begin)


def test_limits_hold_over_all_workers_and_both_front_ends(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {ALICE}\nbob {BOB}\n")
    port = free_port()
    flags = ("--api_keys_file=keys", f"--max_rate_per_caller={RATE}", "--workers=2", "--public=health,metrics")
    with serving(
        tmp_path, MODELS, *flags, "--enable_grpc=yes", f"--grpc_port={port}", target="model.py:models"
    ) as server:
        server.wait_ready(workers=2)
        refusals: list[httpx.Response] = []

        def over_http() -> bool:
            answer = ask(server, ALICE)
            refusals.extend([answer] if answer.status_code == 429 else [])
            return answer.status_code == 200

        answered, allowed = most(over_http, 40)
        assert RATE <= answered <= allowed
        assert len(refusals) == 40 - answered
        assert {answer.headers["retry-after"] for answer in refusals} == {"1"}
        assert {answer.json()["error"] for answer in refusals} == {
            "the caller alice has reached its limit of requests a second: 5"
        }
        assert ask(server, BOB).status_code == 200  # alice's requests are not bob's

        refused = call(port, ALICE)
        while refused is None:
            refused = call(port, ALICE)
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert refused.details() == TOO_FAST  # type: ignore[attr-defined]
        assert ("retry-after", "1") in refused.trailing_metadata()  # type: ignore[attr-defined]
        # A client that retries by itself waits as long as it is told, which its own pauses are too short for.
        assert call(port, ALICE, **{"grpc.service_config": json.dumps(PATIENT)}) is None

        first = Background(lambda: ask(server, BOB, "held"))
        eventually((tmp_path / "begun").exists)
        statuses = Counter(ask(server, BOB, "held").status_code for _ in range(4))
        assert statuses == {429: 4}, statuses
        again = call(port, BOB, "held")
        assert again is not None
        assert again.details() == "Model held has reached its limit of requests in flight: 1"  # type: ignore[attr-defined]
        (tmp_path / "go").touch()
        assert first.result().status_code == 200
        eventually(lambda: ask(server, BOB, "held").status_code == 200, every=math.ceil(1 / RATE))
        reasons = 'mpserve_requests_refused_total{model_name="%s",model_version="1",reason="%s"}'
        eventually(lambda: server.metric(reasons % ("held", "model_in_flight")) >= 5)
        assert server.metric(reasons % ("quick", "caller_rate")) >= len(refusals)
