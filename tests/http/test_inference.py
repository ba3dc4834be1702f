"""The hot routes: what a body of what content type gives, how models answer, and every fault that can be told."""

import asyncio
import gzip
import re
import threading
import zlib
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from starlette.exceptions import HTTPException

from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.serving.model import Model
from mpserve.serving.tensors import Tensor, TensorModel
from tests.asgi import ask, predict, serving
from tests.error_table import CASES, GOOD, MAX_BODY_SIZE, PREPARATION, Case, tensor, v1, v2
from tests.models import faulty

PATIENCE = 30.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_told_and_leaves_the_server_usable(case: Case) -> None:
    async def main() -> tuple[httpx.Response, httpx.Response]:
        models = [type(model)() for model in faulty.models]
        async with serving(*models, max_body_size=MAX_BODY_SIZE) as client:
            path, body = PREPARATION
            assert (await client.post(path, content=body)).status_code == 200
            answer = await client.request(case.method, case.path, content=case.body, headers=case.headers)
            path, body = GOOD
            return answer, await client.post(path, content=body)

    answer, good = asyncio.run(main())
    body = answer.json()
    assert (answer.status_code, list(body)) == (case.status, ["error"])
    assert re.search(case.says, body["error"])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("allow") == case.allow
    assert (good.status_code, good.json()) == (200, {"predictions": [1]})


@pytest.mark.parametrize("model", [v1({"instances": [1]}), v2(tensor())], ids=["v1", "v2"])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON;charset=UTF-8",
        "application/ld+json",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "",
        None,
    ],
)
def test_json_is_taken_under_every_content_type_that_clients_send_it_with(
    model: tuple[str, bytes], content_type: str | None
) -> None:
    """``curl -d`` says it is a form, the kserve client octets, tritonclient nothing, Java and axios add a charset."""
    path, body = model
    headers = {} if content_type is None else {"content-type": content_type}
    assert ask(faulty.Echo(), "POST", path, content=body, headers=headers).status_code == 200


def test_a_body_that_is_no_json_by_its_type_reaches_a_v1_model_as_bytes() -> None:
    class Length(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            return {"predictions": [type(payload).__name__, len(payload), headers["content-type"]]}

    answer = ask(Length(), "POST", "/v1/models/m:predict", content=b"\xff\xd8", headers={"content-type": "image/jpeg"})
    assert answer.json() == {"predictions": ["bytes", 2, "image/jpeg"]}


class Answering(Model):
    """Answers with what it was constructed with."""

    name = "m"

    def __init__(self, answer: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.answer, self.headers = answer, headers or {}

    def predict(self, payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers.update(self.headers)
        return self.answer


@pytest.mark.parametrize(
    ("result", "content_type", "body"),
    [
        ({"predictions": [1]}, "application/json", b'{"predictions":[1]}'),
        ({"predictions": np.float32([1.5])}, "application/json", b'{"predictions":[1.5]}'),
        ([1], "application/json", b"[1]"),
        ("text", "text/plain; charset=utf-8", b"text"),
        (b"\xff", "application/octet-stream", b"\xff"),
        (InferResponse("1", "m", [InferOutput("y", [2], "INT64", [1, 2])]), "application/json", b'{"predictions":[1,2]}'),
    ],
)  # fmt: skip
def test_v1_answers_in_the_form_that_the_result_has(result: Any, content_type: str, body: bytes) -> None:
    answer = predict(Answering(result))
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, content_type, body)


def test_headers_that_the_model_sets_are_sent_and_may_say_what_the_content_is() -> None:
    answer = predict(Answering(b"\x89PNG", {"Content-Type": "image/png", "X-Model": "é", "Content-Length": "1"}))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers.get_list("content-length") == ["4"]
    assert [value for name, value in answer.headers.raw if name == b"x-model"] == ["é".encode("latin-1")]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-a": "1\r\nset-cookie: b=c"},
        {"x-a\r\nset-cookie": "b=c"},
        {"x-a": "1\n"},
        {"x-a": "\0"},
        {"x-a": "日"},
        {"x a": "1"},
        {"": "1"},
    ],
    ids=repr,
)
def test_a_header_that_could_end_the_head_or_cannot_be_written_is_the_models_fault(headers: dict[str, str]) -> None:
    answer = predict(Answering({}, headers))
    assert answer.status_code == 500
    assert "the model set the response header" in answer.json()["error"]
    assert "set-cookie" not in answer.headers


