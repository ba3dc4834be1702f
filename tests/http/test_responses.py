"""From an outcome to a response: statuses, the one form of an error, and what is logged of it."""

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from mpserve.errors import (
    ConfigurationError,
    InferenceError,
    InvalidInput,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    NotSupported,
    PayloadTooLarge,
    ServerNotReady,
)
from mpserve.http.responses import Answer, error_answer, failure_answer, json_answer
from tests.cases import each


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@each("error, status, words, is_logged", [
    (InvalidInput("no cat"), 400, "no cat", False),
    (caused(InvalidInput("no cat"), ValueError("no cat")), 400, "no cat", False),
    (InvalidInput("caf\udce9"), 400, "caf?", False), (PayloadTooLarge("too much"), 413, "too much", False),
    (ModelNotFound("m"), 404, "Model with name m does not exist.", False),
    (ModelNotReady("m"), 503, "Model with name m is not ready.", False),
    (ServerNotReady("not yet"), 503, "not yet", False), (NotSupported("no explainer"), 501, "no explainer", False),
    (caused(NotSupported("no kernel"), NotImplementedError("no kernel")), 501, "no kernel", True),
    (InferenceError("tired"), 500, "tired", True),
    (caused(InferenceError("KeyError : 'x'"), KeyError("x")), 500, "KeyError : 'x'", True),
    (ModelLoadError("no weights"), 500, "no weights", True), (ConfigurationError("wrong"), 500, "wrong", True),
    (HTTPException(418, "short and stout"), 418, "short and stout", False),
    (HTTPException(422, detail={"loc": ["body"]}), 422, "{'loc': ['body']}", False),  # type: ignore[arg-type]
    (caused(InferenceError("HTTPException : ..."), HTTPException(409, "taken")), 409, "taken", False),
])  # fmt: skip
def test_every_error_is_one_text_under_error_and_logged_where_somebody_here_has_to_mend_it(
    error: Exception, status: int, words: str, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The clients' faults are not, so that clients cannot fill the log. Those of an inference request have been."""
    caplog.clear()
    answer = error_answer(error)
    assert (answer.status, json.loads(answer.body)) == (status, {"error": words})
    assert (b"content-type", b"application/json") in answer.headers
    assert caplog.records == []
    assert failure_answer(error) == answer
    told = [(record.levelno, record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == ([(logging.ERROR, error.__cause__ or error)] if is_logged else [])
    assert len(caplog.records) == len(told)


@each("answer", [error_answer, failure_answer])
def test_an_error_that_nobody_foresaw_is_logged_once_and_not_told(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    told = answer(error := ValueError("a secret path"))
    assert (told.status, json.loads(told.body)) == (500, {"error": "internal server error"})
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@each("error", [ModelNotReady("m"), ServerNotReady("not yet")])
def test_who_is_told_that_it_is_not_ready_is_told_when_to_ask_again(error: Exception) -> None:
    assert (b"retry-after", b"1") in error_answer(error).headers


def test_headers_of_an_http_exception_are_kept() -> None:
    error = HTTPException(401, headers={"WWW-Authenticate": "Basic"})
    assert (b"www-authenticate", b"Basic") in error_answer(error).headers


@each("status", [204, 304])
def test_an_http_exception_without_a_body_has_none(status: int) -> None:
    """A client would take it for the beginning of the next answer."""
    answer = error_answer(HTTPException(status))
    assert (answer.status, answer.body) == (status, b"")


@each("error", [
    HTTPException(101), HTTPException(99), HTTPException(600), HTTPException(400, headers={"x": "\u1234"}),
])  # fmt: skip
def test_an_http_exception_that_cannot_be_sent_is_a_failure_of_the_server(error: HTTPException) -> None:
    answer = error_answer(error)
    assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal server error"})


async def test_an_answer_is_sent_as_two_messages_with_its_length() -> None:
    sent: asyncio.Queue[Any] = asyncio.Queue()
    await Answer(201, [(b"a", b"b")], b"body")({}, None, sent.put)
    assert [sent.get_nowait() for _ in range(sent.qsize())] == [
        {"type": "http.response.start", "status": 201, "headers": [(b"a", b"b"), (b"content-length", b"4")]},
        {"type": "http.response.body", "body": b"body"},
    ]


def test_a_value_becomes_compact_json() -> None:
    answer = json_answer({"a": [1, "é"]}, 202, [(b"x", b"y")])
    assert answer.body == '{"a":[1,"é"]}'.encode()
    assert answer.headers == [(b"content-type", b"application/json"), (b"x", b"y")]
