"""The HTTP cases of the kserve SDK's own tests (python/kserve/test/test_server.py), asked of this server.

A row holds what the SDK answers. The answer here is the same, to the byte where the SDK's test compares bytes, or the
row names the line of docs/coming-from/kserve-differences.md that says why it is another.

Left out: Ray, which is not offered; processes that are killed, which tests/e2e has.
"""

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from mpserve.serving.models.model import Model
from tests.asgi import serving
from tests.conformance import models

DIFFERENCES = Path(__file__).parents[2] / "docs" / "coming-from" / "kserve-differences.md"

NULLS = "`null` fields in V2 answers, an `id` that nobody gave"
DIGITS = "digits of an FP32 in JSON"
SPACES = "JSON in the answer to a CloudEvent"
ERRORS = "unknown path, wrong method"
UNKNOWN = "a model that is not there"
HALF = "FP16 in JSON"
EVENTS = "a CloudEvent whose data is bad JSON"
MEDIA = "an attribute `content-type` of a CloudEvent"
LOADS = "a load that fails"

LENGTH = "inference-header-content-length"


class Case(NamedTuple):
    """A request and the SDK's answer to it: what of the body is known, and how it differs here, if it does."""

    name: str
    models: tuple[type[Model], ...]
    path: str
    status: int
    body: bytes | None = None
    """None where the SDK's test does not look at it."""
    send: bytes | None = None
    """What is posted; None: the path is asked for with GET."""
    headers: dict[str, str] = {}  # noqa: RUF012
    answered: dict[str, str] = {}  # noqa: RUF012
    """Headers of the answer."""
    differs: str = ""
    here: int = 0
    """The status here, where that is the difference."""
    options: dict[str, str] = {}  # noqa: RUF012


JSON = {"content-type": "application/json"}
OCTETS = {"content-type": "application/octet-stream"}
INSTANCES = b'{"instances":[[1,2]]}'
PREDICTIONS = b'{"predictions":[[1,2]]}'
INT32 = b'{"inputs": [{"name": "input-0","shape": [1, 2],"datatype": "INT32","data": [[1,2]]}]}'

V1_MODELS = (models.Dummy, models.DateTime)
V2_MODELS = (models.Dummy, models.FP16Input, models.FP16Output, models.DateTime)

V1 = [
    Case("liveness", V1_MODELS, "/", 200, b'{"status":"alive"}'),
    Case("model", V1_MODELS, "/v1/models/TestModel", 200, b'{"name":"TestModel","ready":true}'),
    Case("unknown model", V1_MODELS, "/v1/models/InvalidModel", 404,
         b'{"error":"Model with name InvalidModel does not exist."}', differs=UNKNOWN),
    Case("list of models", V1_MODELS, "/v1/models", 200, b'{"models":["TestModel","DateTimeModel"]}'),
    Case("predict", V1_MODELS, "/v1/models/TestModel:predict", 200, PREDICTIONS, INSTANCES, JSON, JSON),
    Case("predict of inputs", V1_MODELS, "/v1/models/TestModel:predict", 200, PREDICTIONS,
         b'{"inputs":[[1,2]]}', JSON, JSON),
    Case("explain", V1_MODELS, "/v1/models/TestModel:explain", 200, PREDICTIONS, INSTANCES, JSON, JSON),
    Case("unknown path", V1_MODELS, "/unknown_path", 404, b'{"detail":"Not Found"}', differs=ERRORS),
    Case("metrics", V1_MODELS, "/metrics", 200),
    Case("stream", (models.Stream,), "/v1/models/TestModel:predict", 200, b"some streamed data" * 10, INSTANCES, JSON),
]  # fmt: skip

