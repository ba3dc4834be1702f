"""A transformer whose predictor is asked over REST: what the predictor gets, and what the client is told."""

import asyncio
import json
import logging
import threading
from http.client import responses
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from mpserve import InferInput, InferRequest, InferResponse, Model, PredictorConfig
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.http.inference.routes import BINARY_HEADER
from mpserve.http.predictor import RestPredictor
from mpserve.prefork.arbiter import predictor_front
from mpserve.prefork.arbiter.predictor_front import predictor
from tests.asgi import ask, predict, serving
from tests.cases import each
from tests.running import free_port
from tests.upstream import Asked, Told, Upstream, upstream


class Plain(Model):
    """Overrides no predict, which asks the predictor on the event loop."""

    name = "m"

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return {**payload, "seen": True} if isinstance(payload, dict) else payload

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return {"answer": result} if isinstance(result, dict) else result


class Awaiting(Model):
    name = "m"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return {**await super().predict(payload, headers), "mine": 1}


class Waiting(Model):
    name = "m"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {**super().predict(payload, headers), "mine": 1}


class OwnLoop(Awaiting):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return asyncio.run(super().predict(payload, headers))


def doubling(asked: Asked) -> Told:
    return Told(200, orjson.dumps({"predictions": [2 * x for x in json.loads(asked.body)["instances"]]}))


def options(there: Upstream, **more: Any) -> dict[str, Any]:
    return {"predictor_host": there.host, **more}


def test_preprocess_predictor_and_postprocess_in_their_order() -> None:
    with upstream(doubling) as there:
        answer = predict(Plain(), [1, 2], options=options(there))
        assert (answer.status_code, answer.json()) == (200, {"answer": {"predictions": [2, 4]}})
        (asked,) = there.asked
        assert (asked.method, asked.path) == ("POST", "/v1/models/m:predict")
        assert json.loads(asked.body) == {"instances": [1, 2], "seen": True}
        assert asked.headers["content-type"] == "application/json"


@each("kind", [Awaiting, Waiting, OwnLoop])
def test_a_predict_of_the_models_own_may_ask_the_predictor(kind: type[Model]) -> None:
    with upstream(doubling) as there:
        answer = predict(kind(), [1], options=options(there))
        assert answer.json() == {"predictions": [2], "mine": 1}


def test_a_name_is_quoted_and_a_host_may_have_a_path() -> None:
    with upstream(doubling) as there:
        path = "/v1/models/a%20%2Fb%3Fc:predict"
        answer = ask(
            Model("a /b?c"), "POST", path, json={"instances": []}, options={"predictor_host": f"{there.host}/base"}
        )
        assert answer.status_code == 200
        assert there.asked[0].path == f"/base{path}"


def test_the_headers_that_go_on_are_those_and_no_others() -> None:
    kept = {
        "authorization": "Bearer caf\xe9", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b", "x-b3-traceid": "80f198ee56343ba8", "x-request-id": "mine-7",
    }  # fmt: skip
    dropped = {"cookie": "a=b", "connection": "close", "te": "trailers", "x-other": "1", "accept": "text/html"}
    headers = [(name, value.encode("latin-1")) for name, value in {**kept, **dropped}.items()]
    with upstream(doubling) as there:
        predict(Model("m"), [1], headers=headers, options=options(there))
        (asked,) = there.asked
        assert kept.items() <= asked.headers.items()
        assert not dropped.items() & asked.headers.items()
        assert (asked.headers["host"], asked.headers["content-length"]) == (there.host, str(len(asked.body)))
        assert asked.headers["accept-encoding"] == "identity"


@each("wanted", [False, True])
def test_the_predictors_headers_are_for_a_model_that_asks_for_them(wanted: bool) -> None:
    model = Model("m")
    model.required_response_headers = wanted
    headers = {"Content-Type": "application/json", "x-cost": "3", "Server": "them", "tenant": "t"}
    with upstream(Told(200, b'{"predictions": [1]}', headers)) as there:
        answer = predict(model, [1], options=options(there))
        assert answer.json() == {"predictions": [1]}
        assert [answer.headers.get(name) for name in ("x-cost", "tenant")] == (["3", "t"] if wanted else [None, None])
        assert answer.headers.get("server") is None


def test_a_predict_of_the_models_own_may_hand_its_response_headers_on() -> None:
    class Handing(Model):
        name = "m"

        async def predict(self, payload: Any, headers: Any, response_headers: dict[str, str]) -> Any:
            answer = await super().predict(payload, headers, response_headers)
            return {**answer, "named": await super().predict(payload, headers, response_headers=response_headers)}

    with upstream(Told(200, b'{"predictions": [1]}', {"x-cost": "3"})) as there:
        assert predict(Handing(), [1], options=options(there)).headers["x-cost"] == "3"