def test_a_model_gets_the_request_headers_in_lower_case() -> None:
    class Headers(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            return {"predictions": [headers["x-mine"], headers["authorization"]]}

    answer = predict(Headers(), headers={"X-Mine": "1", "Authorization": "Bearer x"})
    assert answer.json() == {"predictions": ["1", "Bearer x"]}


class Double(TensorModel):
    name = "double"
    inputs = (Tensor("x", "FP32", (-1, 2)),)
    outputs = (Tensor("y", "FP32", (-1, 2)),)

    def predict(self, x: Any) -> Any:
        return x * 2


class AsyncDouble(Double):
    async def predict(self, x: Any) -> Any:
        await asyncio.sleep(0)
        return x * 2


class MixedDouble(AsyncDouble):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        return payload

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        asyncio.get_running_loop()
        return result


@pytest.mark.parametrize("model", [Double(), AsyncDouble(), MixedDouble()], ids=lambda model: type(model).__name__)
def test_one_model_answers_v1_and_v2_whether_sync_async_or_mixed(model: Model) -> None:
    v2_request = {
        "id": "7",
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}],
        "outputs": [{"name": "y"}],
    }

    async def main() -> list[Any]:
        async with serving(model) as client:
            answers = [
                await client.post("/v1/models/double:predict", json={"instances": [[1, 2]]}),
                await client.post("/v2/models/double/infer", json=v2_request),
                await client.post("/v2/models/double/versions/1/infer", json=v2_request),
            ]
            return [answer.json() for answer in answers]

    outputs = [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 4.0]}]
    assert asyncio.run(main()) == [
        {"predictions": [[2.0, 4.0]]},
        {"model_name": "double", "id": "7", "outputs": outputs},
        {"model_name": "double", "model_version": "1", "id": "7", "outputs": outputs},
    ]


def test_explain_answers_with_what_explain_gives() -> None:
    class Explaining(Model):
        name = "m"

        def explain(self, payload: Any, headers: Any = None) -> Any:
            return {"explanations": payload["instances"]}

    answer = ask(Explaining(), "POST", "/v1/models/m:explain", json={"instances": [1]})
    assert answer.json() == {"explanations": [1]}


def test_a_v2_model_may_answer_with_a_dict_as_sdk_models_do() -> None:
    class SdkStyle(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            assert isinstance(payload, InferRequest)
            return {"model_name": "m", "outputs": []}

    path, body = v2(tensor(), "m")
    assert ask(SdkStyle(), "POST", path, content=body).json() == {"model_name": "m", "outputs": []}


def test_a_model_written_for_fastapi_chooses_its_status_and_costs_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Choosy(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise HTTPException(409, "taken", headers={"X-By": "whom"})

    answer = predict(Choosy())
    assert (answer.status_code, answer.json(), answer.headers["x-by"]) == (409, {"error": "taken"}, "whom")
    assert caplog.records == []


def test_a_binary_tensor_goes_in_and_comes_out_beside_json() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    head = orjson.dumps({
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "y", "datatype": "INT32", "shape": [1], "data": [7]},
        ],
        "outputs": [{"name": "x", "parameters": {"binary_data": True}}, {"name": "y"}],
    })  # fmt: skip
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = ask(faulty.Echo(), "POST", "/v2/models/echo/infer", content=head + array.tobytes(), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    length = int(answer.headers["inference-header-content-length"])
    outputs = orjson.loads(answer.content[:length])["outputs"]
    assert [output["name"] for output in outputs] == ["x", "y"]
    assert outputs[0]["parameters"] == {"binary_data_size": 24}
    assert outputs[1]["data"] == [7]
    assert answer.content[length:] == array.tobytes()


def classified(count: Any, **parameters: Any) -> httpx.Response:
    wanted = {"name": "x", "parameters": {"classification": count, **parameters}}
    return ask(faulty.Echo(), "POST", "/v2/models/echo/infer", json=tensor(data=[0.5, 3.3]) | {"outputs": [wanted]})


def test_an_output_is_classified_as_json() -> None:
    expected = {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["3.3:1", "0.5:0"]}
    assert classified(2).json()["outputs"] == [expected]


def test_an_output_is_classified_as_bytes() -> None:
    answer = classified(1, binary_data=True)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.content[length:] == b"\x05\0\0\x003.3:1"


def test_a_bad_number_of_classes_is_the_clients_fault() -> None:
    answer = classified(0)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "100000"])
