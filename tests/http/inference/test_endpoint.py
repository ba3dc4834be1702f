"""The inference routes over ASGI: what of a request reaches the model, and every fault that can be told."""

import base64
import gzip
import re
import zlib
from typing import Any

import orjson

from mpserve.serving.models.model import Model
from tests.asgi import ask, serving
from tests.cases import each
from tests.error_table import CASES, GOOD, MAX_BODY_SIZE, PREPARATION
from tests.models import faulty

PREDICT = "/v1/models/echo:predict"


async def test_a_fault_is_told_and_leaves_the_server_usable() -> None:
    async with serving(*[type(model)() for model in faulty.models], max_body_size=MAX_BODY_SIZE) as client:
        assert (await client.post(PREPARATION[0], content=PREPARATION[1])).status_code == 200
        for case in CASES:
            answer = await client.request(case.method, case.path, content=case.body, headers=case.headers)
            assert (answer.status_code, list(answer.json())) == (case.status, ["error"]), case
            assert re.search(case.says, answer.json()["error"]), case
            assert answer.headers["content-type"] == "application/json", case
            assert answer.headers.get("allow") == case.allow, case
            good = await client.post(GOOD[0], content=GOOD[1])
            assert (good.status_code, good.json()) == (200, {"predictions": [1]}), case


def test_a_v1_model_gets_bytes_that_are_no_json_by_their_type_and_the_headers_in_lower_case() -> None:
    class Told(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any = None) -> Any:
            return [type(payload).__name__, len(payload), headers["content-type"], headers["x-mine"]]

    headers = {"Content-Type": "image/jpeg", "X-Mine": "1"}
    answer = ask(Told(), "POST", "/v1/models/m:predict", content=b"\xff\xd8", headers=headers)
    assert answer.json() == ["bytes", 2, "image/jpeg", "1"]


@each("announced", ["-1", "+5", "1_0", "5 5", "²", "five", "", "9" * 19])
def test_a_length_that_is_no_number_is_refused(announced: str) -> None:
    headers = {b"content-length": announced.encode("latin-1")}
    answer = ask(faulty.Echo(), "POST", PREDICT, content=GOOD[1], headers=headers)
    words = f"expected a number as content-length, got {announced!r}"
    assert (answer.status_code, answer.json()) == (400, {"error": words})


@each("coding, compress", [("gzip", gzip.compress), ("deflate", zlib.compress)])
@each("size", [2000, 200_000])  # the larger one is expanded in a thread
def test_compressed_bodies_are_taken_and_given(coding: str, compress: Any, size: int) -> None:
    instances = [*range(size)]
    headers = {"content-encoding": coding, "accept-encoding": coding, "content-type": "application/json"}
    body = compress(orjson.dumps({"instances": instances}))
    answer = ask(faulty.Echo(), "POST", PREDICT, content=body, headers=headers)
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "accept-encoding")
    assert answer.json()["predictions"] == instances  # the client expands it


def test_a_coding_that_is_not_known_is_refused_with_those_that_are() -> None:
    answer = ask(faulty.Echo(), "POST", "/v2/models/echo/infer", content=b"{}", headers={"content-encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


@each("size", [2**22, 2**27])  # the larger one is expanded in a thread
def test_a_bomb_stops_at_the_body_limit(size: int) -> None:
    bomb, headers = gzip.compress(bytes(size)), {"content-encoding": "gzip"}
    answer = ask(faulty.Echo(), "POST", PREDICT, content=bomb, headers=headers, options={"max_body_size": 2**20})
    assert answer.status_code == 413


LIMITS = {"max_json_elements": 30, "max_json_size": 400}
ELEMENTS, SIZE = "30 lists, objects and strings that --max_json_elements", "larger than (the )?400 bytes"
LISTS, NUMBERS, SPACE = b"[" + b"[]," * 30 + b"[]]", b"[" + b"7," * 60 + b"7]", b" " * 400
EVENT, ATTRIBUTES = (
    {"content-type": "application/cloudevents+json"},
    b'"specversion":"1.0","id":"1","source":"s","type":"t"',
)
BINARY, ALL = "inference-header-content-length", "all"
INFER, GENERATE, INDEX = "/v2/models/echo/infer", "/v2/models/echo/generate", "/v2/repository/index"
TENSOR = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[61],"data":%b}]}' % NUMBERS
RAW = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[400],"parameters":{"binary_data_size":400}}]}'