@each("told, status, words", [
    (Told(400, b'{"error": "no cat"}'), 400, "The predictor answered 400: no cat"),
    (Told(401, b'{"error": "who?"}'), 401, "The predictor answered 401: who?"),
    (Told(403, b"RBAC: access denied"), 403, "The predictor answered 403: RBAC: access denied"),
    (Told(404, b'{"error": "no m"}'), 404, "The predictor answered 404: no m"),
    (Told(413, b""), 413, f"The predictor answered 413: {responses[413]}"),
    (Told(422, b'{"detail": [{"loc": "x"}]}'), 400, 'The predictor answered 422: [{"loc":"x"}]'),
    (Told(429, b'{"error": "slower"}'), 429, "The predictor answered 429: slower"),
    (Told(500, b'{"error": "boom"}'), 500, "The predictor answered 500: boom"),
    (Told(501, b'{"error": "not here"}'), 501, "The predictor answered 501: not here"),
    (Told(502, b"<html>"), 503, "The predictor answered 502: <html>"),
    (Told(503, b'{"error": "soon"}'), 503, "The predictor answered 503: soon"),
    (Told(504, b'{"error": "late"}'), 504, "The predictor answered 504: late"),
    (Told(302, b"", {"Location": "/"}), 500, "The predictor answered 302: Found"),
    (Told(200, b"<html>"), 500, "The predictor's answer is not JSON: "),
    (Told(500, b"x" * 5000), 500, f"The predictor answered 500: {'x' * 1000}"),
])  # fmt: skip
def test_the_client_is_told_what_the_predictor_said(told: Told, status: int, words: str) -> None:
    with upstream(told) as there:
        answer = predict(Model("m"), [1], options=options(there))
        assert answer.status_code == status
        assert answer.json()["error"].startswith(words)
        assert len(answer.json()["error"]) <= 1100
        assert ("retry-after" in answer.headers) is (status == 503)


def test_a_predictor_that_is_not_there_is_a_503_and_its_address_is_in_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = f"127.0.0.1:{free_port()}"
    answer = predict(Model("m"), [1], options={"predictor_host": host})
    assert (answer.status_code, answer.json()) == (503, {"error": "The predictor cannot be reached."})
    assert answer.headers["retry-after"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert host in record.message
    assert "ConnectError" in record.message


@each("statuses, retries, status", [
    ((503, 503, 200), 2, 200), ((503, 503, 200), 1, 503), ((503, 200), 0, 503), ((500, 200), 5, 500),
    ((400, 200), 5, 400),
])  # fmt: skip
def test_only_a_predictor_that_is_not_ready_is_asked_again(
    statuses: tuple[int, ...], retries: int, status: int
) -> None:
    left = list(statuses)
    with upstream(lambda asked: Told(left.pop(0))) as there:
        answer = predict(Model("m"), [1], options=options(there, predictor_request_retries=retries))
        assert answer.status_code == status
        assert len(there.asked) == min(len(statuses), retries + 1 if 503 in statuses else 1)


@each("model", [Model("m"), Waiting()])
def test_a_predictor_that_takes_too_long_is_a_504(model: Model) -> None:
    go = threading.Event()

    def hold(asked: Asked) -> Told:
        go.wait(60)
        return Told(200)

    with upstream(hold) as there:
        try:
            answer = predict(model, [1], options=options(there, predictor_request_timeout_seconds=0.2))
        finally:
            go.set()
        assert (answer.status_code, answer.json()) == (504, {"error": "The predictor did not answer within 0.2 s."})


def test_the_retries_are_within_the_time_that_was_given() -> None:
    with upstream(Told(503)) as there:
        more = {"predictor_request_retries": 1000000, "predictor_request_timeout_seconds": 0.3}
        assert predict(Model("m"), [1], options=options(there, **more)).status_code == 504
        assert len(there.asked) > 1


# V2


def answered(asked: Asked) -> Told:
    """The input of the request, doubled, as bytes if it came as bytes."""
    json_length = asked.headers.get(BINARY_HEADER)
    request = InferRequest.from_bytes(asked.body, int(json_length or len(asked.body)), "m")
    values = request.inputs[0].as_numpy() * 2
    head = {"name": "y", "datatype": "FP32", "shape": values.shape}
    if json_length is None:
        return Told(
            200, orjson.dumps({"model_name": "m", "id": request.id, "outputs": [{**head, "data": values.tolist()}]})
        )
    raw = values.tobytes()
    document = orjson.dumps({"model_name": "m", "outputs": [{**head, "parameters": {"binary_data_size": len(raw)}}]})
    return Told(200, document + raw, {BINARY_HEADER: str(len(document)), "Content-Type": "application/octet-stream"})


INPUT = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


def infer(model: Model, there: Upstream, **request: Any) -> httpx.Response:
    return ask(model, "POST", "/v2/models/m/infer", options=options(there, predictor_protocol="v2"), **request)


def test_a_v2_request_goes_on_as_json() -> None:
    with upstream(answered) as there:
        answer = infer(Model("m"), there, json={"id": "7", "inputs": [INPUT], "outputs": [{"name": "y"}]})
        assert answer.json()["outputs"] == [{"name": "y", "shape": [2], "datatype": "FP32", "data": [2.0, 4.0]}]
        (asked,) = there.asked
        assert (asked.path, asked.headers["content-type"]) == ("/v2/models/m/infer", "application/json")
        sent = json.loads(asked.body)
        assert (sent["id"], sent["inputs"], sent["outputs"]) == ("7", [INPUT], [{"name": "y"}])


def test_a_v2_request_goes_on_as_bytes_if_it_came_so() -> None:
    raw = np.array([1, 2], np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    with upstream(answered) as there:
        answer = infer(Model("m"), there, content=head + raw, headers={BINARY_HEADER: str(len(head))})
        response = InferResponse.from_bytes(answer.content, int(answer.headers[BINARY_HEADER]))
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), [2, 4])
        assert there.asked[0].body.endswith(raw)
        assert there.asked[0].headers["content-type"] == "application/octet-stream"


