"""From the outcome of a request to status, headers and body."""

from typing import Any

import numpy as np
import pytest

from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asgi import ask, predict
from tests.cases import each
from tests.error_table import tensor
from tests.models import faulty


class Answering(Model):
    """Answers with what it was constructed with."""

    name = "m"

    def __init__(self, answer: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.answer, self.headers = answer, headers or {}

    def predict(self, payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers.update(self.headers)
        return self.answer


@each("result, content_type, body", [
    ({"predictions": [1]}, "application/json", b'{"predictions":[1]}'), ([1], "application/json", b"[1]"),
    ("text", "text/plain; charset=utf-8", b"text"), (b"\xff", "application/octet-stream", b"\xff"),
])  # fmt: skip
def test_v1_answers_in_the_form_that_the_result_has(result: Any, content_type: str, body: bytes) -> None:
    answer = predict(Answering(result))
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, content_type, body)


def test_headers_that_the_model_sets_are_sent_and_may_say_what_the_content_is() -> None:
    answer = predict(Answering(b"\x89PNG", {"Content-Type": "image/png", "X-Model": "é", "Content-Length": "1"}))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers.get_list("content-length") == ["4"]
    assert [value for name, value in answer.headers.raw if name == b"x-model"] == ["é".encode("latin-1")]


@each("headers", [
    {"x-a": "1\r\nset-cookie: b=c"}, {"x-a\r\nset-cookie": "b=c"}, {"x-a": "1\n"}, {"x-a": "\0"}, {"x-a": "日"},
    {"x a": "1"}, {"": "1"},
])  # fmt: skip
def test_a_header_that_could_end_the_head_or_cannot_be_written_is_the_models_fault(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    answer = predict(Answering({}, headers))
    assert (answer.status_code, "set-cookie" in answer.headers) == (500, False)
    assert "the model set the response header" in answer.json()["error"]
    assert [record.name for record in caplog.records] == ["mpserve.serving.models.faults"]


def test_a_v2_model_may_answer_with_a_dict_as_sdk_models_do() -> None:
    told = {"model_name": "m", "outputs": []}
    assert ask(Answering(told), "POST", "/v2/models/m/infer", json=tensor()).json() == told


@each("parameters, ending", [
    ({"classification": 2}, b'"data":["3.3:1","0.5:0"]}]}'),
    ({"classification": 1, "binary_data": True}, b"\x05\0\0\x003.3:1"),
])  # fmt: skip
def test_an_output_is_classified_as_json_or_as_bytes(parameters: dict[str, Any], ending: bytes) -> None:
    body = tensor(data=[0.5, 3.3]) | {"outputs": [{"name": "x", "parameters": parameters}]}
    assert ask(faulty.Echo(), "POST", "/v2/models/echo/infer", json=body).content.endswith(ending)


def test_a_raw_request_is_the_one_declared_input() -> None:
    class Double(TensorModel):
        name = "double"
        inputs = (Tensor("x", "FP32", (-1, 2)),)
        outputs = (Tensor("y", "FP32", (-1, 2)),)

        def predict(self, x: Any) -> Any:
            return x * 2

    body, headers = np.float32([[1, 2], [3, 4]]).tobytes(), {"inference-header-content-length": "0"}
    answer = ask(Double(), "POST", "/v2/models/double/infer", content=body, headers=headers)
    assert answer.content.endswith(np.float32([2, 4, 6, 8]).tobytes())