PARAMETERS = {"test-str": "dummy", "test-bool": True, "test-int": 100, "test-float": 1.3}
PARAMETERS_REQUEST = {
    "id": "123", "parameters": PARAMETERS,
    "inputs": [{"name": "input-0", "shape": [1, 2], "datatype": "INT32", "data": [1, 2], "parameters": PARAMETERS}],
}  # fmt: skip
PARAMETERS_ANSWER = {
    "model_name": "TestModel", "model_version": None, "id": "123", "parameters": PARAMETERS,
    "outputs": [{"name": "output-0", "shape": [1, 2], "datatype": "INT32", "parameters": PARAMETERS, "data": [1, 2]}],
}  # fmt: skip

ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
ANIMALS = [["cat", "dog", "cat", "dog"]] * 2


def fp32(**fields: Any) -> bytes:
    """A request to FP16OutputModel."""
    data = np.array(ROWS, np.float32).tolist()
    tensor = {"name": "fp32_input", "shape": [2, 4], "datatype": "FP32", "data": data}
    return json.dumps({"id": "123", "inputs": [tensor], **fields}).encode()


def fp16(binary: bool) -> tuple[bytes, int]:
    """A request to FP16InputModel, and the length of its JSON."""
    array = np.array(ROWS, np.float16)
    data = {"parameters": {"binary_data_size": 16}} if binary else {"data": array.tolist()}
    tensors = [
        {"name": "fp16_input", "shape": [2, 4], "datatype": "FP16", **data},
        {"name": "str_input", "shape": [2, 4], "datatype": "BYTES", "data": ANIMALS},
    ]
    head = json.dumps({"id": "123", "inputs": tensors}).encode()
    return head + (array.tobytes() if binary else b""), len(head)


def wanted(**binary: bool | None) -> list[dict[str, Any]]:
    return [
        {"name": name} if flag is None else {"name": name, "parameters": {"binary_data": flag}}
        for name, flag in binary.items()
    ]


FP16_INPUT, FP16_OUTPUT = "/v2/models/FP16InputModel/infer", "/v2/models/FP16OutputModel/infer"
FP32_DATA = (
    b'"data":[6.800000190734863,2.799999952316284,4.800000190734863,1.399999976158142,6.0,3.4000000953674316,4.5,'
    b"1.600000023841858]}]}"
)
FP32_BYTES = b"\x9a\x99\xd9@333@\x9a\x99\x99@33\xb3?\x00\x00\xc0@\x9a\x99Y@\x00\x00\x90@\xcd\xcc\xcc?"
FP16_BYTES = b"\xcdF\x9aA\xcdD\x9a=\x00F\xcdB\x80Df>"
FP16_HEAD = (
    b'{"id":"123","model_name":"FP16OutputModel","model_version":null,"outputs":[{"name":"fp16_output","shape":[8],'
    b'"datatype":"FP16","parameters":{"binary_data_size":16}},{"name":"fp32_output","shape":[8],"datatype":"FP32",'
)
FP16_AND_JSON = FP16_HEAD + FP32_DATA + FP16_BYTES
FP16_AND_BYTES = FP16_HEAD + b'"parameters":{"binary_data_size":32}}]}' + FP16_BYTES + FP32_BYTES

