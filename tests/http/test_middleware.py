"""What concerns every request alike: its id, its count, its line in the access log."""

import asyncio
import logging
import re
from typing import Any

import prometheus_client
import pytest

from mpserve.http.middleware import RequestContext
from mpserve.http.request_log import RequestLog
from mpserve.serving.models.model import Model
from mpserve.telemetry.logging import request_id
from mpserve.telemetry.metrics import metrics
from tests.asgi import ask, client_of, predict, serving
from tests.cases import each
from tests.connections import sending

OURS = re.compile(r"[0-9a-f]+-[0-9a-f]+-[0-9a-f]+")


class SaysId(Model):
    """Answers with the request id that its log lines would carry."""

    name = "m"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": [request_id.get()]}


class SaysIdAsync(SaysId):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(0)
        return super().predict(payload)


@each("model", [SaysId(), SaysIdAsync()])
def test_the_clients_id_comes_back_and_is_the_one_in_the_log(model: Model) -> None:
    answer = predict(model, headers={"x-request-id": "abc-1/2+3="})
    assert answer.headers.get_list("x-request-id") == ["abc-1/2+3="]
    assert answer.json() == {"predictions": ["abc-1/2+3="]}


async def test_a_request_without_an_id_is_given_one_of_its_own() -> None:
    async with serving(SaysId()) as client:
        answers = [await client.post("/v1/models/m:predict", json={"instances": []}) for _ in range(3)]
        told = [(answer.headers["x-request-id"], answer.json()["predictions"][0]) for answer in answers]
    assert all(header == logged and OURS.fullmatch(header) for header, logged in told)
    assert len(set(told)) == 3


@each("given", [
    b"", b"two words", b"a] mpserve: forged", b"a\r\nset-cookie: b=c", b"a\tb", b"a\x00b", "é".encode("latin-1"),
    "é".encode(), b"a" * 129,
])  # fmt: skip
def test_an_id_that_could_pass_for_something_else_is_replaced(given: bytes) -> None:
    answer = predict(SaysId(), headers={b"x-request-id": given})
    assert OURS.fullmatch(answer.headers["x-request-id"])
    assert answer.json() == {"predictions": [answer.headers["x-request-id"]]}
    assert "set-cookie" not in answer.headers


def test_errors_have_an_id_too() -> None:
    answer = ask(SaysId(), "GET", "/nowhere", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine")


def test_an_id_that_the_model_set_itself_is_not_doubled() -> None:
    class SetsId(Model):
        name = "m"

        def predict(self, payload: Any, headers: Any, response_headers: Any) -> Any:
            response_headers["X-Request-ID"] = "the model's"
            return {}

    assert predict(SetsId()).headers.get_list("x-request-id") == ["the model's"]


def counted(route: str, status: int) -> float:
    labels = {"route": route, "status": str(status)}
    metrics().flush()
    return prometheus_client.REGISTRY.get_sample_value("mpserve_requests_total", labels) or 0


@each("method, path, route, status", [
    ("POST", "/v1/models/m:predict", "/v1/models/{model}:predict", 200),
    ("POST", "/v1/models/other:predict", "/v1/models/{model}:predict", 404),
    ("GET", "/v1/models/m", "/v1/models/{model}", 200), ("GET", "/v2/health/live", "/v2/health/live", 200),
    ("HEAD", "/v2/health/live", "/v2/health/live", 200),
    ("POST", "/v2/models/m/versions/1/infer", "/v2/models/{model}/versions/{version}/infer", 400),
    ("DELETE", "/v2/models/m", "/v2/models/{model}", 405), ("GET", "/v2/nowhere", "unmatched", 404),
    ("GET", "/v2/", "unmatched", 307),
])  # fmt: skip
def test_answers_are_counted_by_route_and_status(method: str, path: str, route: str, status: int) -> None:
    before = counted(route, status)
    answer = ask(SaysId(), method, path, content=b'{"instances": []}' if method == "POST" else None)
    assert answer.status_code == status
    assert counted(route, status) == before + 1


@each("path, access_log, lines", [
    ("/v2/health/live", True, [r'127\.0\.0\.1:123 "GET /v2/health/live" 200 \d+\.\d ms']),
    ("/a%0A127.0.0.1%20forged%C3%A9", True, [r'.* "GET /a%0A127\.0\.0\.1%20forged%C3%A9" 404 .*']),
    ("/v2/health/live", False, []),
])  # fmt: skip
def test_the_access_log_says_who_asked_for_what_and_cannot_be_forged_through_the_path(
    path: str, access_log: bool, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        ask(SaysId(), "GET", path, options={"access_log": access_log})
    told = [record.getMessage() for record in caplog.records if record.name == "mpserve.access"]
    assert len(told) == len(lines)
    assert all(map(re.fullmatch, lines, told))


async def test_the_messages_of_the_application_are_not_changed_in_place() -> None:
    """A framework may send one message object for many requests."""
    message = {"type": "http.response.start", "status": 204, "headers": []}
    app = RequestContext(sending(message, {"type": "http.response.body", "body": b""}), RequestLog(access_log=False))
    async with client_of(app) as client:
        told = [await client.get("/") for _ in range(2)]
    assert all(len(answer.headers.get_list("x-request-id")) == 1 for answer in told)
    assert message["headers"] == []