def test_a_dict_goes_to_a_v2_predictor_as_it_is() -> None:
    class Wrapping(Model):
        name = "m"

        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return {"inputs": [{**INPUT, "data": payload["instances"]}]}

    with upstream(answered) as there:
        answer = predict(Wrapping(), [3, 4], options=options(there, predictor_protocol="v2"))
        assert answer.json() == {"predictions": [6.0, 8.0]}


def test_an_answer_that_is_not_one_of_v2_is_no_fault_of_the_clients() -> None:
    with upstream(Told(200, b'{"outputs": [{"name": "y"}]}')) as there:
        answer = infer(Model("m"), there, json={"inputs": [INPUT]})
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("the response is not one of V2")


def test_a_request_that_cannot_be_written_is_no_fault_of_the_clients() -> None:
    class Dividing(Model):
        name = "m"

        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            tensor = InferInput("x", [1], "FP32")
            tensor.set_data_from_numpy(np.array([np.nan], np.float32), binary_data=False)
            return InferRequest("m", [tensor])

    with upstream(answered) as there:
        answer = infer(Dividing(), there, json={"inputs": [INPUT]})
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("the request to the predictor cannot be written: input 'x'")


# Readiness


@each("protocol, path, told, ready", [
    ("v1", "/v1/models/m", Told(200, b'{"name": "m", "ready": true}'), True),
    ("v1", "/v1/models/m", Told(200, b'{"name": "m", "ready": "True"}'), True),
    ("v1", "/v1/models/m", Told(200, b'{"model_version_status": []}'), True),
    ("v1", "/v1/models/m", Told(200, b'{"name": "m", "ready": false}'), False),
    ("v1", "/v1/models/m", Told(503), False), ("v2", "/v2/models/m/ready", Told(200, b""), True),
    ("v2", "/v2/models/m/ready", Told(400, b""), False),
])  # fmt: skip
async def test_the_predictors_readiness_is_read(protocol: str, path: str, told: Told, ready: bool) -> None:
    with upstream(told) as there:
        client = RestPredictor(PredictorConfig(there.host, protocol))
        assert await client.is_ready("m") is ready
        await client.close()
        assert there.asked[0].path == path


async def test_a_transformer_is_ready_while_its_predictor_is_and_asks_it_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpserve.serving.models.predictor.CHECK_EVERY", 0.02)
    ready = Told(503)
    with upstream(lambda asked: doubling(asked) if asked.method == "POST" else ready) as there:
        async with serving(Model("m"), **options(there, enable_predictor_health_check=True)) as client:
            predicted = await client.post("/v1/models/m:predict", json={"instances": [1]})
            assert predicted.json() == {"predictions": [2]}
            for ready in (Told(503), Told(200), Told(503)):
                for path in ("/v2/health/ready", "/v2/models/m/ready", "/v1/models/m"):
                    while (await client.get(path)).status_code != ready.status:  # the test has a time limit
                        await asyncio.sleep(0.01)


# What it is made of


AUTHORITIES = {"predictor_host": "h", "predictor_use_ssl": True, "predictor_ca_file": "/nowhere.pem"}
NOT_READ = r"predictor_ca_file: /nowhere.pem cannot be used: .*No such file"


@each("options, words", [
    ({**AUTHORITIES, "predictor_protocol": "v1"}, NOT_READ),
    ({**AUTHORITIES, "predictor_protocol": "grpc-v2"}, NOT_READ),
    ({"predictor_host": "there:port"}, "predictor_host: got 'there:port': Invalid port"),
])  # fmt: skip
async def test_what_no_client_can_be_made_of_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    made = predictor(Settings(**options))
    assert made is not None
    with pytest.raises(ConfigurationError, match=words):
        made.start(list)


@each("protocol, words", [
    ("v1", r"needs httpx2, .* pip install 'mpserve\[transformer\]'"),
    ("v2", r"needs httpx2, .* pip install 'mpserve\[transformer\]'"),
    ("grpc-v2", r"needs grpcio, .* pip install 'mpserve\[grpc\]'"),
])  # fmt: skip
def test_a_missing_package_is_named_with_the_command(
    protocol: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_front, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=words):
        predictor(Settings(predictor_host="h", predictor_protocol=protocol))
    assert predictor(Settings()) is None