V2 = [
    Case("list of models", V2_MODELS, "/v2/models", 200,
         b'{"models":["TestModel","FP16InputModel","FP16OutputModel","DateTimeModel"]}'),
    Case("infer", V2_MODELS, "/v2/models/TestModel/infer", 200, None, INT32, JSON, JSON),
    Case("parameters", V2_MODELS, "/v2/models/TestModel/infer", 200, json.dumps(PARAMETERS_ANSWER).encode(),
         json.dumps(PARAMETERS_REQUEST).encode(), JSON, JSON, NULLS),
    Case("FP16 in as bytes", V2_MODELS, FP16_INPUT, 200,
         b'{"model_name":"FP16InputModel","model_version":null,"id":"123","parameters":null,"outputs":[{"name":"str_output",'
         b'"shape":[8],"datatype":"BYTES","parameters":null,"data":["cat","dog","cat","dog","cat","dog","cat","dog"]},'
         b'{"name":"fp32_output","shape":[8],"datatype":"FP32","parameters":null,"data":[6.80078125,2.80078125,4.80078125,'
         b'1.400390625,6.0,3.400390625,4.5,1.599609375]}]}',
         fp16(True)[0], {**OCTETS, LENGTH: str(fp16(True)[1])}, JSON, DIGITS),
    Case("FP16 in as JSON", V2_MODELS, FP16_INPUT, 400, None, fp16(False)[0], JSON, differs=HALF, here=200),
    Case("FP16 out as bytes", V2_MODELS, FP16_OUTPUT, 200, FP16_AND_JSON,
         fp32(outputs=wanted(fp16_output=True, fp32_output=False)), JSON, {LENGTH: "345"}, DIGITS),
    Case("FP16 out as JSON", V2_MODELS, FP16_OUTPUT, 400, None,
         fp32(outputs=wanted(fp16_output=None, fp32_output=False)), JSON, differs=HALF, here=200),
    Case("one output of two", V2_MODELS, FP16_OUTPUT, 200,
         b'{"model_name":"FP16OutputModel","model_version":null,"id":"123","parameters":null,"outputs":[{"name":'
         b'"fp32_output","shape":[8],"datatype":"FP32","parameters":null,' + FP32_DATA,
         fp32(outputs=wanted(fp32_output=False)), JSON, JSON, DIGITS),
    Case("all outputs as bytes", V2_MODELS, FP16_OUTPUT, 200, FP16_AND_BYTES,
         fp32(parameters={"binary_data_output": True}), JSON, {LENGTH: "256"}, NULLS),
    Case("an output's own wish counts", V2_MODELS, FP16_OUTPUT, 200, FP16_AND_JSON,
         fp32(parameters={"binary_data_output": True}, outputs=wanted(fp16_output=True, fp32_output=False)),
         JSON, {LENGTH: "345"}, DIGITS),
]  # fmt: skip

ATTRIBUTES = {
    "type": "com.example.sampletype1", "source": "https://example.com/event-producer", "specversion": "1.0",
    "id": "36077800-0c23-4f38-a0b4-01f4369f670a", "time": "2021-01-28T21:04:43.144141+00:00",
}  # fmt: skip
EVENT = {"content-type": "application/cloudevents+json"}
ANSWERED = {"specversion": "1.0", "source": "io.kserve.inference.TestModel", "type": "io.kserve.inference.response"}
CUSTOM = {"source": "io.kserve.inference.CustomSource", "type": "io.kserve.custom_type"}
SPACED = b'{"predictions": [[1, 2]]}'


def binary(content_type: str = "application/json", **attributes: str) -> dict[str, str]:
    """The headers of an event with an attribute ``content-type``, as the SDK's tests make it."""
    return in_headers({**ATTRIBUTES, "content-type": content_type, **attributes})


def in_headers(attributes: dict[str, str]) -> dict[str, str]:
    return {**JSON, **{f"ce-{name}": value for name, value in attributes.items()}}


def structured(**attributes: str) -> bytes:
    return json.dumps({**ATTRIBUTES, **attributes, "data": {"instances": [[1, 2]]}}).encode()


def answer_event(**attributes: str) -> bytes:
    return json.dumps({**ANSWERED, **attributes, "data": {"predictions": [[1, 2]]}}).encode()


ONE = (models.Dummy,)
PREDICT = "/v1/models/TestModel:predict"

