"""``/generate`` and ``/generate_stream``: one object, or one event for each."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from mpserve import InferRequest, InvalidInput, Model, Tensor, TensorModel
from tests.asgi import ask

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


class Squares(TensorModel):
    name = "squares"
    inputs = (Tensor("x", "INT32", (-1,)),)
    outputs = (Tensor("y", "INT32", (-1,)),)

    async def predict(self, x: Any) -> Any:
        for value in x:
            yield np.array([value * value])


def asked(model: Model, verb: str, document: Any, version: str = "", **options: Any) -> httpx.Response:
    path = f"/v2/models/{model.name}{version}/{verb}"
    return ask(model, "POST", path, content=json.dumps(document).encode(), **options)


def events(answer: httpx.Response) -> list[Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, SSE)
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def answer_of(model: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"model_name": model, "model_version": "1", **more, "text_output": text}


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_each_part_is_an_event(version: str) -> None:
    told = events(asked(Words(), "generate_stream", {"text_input": "a b"}, version))
    assert told == [answer_of("words", "a"), answer_of("words", "b")]


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_one_part_is_the_answer_of_generate(version: str) -> None:
    answer = asked(Words(), "generate", {"text_input": "a", "id": "7"}, version)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == answer_of("words", "a", id="7")


@pytest.mark.parametrize("text", ["", "a b", "a b c"])
def test_generate_needs_exactly_one(text: str) -> None:
    model = Words()
    answer = asked(model, "generate", {"text_input": text})
    assert answer.status_code == 501
    assert "generate expects the model to produce exactly 1 response" in answer.json()["error"]
    assert model.closed == 1


def test_a_model_that_answers_once_does_for_both() -> None:
    answer = asked(Whole(), "generate", {"text_input": "a"})
    assert (answer.json(), answer.headers["x-from-model"]) == (answer_of("whole", "A"), "yes")
    answer = asked(Whole(), "generate_stream", {"text_input": "a"})
    assert (events(answer), answer.headers["x-from-model"]) == ([answer_of("whole", "A")], "yes")


def test_declared_inputs_are_filled_by_name() -> None:
    told = events(asked(Squares(), "generate_stream", {"x": [1, 2, 3], "id": "7"}))
    assert [each["y"] for each in told] == [1, 4, 9]
    assert {each["id"] for each in told} == {"7"}


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(("document", "status", "says"), [
    ({"text_input": "error"}, 500, "RuntimeError : boom"), ({"text_input": "refuse"}, 400, "no cat"),
    ({}, 400, "no inputs"),
])  # fmt: skip
def test_an_error_before_the_first_event_has_its_status(verb: str, document: Any, status: int, says: str) -> None:
    answer = asked(Words(), verb, document)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("word", "says", "logged"), [("error", "RuntimeError : boom", True), ("refuse", "no cat", False)]
)
def test_an_error_after_the_first_event_is_the_last(
    word: str, says: str, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mpserve"):
        told = events(asked(Words(), "generate_stream", {"text_input": f"a {word} b"}))
    assert told == [answer_of("words", "a"), {"error": says}]
    assert ("Traceback" in caplog.text) == logged
