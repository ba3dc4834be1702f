"""A transformer whose predictor is asked over gRPC: a real server of ours, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from mpserve import InferInput, InferOutput, InferRequest, InferResponse, InvalidInput, Model, ModelNotReady
from mpserve.http.inference.routes import BINARY_HEADER
from tests import asgi
from tests.cases import each
from tests.grpc.models import Echo, Held
from tests.grpc.serving import Client, refusal, run, serving
from tests.grpc.serving import infer as message
from tests.running import free_port

INPUT = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
INFER = "/v2/models/m/infer"


class Doubling(Model):
    """The predictor; it does to the request what a word in it says."""

    name = "m"
    request: InferRequest
    headers: dict[str, str]

    def predict(self, payload: InferRequest, headers: dict[str, str]) -> InferResponse:
        self.request, self.headers = payload, headers
        fault = {"invalid": InvalidInput("no cat"), "resting": ModelNotReady("m"), "failing": RuntimeError("boom")}
        if (word := (payload.parameters or {}).get("word")) in fault:
            raise fault[word]
        (given,) = payload.inputs
        return InferResponse(None, "m", [InferOutput("y", given.shape, given.datatype, given.as_numpy() * 2)])


class Transformer(Model):
    name = "m"


def asking(port: int, **more: Any) -> dict[str, Any]:
    return {"predictor_host": f"127.0.0.1:{port}", "predictor_protocol": "grpc-v2", **more}


@asynccontextmanager
async def transforming(predictor: Model, **more: Any) -> AsyncIterator[Client]:
    """A client over gRPC of a transformer that asks this model."""
    async with serving(predictor) as there, serving(Transformer(), **asking(there.server.port, **more)) as client:
        yield client


def post(predictor: Model, version: str = "1", path: str = INFER, **request: Any) -> httpx.Response:
    """The answer to a client over REST of a transformer that asks this model."""
    transformer = Transformer()
    transformer.version = version

    async def test() -> httpx.Response:
        async with serving(predictor) as there, asgi.serving(transformer, **asking(there.server.port)) as client:
            return await client.post(path, **request)

    answer: httpx.Response = run(test())
    return answer


def test_json_goes_through_and_headers_as_metadata() -> None:
    predictor = Doubling()
    headers = {"authorization": "Bearer 1", "traceparent": "00-1", "x-request-id": "mine-7", "cookie": "a=b"}
    answer = post(predictor, json={"id": "7", "inputs": [INPUT], "parameters": {"a": 1}}, headers=headers)
    assert answer.json()["outputs"] == [{"name": "y", "shape": [2], "datatype": "FP32", "data": [2.0, 4.0]}]
    assert (predictor.request.id, predictor.request.parameters) == ("7", {"a": 1})
    assert {name: predictor.headers.get(name) for name in headers} == {**headers, "cookie": None}


def test_bytes_go_through() -> None:
    request = InferRequest("m", [InferInput("x", [2], "FP16")], parameters={"binary_data_output": True})
    request.inputs[0].set_data_from_numpy(np.array([1, 2], np.float16))
    body, length = request.to_rest()
    answer = post(Doubling(), content=body, headers={BINARY_HEADER: str(length)})
    response = InferResponse.from_bytes(answer.content, int(answer.headers[BINARY_HEADER]))
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), np.array([2, 4], np.float16))


async def test_a_client_over_grpc_goes_through() -> None:
    async with transforming(Doubling()) as client:
        tensor = {"name": "x", "datatype": "INT64", "shape": [1]}
        answer = await client(
            "ModelInfer", message("m", inputs=[tensor], raw_input_contents=[np.array([21]).tobytes()])
        )
        assert answer.raw_output_contents == [np.array([42]).tobytes()]


def test_the_version_that_the_client_names_is_that_of_the_model_here() -> None:
    predictor = Doubling()
    answer = post(predictor, "7", "/v2/models/m/versions/7/infer", json={"inputs": [INPUT]})
    assert (answer.status_code, answer.json()["model_version"]) == (200, "7")
    assert predictor.request.model_version is None


@each("predictor, word, status, words", [
    (Doubling(), "invalid", 400, "The predictor answered INVALID_ARGUMENT: no cat"),
    (Doubling(), "resting", 503, "The predictor cannot be reached, or is not ready."),
    (Doubling(), "failing", 500, "The predictor answered INTERNAL: RuntimeError : boom"),
    (Echo(), "", 404, "The predictor answered NOT_FOUND: Model with name m does not exist. There are: echo."),
])  # fmt: skip
def test_the_client_is_told_what_the_predictor_said(predictor: Model, word: str, status: int, words: str) -> None:
    answer = post(predictor, json={"inputs": [INPUT], "parameters": {"word": word}})
    assert (answer.status_code, answer.json()) == (status, {"error": words})


def test_what_is_no_infer_request_is_refused_in_words() -> None:
    answer = post(Doubling(), path="/v1/models/m:predict", json={"instances": [1]})
    assert answer.status_code == 500
    assert answer.json()["error"].endswith("with an InferRequest, got dict: make one in preprocess")


async def test_a_predictor_that_is_not_there_or_takes_too_long_has_its_grpc_status_too() -> None:
    async with serving(Transformer(), **asking(free_port())) as client:
        code, _ = await refusal(client("ModelInfer", message("m")))
        assert code is grpc.StatusCode.UNAVAILABLE
    held = Held()
    held.name = "m"
    async with transforming(held, predictor_request_timeout_seconds=0.2) as client:
        status = await refusal(client("ModelInfer", message("m")))
        assert status == (grpc.StatusCode.DEADLINE_EXCEEDED, "The predictor did not answer within 0.2 s.")


async def test_a_transformer_is_ready_while_its_predictor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpserve.serving.models.predictor.CHECK_EVERY", 0.02)
    predictor = Doubling()
    async with transforming(predictor, enable_predictor_health_check=True) as client:
        for ready in (True, False):
            predictor.ready = ready
            while (await client("ModelReady", name="m")).ready is not ready:
                pass