CLOUD_EVENTS = [
    Case("structured", ONE, PREDICT, 200, answer_event(), structured(), EVENT, EVENT),
    Case("source and type are the operator's", ONE, PREDICT, 200, answer_event(**CUSTOM), structured(), EVENT, EVENT,
         options={"ce_source": CUSTOM["source"], "ce_type": CUSTOM["type"]}),
    Case("structured, merged", ONE, PREDICT, 200, answer_event(**{"custom-extension": "custom-value"}),
         structured(**{"custom-extension": "custom-value"}), EVENT, EVENT, options={"ce_merge": "true"}),
    Case("binary, merged", ONE, PREDICT, 200, SPACED, b'{"instances": [[1, 2]]}',
         binary(**{"custom-extension": "custom-value"}), in_headers({**ANSWERED, "custom-extension": "custom-value"}),
         SPACES, options={"ce_merge": "true"}),
    Case("binary", ONE, PREDICT, 200, SPACED, b'{"instances": [[1, 2]]}', binary(), in_headers(ANSWERED), SPACES),
    Case("binary, without spaces", ONE, PREDICT, 200, SPACED, INSTANCES, binary(), in_headers(ANSWERED), SPACES),
    Case("bad JSON", ONE, PREDICT, 400,
         b'{"error":"Failed to decode or parse binary json cloudevent: unexpected end of data"}', b"{", binary(),
         differs=EVENTS),
    Case("bad UTF-8", ONE, PREDICT, 400,
         b'{"error":"Failed to decode or parse binary json cloudevent: \'utf-8\' codec can\'t decode byte 0x80"}',
         b"0\x80\x80\x06World!\x00\x00", binary(), differs=EVENTS),
    Case("Avro by an attribute", (models.Avro,), PREDICT, 200, b'{"predictions": [["foo", 1, "pink"]]}',
         b"\x06foo\x00\x02\x00\x08pink", binary("application/avro"), differs=MEDIA, here=400),
    Case("Avro by its content type", (models.Avro,), PREDICT, 200, b'{"predictions": [["foo", 1, "pink"]]}',
         b"\x06foo\x00\x02\x00\x08pink", {**binary("application/avro"), "content-type": "application/avro"},
         in_headers(ANSWERED), SPACES),
]  # fmt: skip

LOAD, UNLOAD = "/v2/repository/models/TestModel/load", "/v2/repository/models/TestModel/unload"
UNREADY = (models.Unready,)

LIFE = [
    Case("load", ONE, LOAD, 200, b'{"name":"TestModel","load":true}', b""),
    Case("unload", ONE, UNLOAD, 200, b'{"name":"TestModel","unload":true}', b""),
    Case("load fails", (models.Reluctant,), LOAD, 503, None, b"", differs=LOADS, here=500),
    Case("unload of no model", ONE, "/v2/repository/models/model/unload", 404, None, b""),
    Case("not ready, V1", UNREADY, "/v1/models/TestModel", 503),
    Case("not ready, V2", UNREADY, "/v2/models/TestModel/ready", 503),
    Case("not ready, predict", UNREADY, PREDICT, 503, None, INSTANCES, JSON),
    Case("not ready, infer", UNREADY, "/v2/models/TestModel/infer", 503, None, INT32, JSON),
    Case("not ready, explain", UNREADY, "/v1/models/TestModel:explain", 503, None, INSTANCES, JSON),
]


async def ask(case: Case) -> httpx.Response:
    """The answer, which has the status that is due."""
    async with serving(*(model() for model in case.models), **case.options) as client:
        method = "GET" if case.send is None else "POST"
        answer = await client.request(method, case.path, content=case.send, headers=case.headers)
    assert answer.status_code == (case.here or case.status), answer.text
    return answer


def is_the_same(case: Case, answer: httpx.Response) -> None:
    assert case.body is None or answer.content == case.body
    assert case.answered.items() <= dict(answer.headers).items()


def has_the_same_tensors(case: Case, answer: httpx.Response) -> None:
    """The same values, and the same bytes behind the JSON; the fields that are null there are missing."""
    assert case.body is not None
    length = answer.headers.get(LENGTH)
    theirs = int(case.answered.get(LENGTH, len(case.body)))
    ours = len(answer.content) if length is None else int(length)
    assert plain(json.loads(answer.content[:ours])) == plain(json.loads(case.body[:theirs]))
    assert answer.content[ours:] == case.body[theirs:]
    assert (length is None) == (LENGTH not in case.answered)