def test_a_header_length_that_cannot_be_is_refused(length: str) -> None:
    _, body = v2(tensor())
    answer = ask(
        faulty.Echo(),
        "POST",
        "/v2/models/echo/infer",
        content=body,
        headers={"inference-header-content-length": length},
    )
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_a_raw_request_is_the_one_declared_input() -> None:
    class Doubler(TensorModel):
        name = "m"
        inputs = (Tensor("x", "FP32", (-1, 2)),)
        outputs = (Tensor("y", "FP32", (-1, 2)),)

        def predict(self, x: Any) -> Any:
            return 2 * x

    body = np.array([[1, 2], [3, 4]], np.float32).tobytes()
    answer = ask(
        Doubler(), "POST", "/v2/models/m/infer", content=body, headers={"inference-header-content-length": "0"}
    )
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.content[length:], np.float32).tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_taken_and_given(coding: str, compress: Any) -> None:
    body = orjson.dumps({"instances": [0] * 2000})
    headers = {"content-encoding": coding, "accept-encoding": coding, "content-type": "application/json"}
    answer = ask(faulty.Echo(), "POST", "/v1/models/echo:predict", content=compress(body), headers=headers)
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "accept-encoding")
    assert answer.json()["predictions"] == [0] * 2000  # the client expands it


def test_a_coding_that_is_not_known_is_refused_with_those_that_are() -> None:
    answer = ask(faulty.Echo(), "POST", "/v2/models/echo/infer", content=b"{}", headers={"content-encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


def test_a_bomb_stops_at_the_body_limit() -> None:
    bomb = gzip.compress(bytes(2**22))
    answer = ask(
        faulty.Echo(),
        "POST",
        "/v2/models/echo/infer",
        content=bomb,
        headers={"content-encoding": "gzip"},
        options={"max_body_size": 2**20},
    )
    assert answer.status_code == 413


def test_a_binary_cloud_event_is_answered_by_one() -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "s",
        "ce-type": "t",
        "content-type": "application/json",
    }
    answer = ask(faulty.Echo(), "POST", "/v1/models/echo:predict", content=b'{"instances": [1]}', headers=headers)
    assert (answer.headers["ce-source"], answer.json()) == ("io.kserve.inference.echo", {"predictions": [1]})


def test_a_structured_cloud_event_is_answered_by_one() -> None:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"instances": [1]}}
    headers = {"content-type": "application/cloudevents+json"}
    answer = ask(faulty.Echo(), "POST", "/v1/models/echo:predict", content=orjson.dumps(event), headers=headers)
    assert answer.headers["content-type"] == "application/cloudevents+json"
    assert (answer.json()["type"], answer.json()["data"]) == ("io.kserve.inference.response", {"predictions": [1]})


def test_of_two_clients_one_waits_for_the_other_and_both_are_answered() -> None:
    running: list[int] = []

    class Alone(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            running.append(1)
            assert len(running) == 1
            running.pop()
            return {}

    async def main() -> set[int]:
        async with serving(Alone()) as client:
            calls = [client.post("/v1/models/m:predict", json={"instances": []}) for _ in range(20)]
            return {answer.status_code for answer in await asyncio.gather(*calls)}

    assert asyncio.run(main()) == {200}


@pytest.mark.parametrize("announced", ["-1", "+5", "1_0", " 5", "²", "five", "", "9" * 19])
def test_a_length_that_is_no_number_is_refused(announced: str) -> None:
    path, body = GOOD
    headers = {b"content-length": announced.encode("latin-1")}
    answer = ask(faulty.Echo(), "POST", path, content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": f"expected a number as content-length, got {announced!r}"},
    )


def test_a_request_whose_client_has_gone_away_is_not_answered() -> None:
    class Never(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise AssertionError

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async def main() -> None:
        async with serving(Never()) as client:
            app = client._transport.app  # type: ignore[attr-defined]
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/models/m:predict",
                "headers": [],
                "query_string": b"",
            }
            await app(scope, gone, send)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("depth", "status"),
    [
        pytest.param(200, 200, id="echoed"),
        pytest.param(1000, 500, id="read, but deeper than JSON is written"),
        pytest.param(100_000, 400, id="not read"),
    ],
)
def test_deep_json_is_an_error_and_not_the_end(depth: int, status: int) -> None:
    body = b'{"instances": ' + b"[" * depth + b"]" * depth + b"}"
    answer = ask(faulty.Echo(), "POST", "/v1/models/echo:predict", content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["predictions" if status == 200 else "error"])