@each("is_compressed", [False, True])
@each("path, headers, body, says", [
    (PREDICT, {}, b'{"instances":%b}' % LISTS, ELEMENTS),
    (PREDICT, {}, b'{"instances":%b}' % LISTS.replace(b"[]", b"{}"), ELEMENTS),
    (PREDICT, {}, b'{"instances":%b}' % LISTS.replace(b"[]", b'""'), ELEMENTS),
    (PREDICT, {}, b'{"instances":[1]}' + SPACE, SIZE),
    (PREDICT, {}, b'{"instances":%b}' % NUMBERS, None),
    (PREDICT, {"content-type": "text/plain"}, b'{"instances":%b}' % LISTS, ELEMENTS),
    (PREDICT, {"content-type": "text/plain"}, b'{"instances":[1]}' + SPACE, SIZE),
    (PREDICT, EVENT, b'{%b,"data":{"instances":%b}}' % (ATTRIBUTES, LISTS), ELEMENTS),
    (PREDICT, EVENT, b'{%b,"data_base64":"%b"}' % (ATTRIBUTES, base64.b64encode(b'{"instances":%b}' % LISTS)), ELEMENTS),
    (INFER, {}, b'{"inputs":%b}' % LISTS, ELEMENTS),
    (INFER, {}, TENSOR + SPACE, SIZE),
    (INFER, {}, TENSOR, None),
    (INFER, {BINARY: ALL}, b'{"inputs":%b}' % LISTS, ELEMENTS),
    (INFER, {BINARY: ALL}, RAW + SPACE, SIZE),
    (INFER, {BINARY: f"{len(RAW)}"}, RAW + b"[" * 400, None),
    (GENERATE, {}, b'{"x":%b}' % LISTS, ELEMENTS),
    (INDEX, {}, b'{"ready":%b}' % LISTS, ELEMENTS),
    (INDEX, {}, b"{}" + SPACE, SIZE),
])  # fmt: skip
def test_the_limits_of_json_hold_for_json_in_every_format(
    path: str, headers: dict[str, str], body: bytes, says: str | None, is_compressed: bool
) -> None:
    headers = {name: f"{len(body)}" if value is ALL else value for name, value in headers.items()}
    if is_compressed:
        body, headers = gzip.compress(body), {**headers, "content-encoding": "gzip"}
    answer = ask(faulty.Echo(), "POST", path, content=body, headers=headers, options=LIMITS)
    if says is None:
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 413, answer.text
        assert re.search(says, answer.json()["error"])


@each("content_type", ["image/png", "text/plain"])
def test_a_body_that_is_no_json_has_only_the_limit_of_bodies(content_type: str) -> None:
    class Size(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            return {"predictions": len(payload)}

    answer = ask(
        Size("echo"), "POST", PREDICT, content=LISTS * 9, headers={"content-type": content_type}, options=LIMITS
    )
    assert answer.json() == {"predictions": len(LISTS) * 9}


async def test_a_request_whose_client_has_gone_away_before_it_was_whole_is_not_answered() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with serving(faulty.Echo()) as client:
        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": [], "query_string": b""}
        await client._transport.app(scope, gone, send)  # type: ignore[attr-defined]
    assert sent == []


@each("depth, status", [(200, 200), (1000, 500), (100_000, 400)])  # JSON is written less deep than it is read
def test_deep_json_is_an_error_and_not_the_end(depth: int, status: int) -> None:
    body = b'{"instances": ' + b"[" * depth + b"]" * depth + b"}"
    answer = ask(faulty.Echo(), "POST", PREDICT, content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["predictions" if status == 200 else "error"])
