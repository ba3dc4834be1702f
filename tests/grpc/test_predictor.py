"""A transformer whose predictor is asked over gRPC: a real server of ours, in this process."""

import asyncio
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from mpserve import InferInput, InferOutput, InferRequest, InferResponse, InvalidInput, Model, ModelNotReady
from mpserve.http.inference.routes import BINARY_HEADER
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests import asgi
from tests.cases import each
from tests.grpc.models import Echo
from tests.grpc.serving import refusal, run, serving
from tests.running import free_port

INPUT = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
OVER_GRPC = {"predictor_protocol": "grpc-v2"}


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


async def infer(predictor: Model, transformer: Model | None = None, **request: Any) -> httpx.Response:
    """The answer of a transformer that is asked over REST, and asks this model over gRPC."""
    async with serving(predictor) as there:
        options = {"predictor_host": f"127.0.0.1:{there.server.port}", **OVER_GRPC}
        async with asgi.serving(transformer or Transformer(), **options) as client:
            return await client.post("/v2/models/m/infer", **request)


def test_json_goes_through() -> None:
    predictor = Doubling()
    answer = run(infer(predictor, json={"id": "7", "inputs": [INPUT], "parameters": {"a": 1}}))
    assert answer.json()["outputs"] == [{"name": "y", "shape": [2], "datatype": "FP32", "data": [2.0, 4.0]}]
    assert (predictor.request.id, predictor.request.parameters) == ("7", {"a": 1})


def test_bytes_go_through() -> None:
    request = InferRequest("m", [InferInput("x", [2], "FP16")], parameters={"binary_data_output": True})
    request.inputs[0].set_data_from_numpy(np.array([1, 2], np.float16))
    body, length = request.to_rest()
    answer = run(infer(Doubling(), content=body, headers={BINARY_HEADER: str(length)}))
    response = InferResponse.from_bytes(answer.content, int(answer.headers[BINARY_HEADER]))
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), np.array([2, 4], np.float16))


async def test_a_client_over_grpc_goes_through() -> None:
    async with serving(Doubling()) as there:
        options = {"predictor_host": f"127.0.0.1:{there.server.port}", **OVER_GRPC}
        async with serving(Transformer(), **options) as client:
            tensor = {"name": "x", "datatype": "INT64", "shape": [1]}
            request = pb.ModelInferRequest(
                model_name="m", inputs=[tensor], raw_input_contents=[np.array([21]).tobytes()]
            )
            answer = await client("ModelInfer", request)
            assert answer.raw_output_contents == [np.array([42]).tobytes()]


def test_headers_go_on_as_metadata() -> None:
    predictor = Doubling()
    headers = {"authorization": "Bearer 1", "traceparent": "00-1", "x-request-id": "mine-7", "cookie": "a=b"}
    run(infer(predictor, json={"inputs": [INPUT]}, headers=headers))
    got = {name: predictor.headers.get(name) for name in headers}
    assert got == {**headers, "cookie": None}


async def test_the_version_that_the_client_names_is_that_of_the_model_here() -> None:
    predictor = Doubling()
    async with serving(predictor) as there:
        options = {"predictor_host": f"127.0.0.1:{there.server.port}", **OVER_GRPC}
        transformer = Transformer()
        transformer.version = "7"
        async with asgi.serving(transformer, **options) as client:
            answer = await client.post("/v2/models/m/versions/7/infer", json={"inputs": [INPUT]})
            assert (answer.status_code, answer.json()["model_version"]) == (200, "7")
            assert predictor.request.model_version is None


@each("word, status, words", [
    ("invalid", 400, "The predictor answered INVALID_ARGUMENT: no cat"),
    ("resting", 503, "The predictor cannot be reached, or is not ready."),
    ("failing", 500, "The predictor answered INTERNAL: RuntimeError : boom"),
])  # fmt: skip
def test_the_client_is_told_what_the_predictor_said(word: str, status: int, words: str) -> None:
    answer = run(infer(Doubling(), json={"inputs": [INPUT], "parameters": {"word": word}}))
    assert (answer.status_code, answer.json()) == (status, {"error": words})


def test_a_model_that_the_predictor_does_not_have_is_a_404() -> None:
    answer = run(infer(Echo(), json={"inputs": [INPUT]}))
    assert answer.status_code == 404
    assert "Model with name m does not exist" in answer.json()["error"]


async def test_what_is_no_infer_request_is_refused_in_words() -> None:
    options = {"predictor_host": f"127.0.0.1:{free_port()}", **OVER_GRPC}
    async with asgi.serving(Transformer(), **options) as client:
        answer = await client.post("/v1/models/m:predict", json={"instances": [1]})
        assert answer.status_code == 500
        assert answer.json()["error"].endswith("with an InferRequest, got dict: make one in preprocess")


async def test_a_predictor_that_is_not_there_or_takes_too_long_has_its_grpc_status_too() -> None:
    class Held(Model):
        name = "m"

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            await asyncio.sleep(60)

    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    async with serving(Transformer(), predictor_host=f"127.0.0.1:{free_port()}", **OVER_GRPC) as client:
        code, _ = await refusal(client("ModelInfer", request))
        assert code is grpc.StatusCode.UNAVAILABLE
    async with serving(Held()) as there:
        options: dict[str, Any] = {"predictor_host": f"127.0.0.1:{there.server.port}", **OVER_GRPC}
        async with serving(Transformer(), predictor_request_timeout_seconds=0.2, **options) as client:
            code, words = await refusal(client("ModelInfer", request))
            assert (code, words) == (grpc.StatusCode.DEADLINE_EXCEEDED, "The predictor did not answer within 0.2 s.")


async def test_a_transformer_is_ready_while_its_predictor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpserve.serving.models.predictor.CHECK_EVERY", 0.02)

    predictor = Doubling()
    async with serving(predictor) as there:
        options = {"predictor_host": f"127.0.0.1:{there.server.port}", **OVER_GRPC}
        async with serving(Transformer(), enable_predictor_health_check=True, **options) as client:

            async def becomes(ready: bool) -> None:
                for _ in range(600):
                    if (await client("ModelReady", name="m")).ready is ready:
                        return
                    await asyncio.sleep(0.05)
                pytest.fail(f"ready did not become {ready}")

            await becomes(True)
            predictor.ready = False
            await becomes(False)