def plain(value: Any) -> Any:
    """Without nulls, and with the values of an FP32 tensor as such."""
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.get("datatype") == "FP32" and "data" in value:
        value = value | {"data": np.array(value["data"], np.float32).tolist()}
    return {name: plain(inner) for name, inner in value.items() if inner is not None}


def is_the_same_json(case: Case, answer: httpx.Response) -> None:
    assert case.body is not None
    assert answer.json() == json.loads(case.body)
    assert case.answered.items() <= dict(answer.headers).items()


def is_an_error(case: Case, answer: httpx.Response) -> None:
    assert list(answer.json()) == ["error"]


def is_the_same_error_and_more(case: Case, answer: httpx.Response) -> None:
    assert case.body is not None
    assert answer.json()["error"].startswith(f"{json.loads(case.body)['error']} There are: ")


def is_flat_json(case: Case, answer: httpx.Response) -> None:
    assert [len(output["data"]) for output in answer.json()["outputs"]] == [8, 8]


HOW: dict[str, Callable[[Case, httpx.Response], None]] = {
    "": is_the_same, NULLS: has_the_same_tensors, DIGITS: has_the_same_tensors, SPACES: is_the_same_json,
    ERRORS: is_an_error, EVENTS: is_an_error, MEDIA: is_an_error, LOADS: is_an_error, HALF: is_flat_json,
    UNKNOWN: is_the_same_error_and_more,
}  # fmt: skip
"""What must hold of an answer that differs in this way."""


@pytest.mark.parametrize("case", [*V1, *V2, *LIFE], ids=lambda case: case.name)
async def test_a_request_of_the_sdks_tests_is_answered_as_there(case: Case) -> None:
    HOW[case.differs](case, await ask(case))


@pytest.mark.parametrize("case", CLOUD_EVENTS, ids=lambda case: case.name)
async def test_an_event_of_the_sdks_tests_is_answered_as_there(case: Case) -> None:
    answer = await ask(case)
    if case.headers != EVENT:
        HOW[case.differs](case, answer)
        new = {name: answer.headers.get(f"ce-{name}") for name in ("id", "time")}
    else:
        event = answer.json()
        new = {name: event.pop(name) for name in ("id", "time")}
        assert case.body is not None
        assert json.loads(case.body).items() <= event.items()
        assert case.answered.items() <= dict(answer.headers).items()
    if answer.status_code == 200:
        assert new["id"] != ATTRIBUTES["id"]
        assert new["time"] > ATTRIBUTES["time"]


@pytest.mark.parametrize(("path", "send", "field"), [
    ("/v1/models/DateTimeModel:predict", INSTANCES, lambda body: body["predictions"][0]),
    ("/v2/models/DateTimeModel/infer", INT32, lambda body: body["outputs"][0]["data"][0]),
])  # fmt: skip
async def test_a_time_is_written_as_iso_8601(path: str, send: bytes, field: Callable[[Any], str]) -> None:
    answer = await ask(Case("", V1_MODELS, path, 200, None, send, JSON))
    assert answer.headers["content-type"] == "application/json"
    told = datetime.fromisoformat(field(answer.json()))
    assert told.tzinfo == timezone.utc
    assert abs((datetime.now(tz=timezone.utc) - told).total_seconds()) < 3600


def test_every_difference_stands_in_the_documentation() -> None:
    rows = {line.split(" | ")[0].removeprefix("| ") for line in DIFFERENCES.read_text().splitlines()}
    assert HOW.keys() <= {"", *rows}


def test_every_difference_is_met() -> None:
    assert {case.differs for case in (*V1, *V2, *CLOUD_EVENTS, *LIFE)} == HOW.keys()
