"""``/generate`` and ``/generate_stream``: one object, or one event for each."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mpserve import InferRequest, InvalidInput, Model
from tests.asgi import ask
from tests.cases import each

SSE = "text/event-stream; charset=utf-8"


class Words(Model):
    """Gives the words of its text; ``request`` is what it was asked last."""

    name = "words"
    request: InferRequest
    closed = 0

    def predict(self, payload: InferRequest, headers: Any = None) -> Iterator[str]:
        self.request = payload
        try:
            for word in payload.inputs[0].as_string()[0].split():
                if word == "error":
                    raise RuntimeError("boom")
                if word == "refuse":
                    raise InvalidInput("no cat")
                yield word
        finally:
            self.closed += 1


class Whole(Model):
    """Answers once."""

    name = "whole"

    def predict(self, payload: InferRequest, headers: Any, response_headers: Any) -> Any:
        response_headers["x-from-model"] = "yes"
        return payload.inputs[0].as_string()[0].upper()


def asked(model: Model, verb: str, document: Any) -> httpx.Response:
    return ask(model, "POST", f"/v2/models/{model.name}/{verb}", json=document)


def events(answer: httpx.Response) -> list[Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, SSE)
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def answer_of(model: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"model_name": model, "model_version": "1", **more, "text_output": text}


def test_each_part_is_an_event() -> None:
    told = events(asked(Words(), "generate_stream", {"text_input": "a b", "id": "7"}))
    assert told == [answer_of("words", "a", id="7"), answer_of("words", "b", id="7")]


def test_one_part_is_the_answer_of_generate() -> None:
    answer = asked(Words(), "generate", {"text_input": "a", "id": "7"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == answer_of("words", "a", id="7")


@each("text", ["", "a b", "a b c"])
def test_generate_needs_exactly_one(text: str) -> None:
    model = Words()
    answer = asked(model, "generate", {"text_input": text})
    assert (answer.status_code, model.closed) == (501, 1)
    assert "generate expects the model to produce exactly 1 response" in answer.json()["error"]


@each("verb", ["generate", "generate_stream"])
def test_a_model_that_answers_once_does_for_both(verb: str) -> None:
    answer = asked(Whole(), verb, {"text_input": "a"})
    told = [answer.json()] if verb == "generate" else events(answer)
    assert (told, answer.headers["x-from-model"]) == ([answer_of("whole", "A")], "yes")


@each("verb", ["generate", "generate_stream"])
@each("document, status, says", [
    ({"text_input": "error"}, 500, "RuntimeError : boom"), ({"text_input": "refuse"}, 400, "no cat"),
    ({}, 400, "no inputs"),
])  # fmt: skip
def test_an_error_before_the_first_event_has_its_status(verb: str, document: Any, status: int, says: str) -> None:
    answer = asked(Words(), verb, document)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert says in answer.json()["error"]


@each("word, says, logged", [("error", "RuntimeError : boom", True), ("refuse", "no cat", False)])
def test_an_error_after_the_first_event_is_the_last(
    word: str, says: str, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.ERROR, "mpserve"):
        told = events(asked(Words(), "generate_stream", {"text_input": f"a {word} b"}))
    assert told == [answer_of("words", "a"), {"error": says}]
    assert ("Traceback" in caplog.text) == logged
