"""A transformer and its predictor, both real servers with two workers: each protocol, TLS, and what comes and goes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_tls import make_pair
from tests.running import Server, eventually, free_port, serving

PREDICTOR = """
from mpserve import InferOutput, InferResponse, Model

class Predictor(Model):
    name = "m"
    def predict(self, payload, headers=None):
        if isinstance(payload, dict):
            return {"predictions": [2 * x for x in payload["instances"]], "id": headers["x-request-id"]}
        x = payload.inputs[0].as_numpy()
        return InferResponse(payload.id, "m", [InferOutput("y", x.shape, payload.inputs[0].datatype, 2 * x)])
"""

TRANSFORMER = """
from mpserve import Model

class Transformer(Model):
    name = "m"
    def preprocess(self, payload, headers=None):
        if isinstance(payload, dict):
            return {"instances": [x + 1 for x in payload["instances"]]}
        payload.inputs[0].set_data_from_numpy(payload.inputs[0].as_numpy() + 1, payload.inputs[0].binary_data)
        return payload
"""
GRPC = "grpc-v2"
V1 = "/v1/models/m:predict"


@contextmanager
def predicting(folder: Path, *flags: str, **more: Any) -> Iterator[tuple[Server, dict[str, str]]]:
    """A predictor, and the host and port where it speaks each protocol."""
    folder.mkdir()
    port = free_port()
    with serving(
        folder, PREDICTOR, "--workers=2", "--enable_grpc=yes", f"--grpc_port={port}", *flags, **more
    ) as server:
        http = f"127.0.0.1:{server.port}"
        yield server.wait_ready(workers=2), {"v1": http, "v2": http, GRPC: f"127.0.0.1:{port}"}


@contextmanager
def transforming(folder: Path, protocol: str, host: str, *flags: str, **more: Any) -> Iterator[Server]:
    """A transformer of the predictor at ``host``, ready."""
    folder.mkdir()
    flags = ("--workers=2", f"--predictor_protocol={protocol}", f"--predictor_host={host}", *flags)
    with serving(folder, TRANSFORMER, *flags, **more) as server:
        yield server.wait_ready(workers=2)


def outcome(server: Server, protocol: str) -> Any:
    """The numbers of the answer to (1, 2), or its status; on a connection of its own."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    path, body = ("/v2/models/m/infer", {"inputs": [tensor]}) if protocol != "v1" else (V1, {"instances": [1, 2]})
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=30, verify=False)
    if answer.status_code != 200:
        return answer.status_code
    if protocol != "v1":
        return answer.json()["outputs"][0]["data"]
    assert answer.json()["id"] == answer.headers["x-request-id"]  # the same in both
    return answer.json()["predictions"]


@pytest.mark.parametrize("protocol", ["v1", "v2", GRPC])
def test_two_servers_answer_as_one_and_the_one_in_front_says_when_the_other_is_gone(
    tmp_path: Path, protocol: str
) -> None:
    check = "--enable_predictor_health_check"
    with (
        predicting(tmp_path / "predictor") as (predictor, hosts),
        transforming(tmp_path / "transformer", protocol, hosts[protocol], check) as transformer,
    ):
        assert [outcome(transformer, protocol) for _ in range(8)] == [[4, 6]] * 8
        eventually(lambda: transformer.metric('request_predict_seconds_count{model_name="m"}') >= 8)
        predictor.stop()
        assert {outcome(transformer, protocol) for _ in range(8)} == {503}
        eventually(lambda: not transformer.is_ready())
        transformer.signal(signal.SIGTERM)
        assert transformer.wait_end() == 0
        assert "Traceback" not in transformer.log


def test_the_predictors_certificate_is_verified(tmp_path: Path) -> None:
    pairs = {name: make_pair(tmp_path, name) for name in ("ours", "other")}
    with predicting(tmp_path / "predictor", *pairs["ours"].flags, scheme="https") as (_, hosts):
        for protocol in ("v2", GRPC):
            for trusted, expected in (("ours", [4, 6]), ("other", 503)):
                folder = tmp_path / f"{protocol} {trusted}"
                env = {"REQUESTS_CA_BUNDLE": str(pairs[trusted].certificate)}  # as KServe's controller tells it
                with transforming(folder, protocol, hosts[protocol], "--predictor_use_ssl", env=env) as transformer:
                    assert outcome(transformer, protocol) == expected
                    assert ("CERTIFICATE_VERIFY_FAILED" in transformer.log) is (expected == 503)


def test_a_predictor_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    """Over gRPC, whose channel would wait longer and longer between its attempts to connect."""
    port = free_port()
    with transforming(tmp_path / "transformer", GRPC, f"127.0.0.1:{port}") as transformer:
        assert outcome(transformer, GRPC) == 503
        with predicting(tmp_path / "predictor", f"--grpc_port={port}"):
            eventually(lambda: outcome(transformer, GRPC) == [4, 6])
