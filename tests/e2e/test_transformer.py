"""A transformer and its predictor, both real servers with two workers: each protocol, TLS, and what comes and goes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mpserve import InferInput, InferRequest, InferResponse
from mpserve.http.inference.routes import BINARY_HEADER
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


@contextmanager
def predicting(folder: Path, protocol: str, *flags: str, scheme: str = "http") -> Iterator[tuple[Server, str]]:
    """A predictor, ready, and the host and port where it speaks that protocol."""
    folder.mkdir()
    grpc_port = free_port()
    flags = ("--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}", *flags)
    with serving(folder, PREDICTOR, *flags, scheme=scheme) as server:
        server.wait_ready(workers=2)
        yield server, f"127.0.0.1:{grpc_port if protocol == 'grpc-v2' else server.port}"


@contextmanager
def transforming(folder: Path, protocol: str, host: str, *flags: str, **more: Any) -> Iterator[Server]:
    """A transformer of the predictor at ``host``, ready."""
    folder.mkdir()
    flags = ("--workers=2", f"--predictor_protocol={protocol}", f"--predictor_host={host}", *flags)
    with serving(folder, TRANSFORMER, *flags, **more) as server:
        yield server.wait_ready(workers=2)


def v1(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": [1, 2]}, timeout=30, verify=False)


def v2(server: Server) -> httpx.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    return httpx.post(f"{server.url}/v2/models/m/infer", json={"inputs": [tensor]}, timeout=30, verify=False)


def v2_binary(server: Server) -> list[float]:
    request = InferRequest("m", [InferInput("x", [2], "FP32")], parameters={"binary_data_output": True})
    request.inputs[0].set_data_from_numpy(np.array([1, 2], np.float32))
    body, length = request.to_rest()
    assert isinstance(body, bytes)
    headers = {BINARY_HEADER: str(length)}
    answer = httpx.post(f"{server.url}/v2/models/m/infer", content=body, headers=headers, timeout=30, verify=False)
    response = InferResponse.from_bytes(answer.content, int(answer.headers[BINARY_HEADER]))
    return [float(value) for value in response.outputs[0].as_numpy()]


def outcome(server: Server, protocol: str) -> Any:
    """The numbers of the answer to (1, 2), or its status."""
    answer = v1(server) if protocol == "v1" else v2(server)
    if answer.status_code != 200:
        return answer.status_code
    return answer.json()["predictions"] if protocol == "v1" else answer.json()["outputs"][0]["data"]


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
def test_two_servers_answer_as_one_and_the_one_in_front_says_when_the_other_is_gone(
    tmp_path: Path, protocol: str
) -> None:
    check = "--enable_predictor_health_check"
    with (
        predicting(tmp_path / "predictor", protocol) as (predictor, host),
        transforming(tmp_path / "transformer", protocol, host, check) as transformer,
    ):
        assert [outcome(transformer, protocol) for _ in range(8)] == [[4, 6]] * 8
        if protocol == "v1":
            answer = v1(transformer)
            assert answer.json()["id"] == answer.headers["x-request-id"]
        else:
            assert v2_binary(transformer) == [4, 6]
        eventually(lambda: transformer.metric('request_predict_seconds_count{model_name="m"}') >= 8)
        predictor.stop()
        assert {outcome(transformer, protocol) for _ in range(8)} == {503}
        eventually(lambda: not transformer.is_ready())
        transformer.signal(signal.SIGTERM)
        assert transformer.wait_end() == 0
        assert "Traceback" not in transformer.log


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_the_predictors_certificate_is_verified(tmp_path: Path, protocol: str) -> None:
    pairs = {name: make_pair(tmp_path, name) for name in ("ours", "other")}
    tls = [f"--ssl_certfile={pairs['ours'].certificate}", f"--ssl_keyfile={pairs['ours'].key}"]
    with predicting(tmp_path / "predictor", protocol, *tls, scheme="https") as (_, host):
        for trusted, expected in (("ours", [4, 6]), ("other", 503)):
            env = {"REQUESTS_CA_BUNDLE": str(pairs[trusted].certificate)}  # as KServe's controller tells it
            with transforming(tmp_path / trusted, protocol, host, "--predictor_use_ssl", env=env) as transformer:
                assert outcome(transformer, protocol) == expected
                assert ("CERTIFICATE_VERIFY_FAILED" in transformer.log) is (expected == 503)


def test_a_predictor_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    """Over gRPC, whose channel would wait longer and longer between its attempts to connect."""
    grpc_port = free_port()
    with transforming(tmp_path / "transformer", "grpc-v2", f"127.0.0.1:{grpc_port}") as transformer:
        assert outcome(transformer, "grpc-v2") == 503
        folder = tmp_path / "predictor"
        folder.mkdir()
        flags = ["--enable_grpc=yes", f"--grpc_port={grpc_port}"]
        with serving(folder, PREDICTOR, *flags) as predictor:
            predictor.wait_ready()
            eventually(lambda: outcome(transformer, "grpc-v2") == [4, 6])
